"""Recording a training run of JAX."""

import os
from collections.abc import Iterable
from pathlib import Path

from jaxclip.parity._jax._recorder import JaxRecording
from jaxclip.parity._trace._options import Options
from jaxclip.parity._trace._records import STAGES
from jaxclip.parity._verify._port._port import Port


def record_jax(
    path: str | os.PathLike[str],
    port: Port | None = None,
    *,
    activations: bool | Iterable[str] = True,
    keep: Iterable[str] = STAGES,
    every: int = 1,
    digest_above: int | None = None,
    overwrite: bool = False,
) -> JaxRecording:
    """Record a run of JAX, as ``record`` does one of torch.

    There are two ways. With a port, ``run.step(**batch)`` takes a step of its training,
    from the weights that its model has, and records all of it; ``run.model`` and
    ``run.opt_state`` are what has become of them. Or a loop stays as it is, and hands
    what it has of each step to ``run.add(params=..., grads=..., ...)``; that needs no
    port.

    The recording has the format of torch's, so that ``verify`` holds a port against it
    and ``compare_traces`` another recording. Names are Flax's paths joined by dots,
    without the name of a Linen collection; layouts are Flax's own. The state of the
    optimizer is kept leaf by leaf, ``0.mu`` of ``fc1.kernel`` for one; with
    ``Port.clip`` it is that of a chain of the clip and the optimizer. Keys of random
    numbers are kept as their integers.

    Args:
        path: The folder to write. A run that is killed leaves a recording up to its
            last whole step.
        port: The model, its loss, and its optimizer, if the recorder is to take the
            steps.
        activations: Of which modules to keep the output: of all, of none, or of those
            whose path fits one of these patterns.
        keep: The stages to keep, of ``jaxclip.parity.STAGES``.
        every: Records one step of so many, beginning with the first.
        digest_above: Of arrays of more bytes than this, which a step results in, the
            `Digest` is kept, of 4656 bytes.
        overwrite: Whether to replace a recording that is at ``path``.

    Returns:
        The recording, to be entered with ``with``.

    Raises:
        TypeError: If ``port`` is no `Port`, or its model none of those that it takes.
        ValueError: If a stage is unknown, ``every`` is less than 1, or
            ``digest_above`` less than 0.
        FileExistsError: On entering, if something is at ``path``.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxclip import clip_by_global_norm, optim
        >>> from jaxclip.parity import Port, open_trace, record_jax, verify
        >>> def loss_fn(model, batch):
        ...     outputs = model(batch["x"])
        ...     return jnp.mean((outputs - batch["y"]) ** 2), outputs
        >>> port = Port(
        ...     nnx.Linear(2, 1, rngs=nnx.Rngs(0)),
        ...     loss_fn,
        ...     optim.adamw(0.1),
        ...     clip=clip_by_global_norm(1.0),
        ... )
        >>> path = tempfile.mkdtemp()
        >>> with record_jax(path, port) as run:
        ...     for _ in range(3):
        ...         loss = run.step(x=jnp.ones((4, 2)), y=jnp.zeros((4, 1)))
        >>> trace = open_trace(path)
        >>> trace.run.framework, len(trace)
        ('jax', 3)
        >>> trace[0].grads
        {'bias': float32[1], 'kernel': float32[2, 1]}
        >>> sorted(trace[0].opt_state["kernel"])
        ['1.exp_avg', '1.exp_avg_sq']
        >>> bool(verify(path, port))
        True
    """
    options = Options.read(
        "record_jax",
        activations=activations,
        keep=keep,
        every=every,
        digest_above=digest_above,
        overwrite=overwrite,
    )
    if port is not None and not isinstance(port, Port):
        raise TypeError(
            f"record_jax(port=...): expected a jaxclip.parity.Port, got "
            f"{type(port).__name__}."
        )
    return JaxRecording(Path(path), port, options)

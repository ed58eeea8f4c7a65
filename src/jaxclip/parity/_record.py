"""Recording a training run, on the side where torch is installed."""

import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxclip.parity._trace._options import Options
from jaxclip.parity._trace._records import STAGES

if TYPE_CHECKING:
    import torch

    from jaxclip.parity._torch._recorder import Recording


def record(
    path: str | os.PathLike[str],
    model: "torch.nn.Module",
    optimizer: "torch.optim.Optimizer",
    *,
    scheduler: Any = None,
    activations: bool | Iterable[str] = True,
    keep: Iterable[str] = STAGES,
    every: int = 1,
    digest_above: int | None = None,
    overwrite: bool = False,
) -> "Recording":
    """Record a training loop of torch, which stays as it is.

    The loop runs in the context that this returns, and each step of it in the context
    ``run.step(**batch)``. The order of the calls in a step is the loop's own:
    ``zero_grad``, the model, ``backward`` once or more, clipping, ``optimizer.step``,
    ``scheduler.step``. What it calls is seen whatever name it was imported by, and
    what it does to the gradients by hand is seen by their values.

    The run is the same to the bit as one that is not recorded: no random number is
    drawn, and nothing is computed that the run uses. (But for torch's encoder layers
    in evaluation mode without gradients, which leave their fused kernel while their
    modules have hooks.) It takes the time to copy and write what is kept.

    Random numbers that the model or the loop draws in a step are recorded, as what a
    dropout multiplied its input by, or as they were drawn. A module whose numbers do
    not show is named in ``unexplained_draws`` of the step: a kernel of a GPU may draw
    as it computes, and kernels are watched in the first step and in each after one
    that drew something else than ``nn.Dropout``.

    Mistakes of the loop that the order of its calls shows are in ``run.warnings``,
    each kind once; `LoopWarning` lists them.

    Args:
        path: The folder to write. A run that is killed leaves a recording up to its
            last whole step.
        model: The model.
        optimizer: The optimizer.
        scheduler: The scheduler of the learning rate, or a list of several. torch's
            own are seen without it.
        activations: Of which modules to keep the output: of all, of none, or of those
            whose path fits one of these patterns, ``"layers.*.attn"`` for one.
        keep: The stages to keep, of ``jaxclip.parity.STAGES``. What is not kept is not
            looked at: changes by hand are seen in the gradients and parameters kept.
        every: Records one step of so many, beginning with the first.
        digest_above: Of arrays of more bytes than this, which a step results in, the
            `Digest` is kept, of 4656 bytes. What a step starts from is kept whole: the
            batch, the parameters, buffers and state before, masks, and other draws.
        overwrite: Whether to replace a recording that is at ``path``.

    Returns:
        The recording, to be entered with ``with``.

    Raises:
        TypeError: If ``model`` is no ``nn.Module``, or ``optimizer`` no optimizer.
        ValueError: If a stage is unknown, ``every`` is less than 1, or
            ``digest_above`` less than 0; if the model is
            the result of ``torch.compile``, into which hooks do not reach.
        FileExistsError: On entering, if something is at ``path``.
        ImportError: If torch is not installed.

    Example:
        >>> import tempfile, torch
        >>> from jaxclip.parity import open_trace, record
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> path = tempfile.mkdtemp()
        >>> with record(path, model, optimizer) as run:
        ...     for _ in range(3):
        ...         x, y = torch.ones(4, 2), torch.zeros(4, 1)
        ...         with run.step(x=x, y=y):
        ...             optimizer.zero_grad()
        ...             loss = torch.nn.functional.mse_loss(model(x), y)
        ...             loss.backward()
        ...             norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        ...             optimizer.step()
        >>> run.warnings
        ()
        >>> step = open_trace(path)[0]
        >>> [event.kind for event in step.events]
        ['zero_grad', 'forward', 'backward', 'clip_grad_norm', 'optimizer_step']
        >>> step.grads
        {'weight': float32[1, 2], 'bias': float32[1]}
    """
    if importlib.util.find_spec("torch") is None:
        raise ImportError(
            "recording a run of torch needs torch, which is not installed: "
            "pip install 'jaxclip[torch]'"
        )
    from jaxclip.parity._torch._recorder import Recording, check

    check(model, optimizer)
    options = Options.read(
        "record",
        activations=activations,
        keep=keep,
        every=every,
        digest_above=digest_above,
        overwrite=overwrite,
    )
    if scheduler is None:
        scheduler = ()
    elif not isinstance(scheduler, list | tuple):
        scheduler = (scheduler,)
    return Recording(
        Path(path), model, optimizer, schedulers=tuple(scheduler), options=options
    )

"""The public function: a port against a torch model, both at hand."""

import importlib.util
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxclip.parity._verify._port._port import Port
from jaxclip.parity._verify._report._report import Report
from jaxclip.parity._verify._verifying import verify

if TYPE_CHECKING:
    import torch


def compare(
    torch_model: "torch.nn.Module",
    port: Port,
    batch: Mapping[str, Any],
    *,
    torch_loss: Callable[[Any, Any], Any],
    torch_optimizer: "torch.optim.Optimizer | None" = None,
    torch_clip: Callable[[Any], Any] | None = None,
    **options: Any,
) -> Report:
    """Compare one step of a torch model with one of its port.

    The step is recorded, on copies of the model and of the optimizer, and verified as
    ``verify`` does it. What was recorded is deleted again.

    Args:
        torch_model: The torch model.
        port: The port.
        batch: The batch, by name: tensors or NumPy arrays.
        torch_loss: ``torch_loss(model, batch)`` returns torch's loss.
        torch_optimizer: The model's optimizer, in the state in which it is. Without it
            no step is taken, and what comes after the gradients is not compared.
        torch_clip: What clips the gradients before its step: ``lambda model:
            clip_grad_norm_(model.parameters(), 1.0)``.
        **options: As ``verify`` takes them.

    Returns:
        The report; true if all that was compared is the same.

    Raises:
        ConversionError: If the weights do not fit the port's model.
        ParityError: If there is nothing to compare.
        TypeError: If an argument is of another type.
        ImportError: If torch is not installed.

    Example:
        >>> import torch
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxclip import optim
        >>> from jaxclip.parity import Port, compare
        >>> report = compare(
        ...     torch.nn.Linear(3, 1),
        ...     Port(
        ...         nnx.Linear(3, 1, rngs=nnx.Rngs(0)),
        ...         lambda model, batch: jnp.mean(model(batch["x"]) ** 2),
        ...         optim.sgd(0.1),
        ...     ),
        ...     {"x": torch.ones(4, 3)},
        ...     torch_loss=lambda model, batch: (model(batch["x"]) ** 2).mean(),
        ... )
        >>> report.verdict, report.of_stage("gradients")[0].verdict
        ('same', 'same')
    """
    if importlib.util.find_spec("torch") is None:
        raise ImportError(
            "compare() runs torch, which is not installed: pip install "
            "'jaxclip[torch]'. verify() holds a port against a recording without it."
        )
    from jaxclip.parity._torch._once import record_once

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "step.trace"
        record_once(path, torch_model, batch, torch_loss, torch_optimizer, torch_clip)
        return verify(path, port, **options)

"""One step of torch, recorded on a copy of the model."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jaxclip.parity._record import record


def record_once(
    path: Path,
    model: nn.Module,
    batch: Mapping[str, Any],
    loss_fn: Callable[[nn.Module, Any], Tensor],
    optimizer: torch.optim.Optimizer | None,
    clip: Callable[[nn.Module], Any] | None,
) -> None:
    """Record a step; model and optimizer stay as they are.

    Args:
        path: The folder to write.
        model: The model.
        batch: The batch, by name: tensors, or arrays, which are made tensors.
        loss_fn: ``loss_fn(model, batch)`` returns the loss.
        optimizer: The model's optimizer; if there is none, no step is taken.
        clip: Is called with the model before the optimizer's step.
    """
    # Together, so that the optimizer's copy has the parameters of the model's.
    model, stepping = copy.deepcopy((model, optimizer))
    watched = stepping or torch.optim.SGD(model.parameters())
    tensors = {name: _tensors(value) for name, value in batch.items()}
    with record(path, model, watched) as run, run.step(**tensors):
        watched.zero_grad()
        torch.autograd.backward(loss_fn(model, tensors))
        if clip is not None:
            clip(model)
        if stepping is not None:
            stepping.step()


def _tensors(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, list | tuple):
        return type(value)(map(_tensors, value))
    if isinstance(value, Mapping):
        return {key: _tensors(item) for key, item in value.items()}
    return value

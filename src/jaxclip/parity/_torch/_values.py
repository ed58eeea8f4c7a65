"""The numbers of a run at a moment: parameters, gradients, state of the optimizer."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jaxclip.parity._torch._changes import Change, change
from jaxclip.parity._torch._describe import Names
from jaxclip.parity._torch._tensors import (
    Array,
    copied,
    flattened,
    is_array,
    same_bits,
    viewed,
)

Arrays = dict[str, Array]


def batch_arrays(batch: Mapping[str, Any]) -> Arrays:
    """Copy a batch, flattened.

    Raises:
        TypeError: If something in it is no tensor, array or number.
        ValueError: If two things in it have the same path.
    """
    arrays: Arrays = {}
    for path, leaf in flattened(batch):
        try:
            array = copied(leaf)
        except TypeError as error:
            raise TypeError(
                f"the batch's {path!r} {error} Leave out of run.step what the JAX "
                "side does not need."
            ) from None
        if arrays.setdefault(path, array) is not array:
            raise ValueError(f"the batch has two arrays of the path {path!r}.")
    return arrays


def parameter_arrays(names: Names) -> Arrays:
    """Copy the parameters."""
    return {name: copied(p) for name, p in names.parameters.items()}


def buffer_arrays(model: nn.Module) -> Arrays:
    """Copy the buffers."""
    return {name: copied(buffer) for name, buffer in model.named_buffers()}


def gradients(names: Names) -> dict[str, Tensor]:
    """Return the gradients that there are, not copied."""
    grads = ((name, p.grad) for name, p in names.parameters.items())
    return {name: grad for name, grad in grads if grad is not None}


def state_arrays(names: Names, optimizer: torch.optim.Optimizer) -> Arrays:
    """Copy the optimizer's state, under parameter, slash, and name in the state."""
    return {
        f"{name}/{key}": copied(leaf)
        for _, name, parameter in names.of_optimizer()
        # Not indexed: the mapping would gain a key by it.
        for key, leaf in flattened(optimizer.state.get(parameter, {}))
        if is_array(leaf)
    }


def hyperparameters(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], ...]:
    """Read the hyperparameters of each group; tensors of one number as numbers."""
    return tuple(
        {
            key: _plain(value)
            for key, value in group.items()
            if key not in ("params", "param_names")
        }
        for group in optimizer.param_groups
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, tuple | list):
        return [*map(_plain, value)]
    return value


def renewed(
    known: Arrays, live: Mapping[str, Tensor], params: Mapping[str, Tensor]
) -> tuple[Arrays, tuple[str, ...], Change | None]:
    """Bring copies up to date.

    Args:
        known: Copies of what there was.
        live: What there is.
        params: The parameters under the same names.

    Returns:
        Copies of what there is, the old objects where nothing changed; the names of
        those that changed; and how they changed, if each was there before.
    """
    now: Arrays = {}
    changed = []
    for name, tensor in live.items():
        old = known.get(name)
        if old is not None and same_bits(old, viewed(tensor)):
            now[name] = old
        else:
            now[name] = copied(tensor)
            changed.append(name)
    if not changed:
        return now, (), None
    if not known.keys() >= {*changed}:
        return now, tuple(changed), Change("other", None)
    how = change((known[n], now[n], viewed(params[n])) for n in changed)
    return now, tuple(changed), how


def weight_decay(names: Names, changed: Iterable[str]) -> float:
    """Return the largest weight decay that the optimizer gives to some parameters."""
    wanted = {*changed}
    decays = (
        float(group.get("weight_decay") or 0)
        for group, name, _ in names.of_optimizer()
        if name in wanted
    )
    return max(decays, default=0.0)

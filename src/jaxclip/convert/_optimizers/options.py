"""The arguments of torch's optimizers, as those of jaxclip.optim."""

import inspect
from typing import Any

import numpy as np

from jaxclip import optim
from jaxclip.convert._errors import ConversionError
from jaxclip.convert._optimizers.axes import axes_of
from jaxclip.convert._optimizers.checkpoint import Group
from jaxclip.convert._optimizers.choices import choose
from jaxclip.convert._optimizers.expressions import Call, Named, given
from jaxclip.convert._optimizers.places import Place
from jaxclip.convert._optimizers.position import epoch_of
from jaxclip.convert._optimizers.schedulers import (
    is_plateau,
    momentum_call,
    schedule_call,
)

_OPTIMIZERS = (
    *("SGD", "ASGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop"),
    *("Adagrad", "Adadelta", "Adafactor", "Rprop", "Muon", "LBFGS"),
)
"""torch's optimizers that ``jaxclip.optim`` has, under the same names."""

_IMPLEMENTATION = {"foreach", "fused", "capturable", "differentiable"}
"""Arguments of torch's that say how a step is computed, and not what."""

_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
_TENSOR_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


def refuse_unknown(optimizer: Any, scheduler: Any) -> None:
    """Refuse what does other things than torch's optimizers.

    Raises:
        TypeError: It is no optimizer.
        ConversionError: It is another optimizer, has hooks, or the scheduler is
            another one's.
    """
    if not hasattr(optimizer, "param_groups"):
        raise TypeError(
            f"optimizer is a {type(optimizer).__name__}; it must be one of torch.optim."
        )
    kind = type(optimizer)
    problems = []
    if kind.__name__ not in _OPTIMIZERS or not kind.__module__.startswith("torch."):
        problems.append(
            f"optimizer is a {kind.__module__}.{kind.__qualname__}, which has no "
            f"counterpart. Those that have are torch's {', '.join(_OPTIMIZERS)}."
        )
    if any(getattr(optimizer, hooks, None) for hooks in _HOOKS):
        problems.append("optimizer has hooks around its step, which cannot be ported.")
    tensors = [t for group in optimizer.param_groups for t in group["params"]]
    hooked = [t for t in tensors if any(getattr(t, h, None) for h in _TENSOR_HOOKS)]
    if hooked:
        problems.append(
            f"{len(hooked)} of the optimizer's parameters have hooks on their "
            "gradients, which cannot be ported. Put what they do into clip=."
        )
    if scheduler is not None and getattr(scheduler, "optimizer", None) is not optimizer:
        problems.append("scheduler is that of another optimizer.")
    if scheduler is None and any("initial_lr" in g for g in optimizer.param_groups):
        problems.append(
            "a scheduler has set the optimizer's learning rates, and there is none. "
            "Pass scheduler=..."
        )
    if problems:
        raise ConversionError(problems)


def step_call(
    optimizer: Any,
    index: int,
    scheduler: Any,
    places: dict[str, Place],
    steps_per_epoch: int,
) -> Call:
    """Return the call that makes what steps the parameters of a group.

    Args:
        optimizer: The torch optimizer.
        index: The number of the group.
        scheduler: The torch scheduler, or None.
        places: The places of the parameters.
        steps_per_epoch: Updates for each step of the scheduler.

    Raises:
        ConversionError: If an argument has no counterpart.
    """
    kind = type(optimizer).__name__
    function = getattr(optim, kind.lower())
    arguments = inspect.signature(function).parameters
    group = optimizer.param_groups[index]
    problems = []
    options: dict[str, Any] = {}
    for name in optimizer.defaults:
        value = _plain(group[name])
        # What makes torch's AdamW of its Adam.
        implied = (kind, name, value) == ("AdamW", "decoupled_weight_decay", True)
        if name in arguments:
            options[name] = value
        elif name not in _IMPLEMENTATION and not implied:
            problems.append(
                f"{kind} has {name}={value!r}, which optim.{kind.lower()} has no "
                "argument for."
            )
    if problems:
        raise ConversionError(problems)
    # A ReduceLROnPlateau scales what an optimizer of the present rate returns.
    if scheduler is not None and not is_plateau(scheduler):
        options |= _scheduled(scheduler, index, group, options, steps_per_epoch)
    if kind in _AXES:
        options |= _AXES[kind](places)
    # A learning rate is said even where it is the default.
    said = {"lr": options["lr"], **given(function, options)}
    return Call(f"optim.{kind.lower()}", function, (), said)


def _scheduled(
    scheduler: Any,
    index: int,
    group: Group,
    options: dict[str, Any],
    steps_per_epoch: int,
) -> dict[str, Any]:
    """Return the arguments that a scheduler sets."""
    lr = schedule_call(scheduler, index, group, steps_per_epoch)
    scheduled: dict[str, Any] = {"lr": lr}
    _check_now(scheduler, "lr", lr, options["lr"], float(group["initial_lr"]))
    momentum = momentum_call(scheduler, group, steps_per_epoch)
    if momentum is not None and "betas" in options:
        first, *others = options["betas"]
        scheduled["betas"] = (momentum, *others)
        _check_now(scheduler, "betas[0]", momentum, first)
    elif momentum is not None:
        scheduled["momentum"] = momentum
        _check_now(scheduler, "momentum", momentum, options["momentum"])
    return scheduled


def _check_now(
    scheduler: Any, name: str, schedule: Call, now: float, scale: float = 1.0
) -> None:
    """Refuse a scheduler that is not all that sets a number.

    Raises:
        ConversionError: At its present step it gives another number.
    """
    epoch = epoch_of(scheduler.state_dict())
    expected = float(schedule().at(np.asarray(epoch)))
    # torch makes each number of the one before, and rounds every time.
    if not np.isclose(now, expected, rtol=1e-9, atol=1e-12 * scale):
        raise ConversionError(
            [
                f"a group has {name}={now:.9g}, and after {epoch} steps its "
                f"{type(scheduler).__name__} gives {expected:.9g}. Something else sets "
                "it, too, which cannot be ported."
            ]
        )


def _out_axis(places: dict[str, Place]) -> dict[str, Any]:
    """Say where Muon finds torch's first axis."""
    axes = {}
    for path, place in places.items():
        if place.group is None:
            continue
        found = axes_of(place.entry)
        if found is None or len(found) != 2 or _rank(place) != 2:
            raise ConversionError(
                [f"{place.entry} is no matrix as torch's is; Muon steps by matrices."]
            )
        axes[path] = 0 if found[0] == (0,) else -1
    return _of_leaf("out_axis", axes)


def _factored_axes(places: dict[str, Place]) -> dict[str, Any]:
    """Say where Adafactor finds torch's last two axes."""
    axes: dict[str, Any] = {}
    for path, place in places.items():
        if place.group is None:
            continue
        found = axes_of(place.entry)
        if found is None:
            raise ConversionError(
                [
                    f"{place.entry} and {', '.join(map(repr, place.entry.names))} are "
                    "not one matrix on both sides; Adafactor steps by matrices."
                ]
            )
        pair = tuple(own[0] if len(own) == 1 else own for own in found[-2:])
        if _rank(place) < 2 or len(found) == _rank(place) == 2:
            axes[path] = None
        else:
            axes[path] = pair if len(found) > 1 else ()
    return _of_leaf("factored_axes", axes)


_AXES = {"Muon": _out_axis, "Adafactor": _factored_axes}
"""The arguments that say how matrices lie, for the optimizers that need it."""


def _rank(place: Place) -> int:
    return len(place.entry.leaves[0].value.shape)


def _of_leaf(name: str, results: dict[str, Any]) -> dict[str, Any]:
    """Return an argument that is a function of a leaf's path, or one for all leaves."""
    distinct = {*results.values()}
    if len(distinct) == 1:
        return {name: distinct.pop()}
    choice = choose(name, results, arguments="path, array")
    return {name: Named(name, choice)}


def _plain(value: Any) -> Any:
    """Return a number that may be in a tensor, or several in a tuple."""
    if isinstance(value, tuple | list):
        return tuple(map(_plain, value))
    return value.item() if hasattr(value, "item") else value

"""How far a schedule is: torch's schedulers count epochs, Optax's count updates."""

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from jaxclip.convert._errors import ConversionError
from jaxclip.convert._optimizers.checkpoint import Group, is_scheduler_state

_PLATEAU = {"best", "num_bad_epochs", "cooldown_counter"}
"""What a ReduceLROnPlateau has learned."""


def count_of(
    steps: Sequence[int],
    schedulers: Sequence[Mapping[str, Any]],
    *,
    steps_per_epoch: int,
) -> int | None:
    """Return the number of updates so far, as schedules count them.

    A scheduler knows the number of its own steps, and within an epoch the parameters
    know theirs. Updates that a loss scaler skipped are in the first alone.

    Args:
        steps: The steps of the parameters, as far as torch keeps them.
        schedulers: The state dict of the scheduler, if there is one.
        steps_per_epoch: Updates for each step of the scheduler.

    Raises:
        ConversionError: If there are several schedulers.
    """
    most = max(steps, default=None)
    if len(schedulers) > 1:
        raise ConversionError(
            [
                f"source holds {len(schedulers)} schedulers; say which of them counts: "
                "scheduler=..., or give the number of updates: count=..."
            ]
        )
    if not schedulers:
        return most
    epoch = epoch_of(schedulers[0])
    if most is not None and most // steps_per_epoch == epoch:
        return most
    return epoch * steps_per_epoch


def scheduler_state(scheduler: Any) -> Mapping[str, Any]:
    """Return the state dict of a scheduler, which may be that already.

    Raises:
        TypeError: If it is neither.
    """
    is_live = callable(getattr(scheduler, "state_dict", None))
    state = scheduler.state_dict() if is_live else scheduler
    if not is_scheduler_state(state):
        raise TypeError(
            f"scheduler is a {type(scheduler).__name__}; it must be one of "
            "torch.optim.lr_scheduler, or its state dict."
        )
    found: Mapping[str, Any] = state
    return found


def epoch_of(state: Mapping[str, Any]) -> int:
    """Return how many steps a scheduler has taken."""
    if "last_epoch" in state:
        return int(state["last_epoch"])
    # A ChainedScheduler, which keeps no count, steps all of its own together.
    return epoch_of(state["_schedulers"][0])


def plateau_of(
    schedulers: Sequence[Mapping[str, Any]], groups: Sequence[Group]
) -> dict[str, Any]:
    """Return what a ReduceLROnPlateau keeps; nothing if there is none.

    Raises:
        ConversionError: If it keeps a learning rate for each group.
    """
    found = [state for state in schedulers if _PLATEAU <= {*state}]
    if not found:
        return {}
    rates = {float(group["lr"]) for group in groups}
    if len(rates) > 1:
        raise ConversionError(
            [
                "scheduler is a ReduceLROnPlateau of groups with the learning rates "
                f"{', '.join(map(str, sorted(rates)))}; reduce_lr_on_plateau has one."
            ]
        )
    return {"lr": rates.pop(), **{name: found[0][name] for name in _PLATEAU}}


def gone_on(
    scheduler: Any, groups: Sequence[Group], epoch: int, plateau: Mapping[str, Any]
) -> tuple[list[Group], dict[str, Any]]:
    """Return what a scheduler makes of parameter groups by an epoch, and its state.

    Args:
        scheduler: torch's scheduler, which stays as it is.
        groups: The parameter groups, as the scheduler left them.
        epoch: The number of its steps by then.
        plateau: What it keeps by then, if it is a ReduceLROnPlateau.

    Raises:
        ConversionError: If it is past that epoch.
        TypeError: If it is a state dict, and has to take steps.
    """
    if not plateau:
        return _stepped(scheduler, groups, epoch)
    lr = plateau["lr"]
    later = {
        **scheduler_state(scheduler),
        **{name: plateau[name] for name in _PLATEAU},
        "last_epoch": epoch,
        "_last_lr": [lr] * len(groups),
    }
    return [{**group, "lr": lr} for group in groups], later


def _stepped(
    scheduler: Any, groups: Sequence[Group], epoch: int
) -> tuple[list[Group], dict[str, Any]]:
    """Let a copy of a scheduler take steps: it makes each rate of the one before."""
    if not hasattr(scheduler, "optimizer"):
        raise TypeError(
            f"scheduler is a {type(scheduler).__name__}; it must be a live scheduler "
            "of torch.optim.lr_scheduler, as a copy of it takes steps."
        )
    import torch

    ahead = epoch - epoch_of(scheduler.state_dict())
    if ahead < 0:
        raise ConversionError(
            [
                f"scheduler has taken {-ahead} steps more than the {epoch} that the "
                "optimizer's state is at. Pass it as it was when the state was taken."
            ]
        )
    # Optimizers share no tensor, and only the groups are looked at.
    bare = [{**copy.deepcopy(group), "params": [torch.zeros(0)]} for group in groups]
    for group in bare:
        group.pop("param_names", None)
    stand_in = torch.optim.Optimizer(bare, {})
    copied = copy.deepcopy(scheduler, {id(scheduler.optimizer): stand_in})
    with warnings.catch_warnings():
        # The stand-in itself takes no step, which torch would warn of.
        warnings.simplefilter("ignore", UserWarning)
        for _ in range(ahead):
            copied.step()
    settings = (
        {name: value for name, value in group.items() if name != "params"}
        for group in stand_in.param_groups
    )
    made = [old | new for old, new in zip(groups, settings, strict=True)]
    return made, copied.state_dict()

"""How far a schedule is: torch's schedulers count epochs, Optax's count updates."""

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from jaxclip.convert._errors import ConversionError
from jaxclip.convert._optimizers.checkpoint import Group, is_scheduler_state


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


def stepped(
    scheduler: Any, optimizer: Any, groups: Sequence[Group], epoch: int
) -> tuple[list[Group], dict[str, Any]]:
    """Return what a scheduler makes of parameter groups when it goes on to an epoch.

    torch's schedulers make each learning rate of the one before, so a copy of it
    takes all of the steps; the scheduler and its optimizer stay as they are.

    Args:
        scheduler: torch's scheduler.
        optimizer: Its optimizer.
        groups: The parameter groups, as the scheduler left them.
        epoch: The number of steps to go on to.

    Raises:
        ConversionError: If it is past that, or steps by a metric.
    """
    import torch

    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise ConversionError(
            [
                "scheduler is a ReduceLROnPlateau, whose steps depend on a metric that "
                "is not known here. Leave it out, and step it in torch."
            ]
        )
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
    copied = copy.deepcopy(scheduler, {id(optimizer): stand_in})
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

"""torch's schedulers at work on a real optimizer."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.optim import lr_scheduler, swa_utils

from jaxclip.optim import schedules

STEPS = 500
LR = 0.1

NAMES: dict[str, Any] = {
    **{name: getattr(lr_scheduler, name) for name in lr_scheduler.__all__},
    "SWALR": swa_utils.SWALR,
    **{name: getattr(schedules, name) for name in dir(schedules) if name[0] != "_"},
    "np": np,
}
"""What an expression may use, beside o, the optimizer."""


def evaluate(expression: str, **names: Any) -> Any:
    """Return what an expression of these tests gives."""
    return eval(expression, NAMES | names)


def schedule(expression: str) -> schedules.Schedule:
    """Make one of jaxclip's schedules."""
    made = evaluate(expression)
    assert isinstance(made, schedules.Schedule)
    return made


@functools.cache
def torch_run(expression: str, steps: int = STEPS, lr: float = LR) -> Any:
    """Return the learning rates and the momenta of each step under a scheduler.

    Args:
        expression: What makes the scheduler of the optimizer ``o``.
        steps: How many steps are taken; the values of one more come back.
        lr: The learning rate of the optimizer.
    """
    return run(functools.partial(lambda o: evaluate(expression, o=o)), steps, lr)


def run(make: Callable[[Any], Any], steps: int = STEPS, lr: float = LR) -> Any:
    """Return the learning rates and the momenta under a scheduler, step by step."""
    optimizer = make_optimizer(lr)
    scheduler = quietly(make, optimizer)
    values = [hyperparameters(optimizer)]
    for _ in range(steps):
        optimizer.step()
        quietly(scheduler.step)
        values.append(hyperparameters(optimizer))
    lrs, momenta = np.array(values).T
    return lrs, momenta


def make_optimizer(lr: float = LR) -> torch.optim.Optimizer:
    """Return a real optimizer of one parameter."""
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr, momentum=0.5)


def hyperparameters(optimizer: torch.optim.Optimizer) -> tuple[float, float]:
    group = optimizer.param_groups[0]
    return float(group["lr"]), float(group["momentum"])


def quietly(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function of torch, which warns of its own ways."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args)


def torch_at(expression: str, count: int, lr: float = LR) -> float:
    """Return what torch gives far out: by its closed form, or where it jumps to."""
    scheduler = quietly(lambda: evaluate(expression, o=make_optimizer(lr)))
    if hasattr(scheduler, "_get_closed_form_lr"):
        scheduler.last_epoch = count
        return float(scheduler._get_closed_form_lr()[0])
    if isinstance(scheduler, lr_scheduler.CosineAnnealingWarmRestarts):
        quietly(scheduler.step, count)
    else:
        scheduler.last_epoch = count - 1
        quietly(scheduler.step)
    return float(scheduler.get_last_lr()[0])

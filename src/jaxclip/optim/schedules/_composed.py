"""Schedules of schedules: SequentialLR and ChainedScheduler."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np

from jaxclip.optim.schedules._arguments import ascending, horizon, whole_number
from jaxclip.optim.schedules._arithmetic import Real, Whole, namespace
from jaxclip.optim.schedules._schedule import Factor, Schedule
from jaxclip.optim.schedules._table import Tabulated


def sequential_lr(
    schedules: Sequence[Schedule],
    milestones: Sequence[int],
    *,
    steps_per_epoch: int = 1,
) -> Schedule:
    r"""Follow one schedule after the other.

    .. math:: \eta_t = \eta^{(k)}_{t - m_k}, \qquad m_k \leq t < m_{k+1}

    Each starts anew at its milestone, from its own base learning rate, whatever was
    before. Two start from the learning rate that they find: `multiplicative_lr`, with
    :math:`\lambda(0)` for the first factor, and `swa_lr`.

    Args:
        schedules: Schedules of this module, one or more.
        milestones: The epochs at which the second and the following ones begin.
        steps_per_epoch: Updates for each step of the scheduler; the schedules
            themselves leave theirs at 1.

    Returns:
        A schedule: the count of updates → the learning rate.

    Raises:
        TypeError: A schedule is not one of this module's, or is composed itself.
        ValueError: The numbers of schedules and milestones do not fit.

    Example:
        >>> from jaxclip.optim.schedules import cosine_annealing_lr, linear_lr
        >>> schedule = sequential_lr(
        ...     [linear_lr(0.1, 0.25, total_iters=3), cosine_annealing_lr(0.1, 4)], [3]
        ... )
        >>> print(*[f"{schedule(count):.3f}" for count in range(8)])
        0.025 0.050 0.075 0.100 0.085 0.050 0.015 0.000

    ``optax.join_schedules`` is the same for schedules that start from a base learning
    rate. Differs from torch, where all share the optimizer's: to make an OneCycleLR
    there changes that rate, and so the others' beginning.
    """
    caller = "sequential_lr"
    parts = _checked(caller, schedules)
    for part in parts:
        if isinstance(part, _Sequential | _Chained):
            raise TypeError(
                f"{caller}: got a {part.caller} among the schedules, expected plain "
                "ones: torch cannot restart it at a milestone, and counts its first "
                "step twice at the beginning. List its parts here instead."
            )
    at = ascending(caller, "milestones", milestones, strictly=True)
    if len(at) != len(parts) - 1:
        raise ValueError(
            f"{caller}(milestones={list(at)}): expected one fewer than the schedules, "
            f"which are {len(parts)}."
        )
    return _Sequential(
        schedules=parts,
        milestones=at,
        steps_per_epoch=whole_number(caller, "steps_per_epoch", steps_per_epoch),
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class _Sequential(Schedule):
    schedules: tuple[Schedule, ...]
    milestones: tuple[int, ...]

    caller = "sequential_lr"

    @cached_property
    def _parts(self) -> list[Schedule]:
        """Return the schedules, each as it goes on from the one before."""
        parts = [self.schedules[0]]
        lengths = np.diff([0, *self.milestones])
        for schedule, length in zip(self.schedules[1:], lengths, strict=True):
            parts.append(schedule.continued(parts[-1].at(length - 1)))
        return parts

    def at(self, epoch: Whole) -> Real:
        xp = namespace(epoch)
        starts = [0, *self.milestones]
        value: Real = 0.0
        for index, (part, start) in enumerate(zip(self._parts, starts, strict=True)):
            # Outside of its time a schedule may not be defined.
            inside = xp.maximum(epoch - start, 0)
            if index < len(self.milestones):
                inside = xp.minimum(inside, self.milestones[index] - start - 1)
            value = xp.where(epoch >= start, part.at(inside), value)
        return value

    def next(self, epoch: int, lr: float) -> float:
        index = bisect_right(self.milestones, epoch)
        schedule = self.schedules[index]
        if index == 0:
            return schedule.next(epoch, lr)
        since = epoch - self.milestones[index - 1]
        if since == 0:
            return float(schedule.continued(lr).at(np.asarray(0)))
        return schedule.next(since, lr)


def chained_scheduler(
    schedules: Sequence[Schedule],
    *,
    total_iters: int | None = None,
    steps_per_epoch: int = 1,
) -> Schedule:
    r"""Apply schedules to one learning rate, each to what the one before has left.

    .. math:: \eta_t = f^{(k)}_t(\cdots f^{(1)}_t(\eta_{t-1}))

    Most of torch's schedulers multiply the learning rate that they find:
    `step_lr`, `multi_step_lr`, `constant_lr`, `linear_lr`, `exponential_lr`,
    `polynomial_lr` and `multiplicative_lr`. A chain of these is the base learning rate
    times the product of all their factors.

    The others do not commute. `lambda_lr`, `cosine_annealing_warm_restarts`,
    `cyclic_lr` and `one_cycle_lr` take no notice of what they find, so that those
    before them count for nothing, and those after them with the factor of one step.
    `cosine_annealing_lr` scales the distance from ``eta_min``, and sets out from its
    lowest point for the base learning rate. Such a chain has no formula: it is
    tabulated in float64, step by step as torch does.

    Args:
        schedules: Schedules of this module, in torch's order, with one base learning
            rate.
        total_iters: How many steps of the scheduler to tabulate, where the chain has no
            formula; past it the learning rate stays. Under ``jit`` it has to be said.
        steps_per_epoch: Updates for each step of the scheduler; the schedules
            themselves leave theirs at 1.

    Returns:
        A schedule: the count of updates → the learning rate.

    Raises:
        TypeError: A schedule is not one of this module's; when it is called: the count
            is traced, and there is neither a formula nor ``total_iters``.
        ValueError: There is no schedule, or base learning rates differ.

    Example:
        >>> from jaxclip.optim.schedules import constant_lr, exponential_lr
        >>> schedule = chained_scheduler(
        ...     [constant_lr(1.0, factor=0.1, total_iters=2), exponential_lr(1.0, 0.9)]
        ... )
        >>> print(*[f"{schedule(count):.4f}" for count in range(4)])
        0.1000 0.0900 0.8100 0.7290
    """
    caller = "chained_scheduler"
    parts = _checked(caller, schedules)
    rates = {base_lr for part in parts for base_lr in _base_lrs(part)}
    if len(rates) > 1:
        raise ValueError(
            f"{caller}: the schedules have the base learning rates "
            f"{', '.join(map(repr, sorted(rates)))}, expected one, as in torch each "
            "changes the same learning rate."
        )
    return _Chained(
        schedules=parts,
        total_iters=horizon(caller, total_iters),
        steps_per_epoch=whole_number(caller, "steps_per_epoch", steps_per_epoch),
    )


def _checked(caller: str, schedules: Sequence[Any]) -> tuple[Schedule, ...]:
    if not schedules:
        raise ValueError(f"{caller}(schedules=[]): expected at least one schedule.")
    for part in schedules:
        if not isinstance(part, Schedule):
            raise TypeError(
                f"{caller}: got {part!r} among the schedules, expected those of "
                "jaxclip.optim.schedules. reduce_lr_on_plateau is a transformation; "
                "other functions are joined by optax.join_schedules."
            )
        if part.steps_per_epoch != 1:
            raise ValueError(
                f"{caller}: got {part!r} among the schedules, expected steps_per_epoch "
                f"to be said once, to {caller}."
            )
        if any(isinstance(rate, jax.Array) for rate in _base_lrs(part)):
            raise TypeError(
                f"{caller}: the learning rate of {part.caller} is traced, expected a "
                "number, as what follows is computed from it on the host."
            )
    return tuple(schedules)


def _base_lrs(part: Schedule) -> list[Any]:
    """Return the learning rates of an optimizer that a schedule starts from."""
    if isinstance(part, _Sequential | _Chained):
        return [rate for one in part.schedules for rate in _base_lrs(one)]
    if part.caller == "cyclic_lr":
        return []  # its lower bound, whatever the optimizer's is
    return [part.base_lr] if hasattr(part, "base_lr") else []


@dataclass(frozen=True, kw_only=True, repr=False)
class _Chained(Schedule, Tabulated):
    schedules: tuple[Schedule, ...]

    caller = "chained_scheduler"

    def at(self, epoch: Whole) -> Real:
        factors = [part for part in self.schedules if isinstance(part, Factor)]
        if len(factors) < len(self.schedules):
            return self.tabulated(epoch, self.caller)
        value: Real = factors[0].base_lr
        for part in factors:
            value = value * part.product(epoch)
        return value

    def values(self, last: int) -> np.ndarray[Any, Any]:
        # What does not start from the optimizer's learning rate does not ask for it.
        rates = [rate for part in self.schedules for rate in _base_lrs(part)]
        lr = self.first(rates[0] if rates else 0.0)
        lrs = [lr]
        for epoch in range(1, last + 1):
            lr = self.next(epoch, lr)
            lrs.append(lr)
        return np.array(lrs)

    def first(self, lr: float) -> float:
        for part in self.schedules:
            lr = part.first(lr)
        return lr

    def next(self, epoch: int, lr: float) -> float:
        for part in self.schedules:
            lr = part.next(epoch, lr)
        return lr

"""Decay by a constant factor: StepLR, MultiStepLR and ExponentialLR."""

from collections.abc import Iterable
from dataclasses import dataclass

import jax
import numpy as np

from jaxclip.optim.schedules._arguments import (
    ascending,
    learning_rate,
    number,
    whole_number,
)
from jaxclip.optim.schedules._arithmetic import Real, Whole, lookup, passed, power
from jaxclip.optim.schedules._schedule import Factor, Schedule


def step_lr(
    base_lr: float | jax.Array,
    step_size: int,
    gamma: float = 0.1,
    *,
    steps_per_epoch: int = 1,
) -> Schedule:
    r"""Multiply the learning rate by gamma after every ``step_size`` epochs.

    .. math:: \eta_t = \eta_0\, \gamma^{\lfloor t / \text{step\_size} \rfloor}

    Args:
        base_lr: The learning rate of the optimizer, ≥ 0.
        step_size: How many epochs a learning rate is kept, ≥ 1.
        gamma: The factor.
        steps_per_epoch: Updates for each step of the scheduler. torch's usual loop
            steps it once an epoch; 1 steps it at every update.

    Returns:
        A schedule: the count of updates → the learning rate.

    Raises:
        TypeError: A number is no scalar, or one besides ``base_lr`` is traced.
        ValueError: A number is out of range.

    Example:
        >>> schedule = step_lr(0.1, step_size=30, steps_per_epoch=500)
        >>> print(*[f"{schedule(epoch * 500):.4f}" for epoch in [0, 29, 30, 60]])
        0.1000 0.1000 0.0100 0.0010

    ``optax.exponential_decay(base_lr, step_size, gamma, staircase=True)`` is the same,
    but for its rounding in float32: see `exponential_lr`.
    """
    return _Step(
        base_lr=learning_rate("step_lr", "base_lr", base_lr),
        step_size=whole_number("step_lr", "step_size", step_size),
        gamma=number("step_lr", "gamma", gamma),
        steps_per_epoch=whole_number("step_lr", "steps_per_epoch", steps_per_epoch),
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class _Step(Factor):
    step_size: int
    gamma: float = 0.1

    caller = "step_lr"

    def product(self, epoch: Whole) -> Real:
        return power(self.gamma, epoch // self.step_size)


def multi_step_lr(
    base_lr: float | jax.Array,
    milestones: Iterable[int],
    gamma: float = 0.1,
    *,
    steps_per_epoch: int = 1,
) -> Schedule:
    r"""Multiply the learning rate by gamma at each milestone.

    .. math:: \eta_t = \eta_0\, \gamma^{|\{m \in \text{milestones} : m \leq t\}|}

    Args:
        base_lr: The learning rate of the optimizer, ≥ 0.
        milestones: Epochs ≥ 0, in any order; one that stands twice counts twice.
        gamma: The factor.
        steps_per_epoch: Updates for each step of the scheduler.

    Returns:
        A schedule: the count of updates → the learning rate.

    Raises:
        TypeError: A number is no scalar, or one besides ``base_lr`` is traced.
        ValueError: A number is out of range.

    Example:
        >>> schedule = multi_step_lr(0.1, [30, 80])
        >>> print(*[f"{schedule(count):.4f}" for count in [29, 30, 79, 80]])
        0.1000 0.0100 0.0100 0.0010

    ``optax.piecewise_constant_schedule(base_lr, {milestone: gamma, ...})`` is the same
    where no milestone stands twice.
    """
    return _MultiStep(
        base_lr=learning_rate("multi_step_lr", "base_lr", base_lr),
        milestones=ascending("multi_step_lr", "milestones", milestones, strictly=False),
        gamma=number("multi_step_lr", "gamma", gamma),
        steps_per_epoch=whole_number(
            "multi_step_lr", "steps_per_epoch", steps_per_epoch
        ),
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class _MultiStep(Factor):
    milestones: tuple[int, ...]
    gamma: float = 0.1

    caller = "multi_step_lr"

    def product(self, epoch: Whole) -> Real:
        factors = np.power(self.gamma, np.arange(len(self.milestones) + 1.0))
        return lookup(factors, passed(self.milestones, epoch))


def exponential_lr(
    base_lr: float | jax.Array, gamma: float, *, steps_per_epoch: int = 1
) -> Schedule:
    r"""Multiply the learning rate by gamma after every epoch.

    .. math:: \eta_t = \eta_0\, \gamma^t

    Args:
        base_lr: The learning rate of the optimizer, ≥ 0.
        gamma: The factor.
        steps_per_epoch: Updates for each step of the scheduler.

    Returns:
        A schedule: the count of updates → the learning rate.

    Raises:
        TypeError: A number is no scalar, or one besides ``base_lr`` is traced.
        ValueError: A number is out of range.

    Example:
        >>> schedule = exponential_lr(0.1, gamma=0.5)
        >>> print(*[f"{schedule(count):.4f}" for count in range(4)])
        0.1000 0.0500 0.0250 0.0125

    Differs from ``optax.exponential_decay(base_lr, 1, gamma)`` in float32 at large
    counts, where that one raises the rounded gamma to the power: with a gamma of
    0.999999 it is 1.3% off after a million updates.
    """
    return _Exponential(
        base_lr=learning_rate("exponential_lr", "base_lr", base_lr),
        gamma=number("exponential_lr", "gamma", gamma),
        steps_per_epoch=whole_number(
            "exponential_lr", "steps_per_epoch", steps_per_epoch
        ),
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class _Exponential(Factor):
    gamma: float

    caller = "exponential_lr"

    def product(self, epoch: Whole) -> Real:
        return power(self.gamma, epoch)

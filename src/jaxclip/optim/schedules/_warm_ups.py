"""Factors that reach their end: ConstantLR, LinearLR and PolynomialLR."""

from dataclasses import dataclass

import jax

from jaxclip.optim.schedules._arguments import learning_rate, number, whole_number
from jaxclip.optim.schedules._arithmetic import Real, Whole, anneal, as_float, namespace
from jaxclip.optim.schedules._schedule import Factor, Schedule


def constant_lr(
    base_lr: float | jax.Array,
    factor: float = 1.0 / 3,
    total_iters: int = 5,
    *,
    steps_per_epoch: int = 1,
) -> Schedule:
    r"""Multiply the learning rate by a factor for the first ``total_iters`` epochs.

    .. math:: \eta_t = \begin{cases} \eta_0\, \text{factor} & t < \text{total\_iters} \\
              \eta_0 & t \geq \text{total\_iters} \end{cases}

    Args:
        base_lr: The learning rate of the optimizer, ≥ 0.
        factor: From 0 to 1.
        total_iters: How many epochs the factor is in force, ≥ 1.
        steps_per_epoch: Updates for each step of the scheduler. torch's usual loop
            steps it once an epoch; 1 steps it at every update.

    Returns:
        A schedule: the count of updates → the learning rate.

    Raises:
        TypeError: A number is no scalar, or one besides ``base_lr`` is traced.
        ValueError: A number is out of range.

    Example:
        >>> schedule = constant_lr(0.1, factor=0.5, total_iters=2)
        >>> print(*[f"{schedule(count):.2f}" for count in range(4)])
        0.05 0.05 0.10 0.10

    Differs from torch: a ``total_iters`` of 0 is refused, where torch keeps the factor
    for ever; with a factor of 0 the base learning rate follows, where torch divides
    by 0.
    """
    return _Constant(
        base_lr=learning_rate("constant_lr", "base_lr", base_lr),
        factor=number("constant_lr", "factor", factor, 0, 1),
        total_iters=whole_number("constant_lr", "total_iters", total_iters),
        steps_per_epoch=whole_number("constant_lr", "steps_per_epoch", steps_per_epoch),
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class _Constant(Factor):
    factor: float = 1.0 / 3
    total_iters: int = 5

    caller = "constant_lr"

    def product(self, epoch: Whole) -> Real:
        xp = namespace(epoch)
        return xp.where(epoch < self.total_iters, self.factor, 1.0)


def linear_lr(
    base_lr: float | jax.Array,
    start_factor: float = 1.0 / 3,
    end_factor: float = 1.0,
    total_iters: int = 5,
    *,
    steps_per_epoch: int = 1,
) -> Schedule:
    r"""Multiply the learning rate by a factor that changes linearly, and then stays.

    .. math:: \eta_t = \eta_0 \Big(s + (e - s)
              \frac{\min(t, \text{total\_iters})}{\text{total\_iters}}\Big)

    with the start factor :math:`s` and the end factor :math:`e`.

    Args:
        base_lr: The learning rate of the optimizer, ≥ 0.
        start_factor: The first factor, above 0 and at most 1.
        end_factor: The last factor, from 0 to 1.
        total_iters: How many epochs it takes to get there, ≥ 1.
        steps_per_epoch: Updates for each step of the scheduler.

    Returns:
        A schedule: the count of updates → the learning rate.

    Raises:
        TypeError: A number is no scalar, or one besides ``base_lr`` is traced.
        ValueError: A number is out of range.

    Example:
        >>> schedule = linear_lr(0.1, start_factor=0.5, total_iters=2)
        >>> print(*[f"{schedule(count):.3f}" for count in range(4)])
        0.050 0.075 0.100 0.100

    ``optax.linear_schedule(base_lr * start_factor, base_lr * end_factor, total_iters)``
    is the same. Differs from torch: a ``total_iters`` of 0 is refused, where torch
    keeps the start factor for ever.
    """
    if number("linear_lr", "start_factor", start_factor, 0, 1) == 0:
        raise ValueError(
            "linear_lr(start_factor=0): expected a number above 0, at most 1, as torch "
            "divides by it. A warm-up from 0 is lambda_lr(base_lr, lambda t: ...)."
        )
    return _Linear(
        base_lr=learning_rate("linear_lr", "base_lr", base_lr),
        start_factor=number("linear_lr", "start_factor", start_factor),
        end_factor=number("linear_lr", "end_factor", end_factor, 0, 1),
        total_iters=whole_number("linear_lr", "total_iters", total_iters),
        steps_per_epoch=whole_number("linear_lr", "steps_per_epoch", steps_per_epoch),
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class _Linear(Factor):
    start_factor: float = 1.0 / 3
    end_factor: float = 1.0
    total_iters: int = 5

    caller = "linear_lr"

    def product(self, epoch: Whole) -> Real:
        done = namespace(epoch).minimum(epoch, self.total_iters)
        return anneal(
            self.start_factor,
            self.end_factor,
            as_float(done) / self.total_iters,
            as_float(self.total_iters - done) / self.total_iters,
            "linear",
        )


def polynomial_lr(
    base_lr: float | jax.Array,
    total_iters: int = 5,
    power: float = 1.0,
    *,
    steps_per_epoch: int = 1,
) -> Schedule:
    r"""Let the learning rate fall to 0 along a power of the time left.

    .. math:: \eta_t = \eta_0 \Big(1 -
              \frac{\min(t, \text{total\_iters})}{\text{total\_iters}}
              \Big)^{\text{power}}

    Args:
        base_lr: The learning rate of the optimizer, ≥ 0.
        total_iters: The epoch at which it is 0, ≥ 1.
        power: The exponent, ≥ 0.
        steps_per_epoch: Updates for each step of the scheduler.

    Returns:
        A schedule: the count of updates → the learning rate.

    Raises:
        TypeError: A number is no scalar, or one besides ``base_lr`` is traced.
        ValueError: A number is out of range.

    Example:
        >>> schedule = polynomial_lr(1.0, total_iters=4, power=2.0)
        >>> print(*[f"{schedule(count):.4f}" for count in range(6)])
        1.0000 0.5625 0.2500 0.0625 0.0000 0.0000

    ``optax.polynomial_schedule(base_lr, 0.0, power, total_iters)`` is the same. Differs
    from torch: a ``total_iters`` of 0 is refused, where torch keeps the base learning
    rate for ever; so is a power below 0, with which torch divides by 0.
    """
    return _Polynomial(
        base_lr=learning_rate("polynomial_lr", "base_lr", base_lr),
        total_iters=whole_number("polynomial_lr", "total_iters", total_iters),
        power=number("polynomial_lr", "power", power, 0),
        steps_per_epoch=whole_number(
            "polynomial_lr", "steps_per_epoch", steps_per_epoch
        ),
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class _Polynomial(Factor):
    total_iters: int = 5
    power: float = 1.0

    caller = "polynomial_lr"

    def product(self, epoch: Whole) -> Real:
        left = namespace(epoch).maximum(self.total_iters - epoch, 0)
        return (as_float(left) / self.total_iters) ** self.power

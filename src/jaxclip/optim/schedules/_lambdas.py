"""Schedules of a user's own factors: LambdaLR and MultiplicativeLR."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxclip.optim.schedules._arguments import (
    function,
    horizon,
    learning_rate,
    whole_number,
)
from jaxclip.optim.schedules._arithmetic import Real, Whole
from jaxclip.optim.schedules._schedule import Factor, Schedule
from jaxclip.optim.schedules._table import Tabulated

Lambda = Callable[[Any], Any]


def lambda_lr(
    base_lr: float | jax.Array,
    lr_lambda: Lambda,
    *,
    total_iters: int | None = None,
    steps_per_epoch: int = 1,
) -> Schedule:
    r"""Multiply the base learning rate by a function of the epoch.

    .. math:: \eta_t = \eta_0\, \lambda(t)

    Args:
        base_lr: The learning rate of the optimizer, ≥ 0.
        lr_lambda: The function. Under ``jit`` it is given a traced integer.
        total_iters: With it the function is called on the host alone, with ints from 0
            up to this one, and may be any Python, such as what was written for torch.
            Past it the learning rate stays.
        steps_per_epoch: Updates for each step of the scheduler. torch's usual loop
            steps it once an epoch; 1 steps it at every update.

    Returns:
        A schedule: the count of updates → the learning rate.

    Raises:
        TypeError: ``lr_lambda`` is no function; when it is called: it cannot work with
            a traced integer.
        ValueError: A number is out of range.

    Example:
        >>> warm_up = lambda epoch: (epoch + 1) / 4 if epoch < 4 else 1.0
        >>> schedule = lambda_lr(0.1, warm_up, total_iters=4)
        >>> print(*[f"{schedule(count):.3f}" for count in range(6)])
        0.025 0.050 0.075 0.100 0.100 0.100

    Differs from ``optax.linear_schedule(0.0, base_lr, n)``, which a warm-up by
    ``(epoch + 1) / n`` is taken for: that one is a step behind.
    """
    return _Lambda(
        base_lr=learning_rate("lambda_lr", "base_lr", base_lr),
        lr_lambda=function("lambda_lr", "lr_lambda", lr_lambda),
        total_iters=horizon("lambda_lr", total_iters),
        steps_per_epoch=whole_number("lambda_lr", "steps_per_epoch", steps_per_epoch),
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class _Lambda(Schedule, Tabulated):
    base_lr: float | jax.Array
    lr_lambda: Lambda

    caller = "lambda_lr"

    def at(self, epoch: Whole) -> Real:
        if self.total_iters is None and isinstance(epoch, jax.Array):
            return self.base_lr * self._traced(epoch)
        return self.base_lr * self.tabulated(epoch, self.caller)

    def _traced(self, epoch: jax.Array) -> Any:
        try:
            return self.lr_lambda(epoch)
        except jax.errors.JAXTypeError as error:
            raise TypeError(
                f"lambda_lr: lr_lambda was given a traced integer and raised "
                f"{type(error).__name__}. Write it with jax.numpy (jnp.where for if), "
                "or say total_iters=..., and it is called with ints."
            ) from None

    def values(self, last: int) -> np.ndarray[Any, Any]:
        return np.array([float(self.lr_lambda(epoch)) for epoch in range(last + 1)])


def multiplicative_lr(
    base_lr: float | jax.Array,
    lr_lambda: Lambda,
    *,
    total_iters: int | None = None,
    steps_per_epoch: int = 1,
) -> Schedule:
    r"""Multiply the learning rate, at each step, by a function of the epoch.

    .. math:: \eta_t = \eta_0 \prod_{s=1}^{t} \lambda(s)

    As in torch, :math:`\lambda(0)` counts only within `sequential_lr`, past the first
    schedule.

    Args:
        base_lr: The learning rate of the optimizer, ≥ 0.
        lr_lambda: The function. It is called on the host, with ints.
        total_iters: How many factors to multiply out, in steps of the scheduler; past
            it the learning rate stays. Under ``jit`` it has to be said.
        steps_per_epoch: Updates for each step of the scheduler.

    Returns:
        A schedule: the count of updates → the learning rate.

    Raises:
        TypeError: ``lr_lambda`` is no function; when it is called: the count is traced
            and there is no ``total_iters``.
        ValueError: A number is out of range.

    Example:
        >>> slower = lambda epoch: 0.5 if epoch < 3 else 0.9
        >>> schedule = multiplicative_lr(1.0, slower, total_iters=100)
        >>> print(*[f"{schedule(count):.3f}" for count in range(5)])
        1.000 0.500 0.250 0.225 0.203
    """
    return _Multiplicative(
        base_lr=learning_rate("multiplicative_lr", "base_lr", base_lr),
        lr_lambda=function("multiplicative_lr", "lr_lambda", lr_lambda),
        total_iters=horizon("multiplicative_lr", total_iters),
        steps_per_epoch=whole_number(
            "multiplicative_lr", "steps_per_epoch", steps_per_epoch
        ),
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class _Multiplicative(Factor, Tabulated):
    lr_lambda: Lambda

    caller = "multiplicative_lr"

    def product(self, epoch: Whole) -> Real:
        return self.tabulated(epoch, self.caller)

    def values(self, last: int) -> np.ndarray[Any, Any]:
        factors = [float(self.lr_lambda(epoch)) for epoch in range(1, last + 1)]
        return np.cumprod([1.0, *factors])

    def next(self, epoch: int, lr: float) -> float:
        return lr * float(self.lr_lambda(epoch))

    def continued(self, lr: Real) -> Schedule:
        return _Multiplicative(
            base_lr=lr * float(self.lr_lambda(0)),
            lr_lambda=self.lr_lambda,
            total_iters=self.total_iters,
        )

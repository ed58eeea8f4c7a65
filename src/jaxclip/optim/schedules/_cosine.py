"""Half a cosine wave, once or again and again."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip.optim.schedules._arguments import learning_rate, number, whole_number
from jaxclip.optim.schedules._arithmetic import (
    Real,
    Whole,
    anneal,
    as_float,
    namespace,
    passed,
)
from jaxclip.optim.schedules._schedule import Schedule

_MOST = np.iinfo(np.int32).max


def cosine_annealing_lr(
    base_lr: float | jax.Array,
    T_max: int,
    eta_min: float = 0.0,
    *,
    steps_per_epoch: int = 1,
) -> Schedule:
    r"""Let the learning rate fall and rise along a cosine.

    .. math:: \eta_t = \eta_\text{min} + \frac{\eta_0 - \eta_\text{min}}{2}
              \Big(1 + \cos\frac{\pi t}{T_\text{max}}\Big)

    It is lowest at ``T_max``, and back at ``base_lr`` as many epochs later.

    Args:
        base_lr: The learning rate of the optimizer, ≥ 0.
        T_max: Epochs from the highest to the lowest learning rate, ≥ 1.
        eta_min: The lowest learning rate.
        steps_per_epoch: Updates for each step of the scheduler. torch's usual loop
            steps it once an epoch; 1 steps it at every update.

    Returns:
        A schedule: the count of updates → the learning rate.

    Raises:
        TypeError: A number is no scalar, or one besides ``base_lr`` is traced.
        ValueError: A number is out of range.

    Example:
        >>> schedule = cosine_annealing_lr(0.1, T_max=2)
        >>> print(*[f"{schedule(count):.2f}" for count in range(6)])
        0.10 0.05 0.00 0.05 0.10 0.05

    Differs from ``optax.cosine_decay_schedule``, which stays at the lowest learning
    rate past ``T_max``. torch makes each learning rate of the one before, and on the
    way up from a lowest one above 0 its rounding grows with ``T_max``: to 1e-12 of
    ``base_lr`` at 450 epochs, to 3e-11 at 5000.

    References:
        Loshchilov and Hutter, `SGDR: Stochastic Gradient Descent with Warm Restarts
        <https://arxiv.org/abs/1608.03983>`_, 2017.
    """
    return _CosineAnnealing(
        base_lr=learning_rate("cosine_annealing_lr", "base_lr", base_lr),
        T_max=whole_number("cosine_annealing_lr", "T_max", T_max),
        eta_min=number("cosine_annealing_lr", "eta_min", eta_min),
        steps_per_epoch=whole_number(
            "cosine_annealing_lr", "steps_per_epoch", steps_per_epoch
        ),
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class _CosineAnnealing(Schedule):
    base_lr: float | jax.Array
    T_max: int
    eta_min: float = 0.0

    caller = "cosine_annealing_lr"

    def at(self, epoch: Whole) -> Real:
        left = namespace(epoch).abs(self.T_max - epoch % (2 * self.T_max))
        return anneal(
            self.base_lr,
            self.eta_min,
            as_float(self.T_max - left) / self.T_max,
            as_float(left) / self.T_max,
            "cos",
        )

    def first(self, lr: float) -> float:
        return lr

    def next(self, epoch: int, lr: float) -> float:
        # torch's recursion, which leaves the lowest point by the base learning rate,
        # and so forgets there what other schedulers have made of it.
        assert not isinstance(self.base_lr, jax.Array)
        step = math.pi / self.T_max
        if (epoch - 1 - self.T_max) % (2 * self.T_max) == 0:
            return lr + (self.base_lr - self.eta_min) * (1 - math.cos(step)) / 2
        ratio = (1 + math.cos(step * epoch)) / (1 + math.cos(step * (epoch - 1)))
        return ratio * (lr - self.eta_min) + self.eta_min


def cosine_annealing_warm_restarts(
    base_lr: float | jax.Array,
    T_0: int,
    T_mult: int = 1,
    eta_min: float = 0.0,
    *,
    steps_per_epoch: int = 1,
) -> Schedule:
    r"""Let the learning rate fall along a cosine, and start again from the top.

    .. math:: \eta_t = \eta_\text{min} + \frac{\eta_0 - \eta_\text{min}}{2}
              \Big(1 + \cos\frac{\pi\, T_\text{cur}}{T_i}\Big)

    Period :math:`i` takes :math:`T_i = T_0\, T_\text{mult}^i` epochs, of which
    :math:`T_\text{cur}` have passed.

    Args:
        base_lr: The learning rate of the optimizer, ≥ 0.
        T_0: Epochs of the first period, ≥ 1.
        T_mult: How many times as long each period is as the one before, ≥ 1.
        eta_min: What the learning rate falls towards.
        steps_per_epoch: Updates for each step of the scheduler.

    Returns:
        A schedule: the count of updates → the learning rate.

    Raises:
        TypeError: A number is no scalar, or one besides ``base_lr`` is traced.
        ValueError: A number is out of range.

    Example:
        >>> schedule = cosine_annealing_warm_restarts(0.1, T_0=2, T_mult=2)
        >>> print(*[f"{schedule(count):.3f}" for count in range(8)])
        0.100 0.050 0.100 0.085 0.050 0.015 0.100 0.096

    ``optax.sgdr_schedule`` is the same for as many periods as it is given. Differs from
    torch's ``step(epoch)`` with a fraction of an epoch: the count is whole.

    References:
        Loshchilov and Hutter, `SGDR: Stochastic Gradient Descent with Warm Restarts
        <https://arxiv.org/abs/1608.03983>`_, 2017.
    """
    caller = "cosine_annealing_warm_restarts"
    return _WarmRestarts(
        base_lr=learning_rate(caller, "base_lr", base_lr),
        T_0=whole_number(caller, "T_0", T_0),
        T_mult=whole_number(caller, "T_mult", T_mult),
        eta_min=number(caller, "eta_min", eta_min),
        steps_per_epoch=whole_number(caller, "steps_per_epoch", steps_per_epoch),
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class _WarmRestarts(Schedule):
    base_lr: float | jax.Array
    T_0: int
    T_mult: int = 1
    eta_min: float = 0.0

    caller = "cosine_annealing_warm_restarts"

    def at(self, epoch: Whole) -> Real:
        current, period = self._place(epoch)
        return anneal(
            self.base_lr,
            self.eta_min,
            as_float(current) / as_float(period),
            as_float(period - current) / as_float(period),
            "cos",
        )

    def _place(self, epoch: Whole) -> tuple[Any, Any]:
        """Return the epochs since the last restart, and those of its period."""
        if self.T_mult == 1:
            return epoch % self.T_0, self.T_0
        starts, periods = [0], [self.T_0]
        while starts[-1] + periods[-1] <= _MOST:
            starts.append(starts[-1] + periods[-1])
            periods.append(min(periods[-1] * self.T_mult, _MOST))
        index = passed(tuple(starts[1:]), epoch)
        return epoch - _entry(starts, index), _entry(periods, index)


def _entry(whole: list[int], index: Whole) -> Whole:
    if isinstance(index, jax.Array):
        return jnp.array(whole, jnp.int32)[index]
    return np.array(whole)[index]

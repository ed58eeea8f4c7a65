"""The learning rate of stochastic weight averaging: SWALR."""

from dataclasses import dataclass, replace

import jax
import numpy as np

from jaxclip._core.arguments import check_choice
from jaxclip.optim.schedules._arguments import learning_rate, whole_number
from jaxclip.optim.schedules._arithmetic import (
    ANNEALS,
    Anneal,
    Real,
    Whole,
    anneal,
    as_float,
    namespace,
)
from jaxclip.optim.schedules._schedule import Schedule


def swa_lr(
    base_lr: float | jax.Array,
    swa_lr: float | jax.Array,
    anneal_epochs: int = 10,
    anneal_strategy: Anneal = "cos",
    *,
    steps_per_epoch: int = 1,
) -> Schedule:
    r"""Anneal the learning rate to that of stochastic weight averaging, and stay.

    .. math:: \eta_t = (1 - \alpha_t)\, \eta_0 + \alpha_t\, \eta_\text{swa}, \qquad
              \alpha_t = \frac{1 - \cos(\pi \tau)}{2} \text{ or } \tau, \quad
              \tau = \min\Big(1, \frac{t}{\text{anneal\_epochs}}\Big)

    It is torch's ``torch.optim.swa_utils.SWALR``. Past the first place within
    `sequential_lr` it starts from what the schedule before has reached.

    Args:
        base_lr: The learning rate to start from, ≥ 0.
        swa_lr: The learning rate to end at, ≥ 0.
        anneal_epochs: How many epochs it takes; with 0 it is there at once.
        anneal_strategy: "cos" or "linear".
        steps_per_epoch: Updates for each step of the scheduler. torch's usual loop
            steps it once an epoch; 1 steps it at every update.

    Returns:
        A schedule: the count of updates → the learning rate.

    Raises:
        TypeError: A number is no scalar, or one besides the learning rates is traced.
        ValueError: An argument is out of range.

    Example:
        >>> schedule = swa_lr(0.1, 0.02, anneal_epochs=4, anneal_strategy="linear")
        >>> print(*[f"{schedule(count):.2f}" for count in range(6)])
        0.10 0.08 0.06 0.04 0.02 0.02

    References:
        Izmailov et al., `Averaging Weights Leads to Wider Optima and Better
        Generalization <https://arxiv.org/abs/1803.05407>`_, 2018.
    """
    check_choice("swa_lr", "anneal_strategy", anneal_strategy, ANNEALS)
    return _SWA(
        base_lr=learning_rate("swa_lr", "base_lr", base_lr),
        swa_lr=learning_rate("swa_lr", "swa_lr", swa_lr),
        anneal_epochs=whole_number("swa_lr", "anneal_epochs", anneal_epochs, least=0),
        anneal_strategy=anneal_strategy,
        steps_per_epoch=whole_number("swa_lr", "steps_per_epoch", steps_per_epoch),
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class _SWA(Schedule):
    base_lr: float | jax.Array
    swa_lr: float | jax.Array
    anneal_epochs: int = 10
    anneal_strategy: Anneal = "cos"

    caller = "swa_lr"

    def at(self, epoch: Whole) -> Real:
        length = max(self.anneal_epochs, 1)
        # Without a way to go, torch is at the end of it from the first step on.
        passed = epoch if self.anneal_epochs else epoch + 1
        done = namespace(epoch).minimum(passed, length)
        return anneal(
            self.base_lr,
            self.swa_lr,
            as_float(done) / length,
            as_float(length - done) / length,
            self.anneal_strategy,
        )

    def first(self, lr: float) -> float:
        return float(replace(self, base_lr=lr).at(np.asarray(0)))

    def next(self, epoch: int, lr: float) -> float:
        # torch solves for the learning rate that would have led to this one.
        to_go = replace(self, base_lr=1.0, swa_lr=0.0)
        before, after = to_go.at(np.asarray([epoch - 1, epoch])).tolist()
        start = (lr - (1 - before) * self.swa_lr) / before if before else self.swa_lr
        return float((1 - after) * self.swa_lr + after * start)

    def continued(self, lr: Real) -> Schedule:
        return replace(self, base_lr=lr)

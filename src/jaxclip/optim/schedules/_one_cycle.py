"""One cycle for a whole run: OneCycleLR, its learning rate and its momentum."""

import abc
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxclip._core.arguments import check_choice
from jaxclip.optim.schedules._arguments import learning_rate, number, whole_number
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


def one_cycle_lr(
    max_lr: float | jax.Array,
    total_steps: int | None = None,
    *,
    epochs: int | None = None,
    steps_per_epoch: int | None = None,
    pct_start: float = 0.3,
    anneal_strategy: Anneal = "cos",
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    three_phase: bool = False,
) -> Schedule:
    r"""Raise the learning rate to ``max_lr``, and let it fall to next to nothing.

    .. math:: \frac{\eta_\text{max}}{\text{div}} \to \eta_\text{max} \to
              \frac{\eta_\text{max}}{\text{div} \cdot \text{final\_div}}

    The highest rate is reached at the count ``pct_start * total_steps - 1``, and the
    lowest at ``total_steps - 1``, the last update. In three phases the second, as long
    as the first, leads back to where it began, and the third to the lowest rate.

    Args:
        max_lr: The highest learning rate, ≥ 0.
        total_steps: Updates of the whole run, ≥ 1.
        epochs: With ``steps_per_epoch``, instead of ``total_steps``: their product.
        steps_per_epoch: Updates in an epoch. The schedule goes by updates, not by
            epochs, as in torch.
        pct_start: The part of the run in which the learning rate rises, from 0 to 1.
        anneal_strategy: "cos" or "linear".
        div_factor: The first learning rate is ``max_lr`` by this, > 0.
        final_div_factor: The last learning rate is the first by this, > 0.
        three_phase: Whether to fall as fast as it rose, before it falls to the last.

    Returns:
        A schedule: the count of updates → the learning rate. Past the count
        ``total_steps`` torch raises, and so does a call with such an int; a traced
        count gives the last learning rate.

    Raises:
        TypeError: A number is no scalar, or one besides ``max_lr`` is traced.
        ValueError: An argument is out of range, or the length of the run is missing or
            given twice.

    Example:
        >>> schedule = one_cycle_lr(0.1, total_steps=10, pct_start=0.5)
        >>> print(*[f"{schedule(count):.4f}" for count in range(10)])
        0.0040 0.0181 0.0520 0.0859 0.1000 0.0905 0.0655 0.0345 0.0095 0.0000

    Differs from ``optax.cosine_onecycle_schedule`` and
    ``optax.linear_onecycle_schedule`` from the count 1 on: their phases end a count
    later. The linear one also has three phases. Differs from torch, where
    ``cycle_momentum`` is the default and sets the momentum too: that is a schedule of
    its own, `one_cycle_momentum`.

    References:
        Smith and Topin, `Super-Convergence: Very Fast Training of Neural Networks
        Using Large Learning Rates <https://arxiv.org/abs/1708.07120>`_, 2018.
    """
    return _OneCycleLR(
        max_lr=learning_rate("one_cycle_lr", "max_lr", max_lr),
        div_factor=_divisor("div_factor", div_factor),
        final_div_factor=_divisor("final_div_factor", final_div_factor),
        **_checked(
            "one_cycle_lr",
            total_steps=total_steps,
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            pct_start=pct_start,
            anneal_strategy=anneal_strategy,
            three_phase=three_phase,
        ),
    )


def one_cycle_momentum(
    total_steps: int | None = None,
    *,
    epochs: int | None = None,
    steps_per_epoch: int | None = None,
    pct_start: float = 0.3,
    anneal_strategy: Anneal = "cos",
    base_momentum: float = 0.85,
    max_momentum: float = 0.95,
    three_phase: bool = False,
) -> Schedule:
    r"""Let the momentum fall and rise against the learning rate of `one_cycle_lr`.

    .. math:: \mu_\text{max} \to \mu_\text{base} \to \mu_\text{max}

    torch's OneCycleLR sets the ``momentum`` of an optimizer so, or its first beta,
    unless it is told not to. In a third phase it stays at its maximum.

    Args:
        total_steps: See `one_cycle_lr`, as for all that follow but the momenta.
        epochs: With ``steps_per_epoch``, instead of ``total_steps``.
        steps_per_epoch: Updates in an epoch.
        pct_start: The part of the run in which the momentum falls.
        anneal_strategy: "cos" or "linear".
        base_momentum: The momentum where the learning rate is highest.
        max_momentum: The momentum at both ends.
        three_phase: Whether the learning rate has three phases.

    Returns:
        A schedule: the count of updates → the momentum.

    Raises:
        TypeError: A number is no scalar, or is traced.
        ValueError: An argument is out of range, or the length of the run is missing or
            given twice.

    Example:
        >>> schedule = one_cycle_momentum(total_steps=10, pct_start=0.5)
        >>> print(*[f"{schedule(count):.3f}" for count in [0, 2, 4, 9]])
        0.950 0.900 0.850 0.950
    """
    return _OneCycleMomentum(
        base_momentum=number("one_cycle_momentum", "base_momentum", base_momentum),
        max_momentum=number("one_cycle_momentum", "max_momentum", max_momentum),
        **_checked(
            "one_cycle_momentum",
            total_steps=total_steps,
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            pct_start=pct_start,
            anneal_strategy=anneal_strategy,
            three_phase=three_phase,
        ),
    )


def _divisor(name: str, value: Any) -> float:
    known = number("one_cycle_lr", name, value, 0)
    if known == 0:
        raise ValueError(f"one_cycle_lr({name}=0): expected a number above 0.")
    return known


def _checked(caller: str, **cycle: Any) -> dict[str, Any]:
    """Return the arguments that say what the cycle is, checked."""
    check_choice(caller, "anneal_strategy", cycle["anneal_strategy"], ANNEALS)
    total_steps = _length(
        caller, cycle["total_steps"], cycle["epochs"], cycle["steps_per_epoch"]
    )
    pct_start = number(caller, "pct_start", cycle["pct_start"], 0, 1)
    if pct_start * total_steps == 1:
        raise ValueError(
            f"{caller}(pct_start={pct_start:g}): of {total_steps} steps that is one, "
            "from count 0 to count 0, and torch divides by the difference. Give the "
            "first phase two steps, or pct_start=0.0."
        )
    return {
        "total_steps": total_steps,
        "pct_start": pct_start,
        "anneal_strategy": cycle["anneal_strategy"],
        "three_phase": bool(cycle["three_phase"]),
    }


def _length(caller: str, total_steps: Any, epochs: Any, steps_per_epoch: Any) -> int:
    if total_steps is not None and epochs is None and steps_per_epoch is None:
        return whole_number(caller, "total_steps", total_steps)
    if total_steps is None and epochs is not None and steps_per_epoch is not None:
        return whole_number(
            caller,
            "epochs * steps_per_epoch",
            whole_number(caller, "epochs", epochs)
            * whole_number(caller, "steps_per_epoch", steps_per_epoch),
        )
    raise ValueError(
        f"{caller}(total_steps={total_steps}, epochs={epochs}, "
        f"steps_per_epoch={steps_per_epoch}): expected total_steps alone, or epochs "
        "and steps_per_epoch."
    )


class _Phase(NamedTuple):
    """A part of the cycle: counts up to ``end``, and the levels that it leads between.

    The levels are numbers of `_OneCycle.levels`.
    """

    start: float
    end: float
    start_level: int
    end_level: int


@dataclass(frozen=True, kw_only=True, repr=False)
class _OneCycle(Schedule):
    total_steps: int
    pct_start: float = 0.3
    anneal_strategy: Anneal = "cos"
    three_phase: bool = False

    @property
    @abc.abstractmethod
    def levels(self) -> tuple[Any, Any, Any]:
        """Return the values at the start, at the peak and at the end."""

    def at(self, epoch: Whole) -> Real:
        if not isinstance(epoch, jax.Array) and np.any(epoch > self.total_steps):
            raise ValueError(
                f"{self.caller}(total_steps={self.total_steps}): was called with a "
                f"count of {int(epoch.max())}, expected at most total_steps."
            )
        xp = namespace(epoch)
        *phases, last = self._phases()
        value = self._within(last, epoch)
        for phase in reversed(phases):
            inside = epoch <= math.floor(phase.end)
            value = xp.where(inside, self._within(phase, epoch), value)
        return xp.where(epoch > self.total_steps, self.levels[2], value)

    def _phases(self) -> list[_Phase]:
        peak = self.pct_start * self.total_steps - 1
        end = float(self.total_steps - 1)
        if not self.three_phase:
            return [_Phase(0.0, peak, 0, 1), _Phase(peak, end, 1, 2)]
        back = 2 * self.pct_start * self.total_steps - 2
        return [
            _Phase(0.0, peak, 0, 1),
            _Phase(peak, back, 1, 0),
            _Phase(back, end, 0, 2),
        ]

    def _within(self, phase: _Phase, epoch: Whole) -> Real:
        length = phase.end - phase.start
        if length == 0:
            return self.levels[phase.end_level]
        return anneal(
            self.levels[phase.start_level],
            self.levels[phase.end_level],
            _since(phase.start, epoch) / length,
            -_since(phase.end, epoch) / length,
            self.anneal_strategy,
        )


def _since(start: float, epoch: Whole) -> Real:
    """Return ``epoch - start``, of which the whole part is subtracted in integers."""
    whole = math.floor(start)
    return as_float(epoch - whole) - (start - whole)


@dataclass(frozen=True, kw_only=True, repr=False)
class _OneCycleLR(_OneCycle):
    max_lr: float | jax.Array
    div_factor: float = 25.0
    final_div_factor: float = 1e4

    caller = "one_cycle_lr"

    @property
    def levels(self) -> tuple[Any, Any, Any]:
        initial_lr = self.max_lr / self.div_factor
        return initial_lr, self.max_lr, initial_lr / self.final_div_factor


@dataclass(frozen=True, kw_only=True, repr=False)
class _OneCycleMomentum(_OneCycle):
    base_momentum: float = 0.85
    max_momentum: float = 0.95

    caller = "one_cycle_momentum"

    @property
    def levels(self) -> tuple[Any, Any, Any]:
        return self.max_momentum, self.base_momentum, self.max_momentum

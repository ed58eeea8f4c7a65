"""Triangular cycles: CyclicLR, its learning rate and its momentum."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import numpy as np

from jaxclip._core.arguments import check_choice
from jaxclip.optim.schedules._arguments import (
    function,
    learning_rate,
    number,
    whole_number,
)
from jaxclip.optim.schedules._arithmetic import Real, Whole, as_float, namespace, power
from jaxclip.optim.schedules._schedule import Schedule

Mode = Literal["triangular", "triangular2", "exp_range"]
ScaleMode = Literal["cycle", "iterations"]
ScaleFn = Callable[[Any], Any]


def cyclic_lr(
    base_lr: float | jax.Array,
    max_lr: float | jax.Array,
    step_size_up: int = 2000,
    step_size_down: int | None = None,
    *,
    mode: Mode = "triangular",
    gamma: float = 1.0,
    scale_fn: ScaleFn | None = None,
    scale_mode: ScaleMode = "cycle",
    steps_per_epoch: int = 1,
) -> Schedule:
    r"""Let the learning rate rise and fall between two bounds, again and again.

    .. math:: \eta_t = \eta_\text{base} + (\eta_\text{max} - \eta_\text{base})\,
              h_t\, s_t

    :math:`h_t` rises from 0 to 1 in ``step_size_up`` steps and falls back to 0 in
    ``step_size_down``. The scale :math:`s_t` in cycle :math:`c = 1, 2, \dots` is 1 for
    the mode "triangular", :math:`2^{1 - c}` for "triangular2", :math:`\gamma^t` for
    "exp_range".

    Args:
        base_lr: The lower bound, ≥ 0.
        max_lr: The upper bound, ≥ 0.
        step_size_up: Steps up, ≥ 1.
        step_size_down: Steps down, ≥ 0; None for as many as up.
        mode: How the cycles shrink. It does not count if there is a ``scale_fn``.
        gamma: What "exp_range" multiplies the scale by at each step.
        scale_fn: A scale of your own. Under ``jit`` it is given a traced integer.
        scale_mode: What ``scale_fn`` is a function of: the "cycle" (from 1), or the
            "iterations", the steps so far.
        steps_per_epoch: Updates for each step of the scheduler. torch's usual loop
            steps this one at every update, which is 1.

    Returns:
        A schedule: the count of updates → the learning rate.

    Raises:
        TypeError: An argument is of the wrong type, or one besides the learning rates
            is traced.
        ValueError: An argument is out of range.

    Example:
        >>> schedule = cyclic_lr(0.1, 0.5, step_size_up=2, mode="triangular2")
        >>> print(*[f"{schedule(count):.2f}" for count in range(9)])
        0.10 0.30 0.50 0.30 0.10 0.20 0.30 0.20 0.10

    Differs from torch, where ``cycle_momentum`` is the default and sets the momentum
    too: that is a schedule of its own, `cyclic_momentum`.

    References:
        Smith, `Cyclical Learning Rates for Training Neural Networks
        <https://arxiv.org/abs/1506.01186>`_, 2017.
    """
    return _CyclicLR(
        base_lr=learning_rate("cyclic_lr", "base_lr", base_lr),
        max_lr=learning_rate("cyclic_lr", "max_lr", max_lr),
        **_checked(
            "cyclic_lr",
            step_size_up=step_size_up,
            step_size_down=step_size_down,
            mode=mode,
            gamma=gamma,
            scale_fn=scale_fn,
            scale_mode=scale_mode,
            steps_per_epoch=steps_per_epoch,
        ),
    )


def cyclic_momentum(
    base_momentum: float = 0.8,
    max_momentum: float = 0.9,
    step_size_up: int = 2000,
    step_size_down: int | None = None,
    *,
    mode: Mode = "triangular",
    gamma: float = 1.0,
    scale_fn: ScaleFn | None = None,
    scale_mode: ScaleMode = "cycle",
    steps_per_epoch: int = 1,
) -> Schedule:
    r"""Let the momentum fall and rise against the learning rate of `cyclic_lr`.

    .. math:: \mu_t = \mu_\text{max} - (\mu_\text{max} - \mu_\text{base})\, h_t\, s_t

    torch's CyclicLR sets the ``momentum`` of an optimizer so, or its first beta, unless
    it is told not to. Give both schedules the same cycle.

    Args:
        base_momentum: The momentum where the learning rate is highest.
        max_momentum: The momentum where the learning rate is lowest.
        step_size_up: See `cyclic_lr`, as for all that follow.
        step_size_down: Steps down.
        mode: How the cycles shrink.
        gamma: What "exp_range" multiplies the scale by at each step.
        scale_fn: A scale of your own.
        scale_mode: What ``scale_fn`` is a function of.
        steps_per_epoch: Updates for each step of the scheduler.

    Returns:
        A schedule: the count of updates → the momentum.

    Raises:
        TypeError: An argument is of the wrong type, or is traced.
        ValueError: An argument is out of range.

    Example:
        >>> schedule = cyclic_momentum(0.8, 0.9, step_size_up=2)
        >>> print(*[f"{schedule(count):.2f}" for count in range(5)])
        0.90 0.85 0.80 0.85 0.90
    """
    return _CyclicMomentum(
        base_momentum=number("cyclic_momentum", "base_momentum", base_momentum),
        max_momentum=number("cyclic_momentum", "max_momentum", max_momentum),
        **_checked(
            "cyclic_momentum",
            step_size_up=step_size_up,
            step_size_down=step_size_down,
            mode=mode,
            gamma=gamma,
            scale_fn=scale_fn,
            scale_mode=scale_mode,
            steps_per_epoch=steps_per_epoch,
        ),
    )


def _checked(caller: str, **cycle: Any) -> dict[str, Any]:
    """Return the arguments that say what a cycle is, checked."""
    down, scale_fn = cycle["step_size_down"], cycle["scale_fn"]
    if scale_fn is None:
        check_choice(caller, "mode", cycle["mode"], get_args(Mode))
    else:
        function(caller, "scale_fn", scale_fn)
    check_choice(caller, "scale_mode", cycle["scale_mode"], get_args(ScaleMode))
    return cycle | {
        "step_size_up": whole_number(caller, "step_size_up", cycle["step_size_up"]),
        "step_size_down": None
        if down is None
        else whole_number(caller, "step_size_down", down, least=0),
        "gamma": number(caller, "gamma", cycle["gamma"]),
        "steps_per_epoch": whole_number(
            caller, "steps_per_epoch", cycle["steps_per_epoch"]
        ),
    }


@dataclass(frozen=True, kw_only=True, repr=False)
class _Cycle(Schedule):
    step_size_up: int = 2000
    step_size_down: int | None = None
    mode: Mode = "triangular"
    gamma: float = 1.0
    scale_fn: ScaleFn | None = None
    scale_mode: ScaleMode = "cycle"

    def height(self, epoch: Whole) -> Real:
        """Return how far up the cycle is, from 0 to 1, times its scale."""
        up = self.step_size_up
        down = up if self.step_size_down is None else self.step_size_down
        place = epoch % (up + down)
        rising = as_float(place) / up
        falling = as_float(up + down - place) / max(down, 1)
        height = namespace(epoch).where(place <= up, rising, falling)
        return height * self._scale(epoch, epoch // (up + down))

    def _scale(self, epoch: Whole, cycles: Whole) -> Real:
        """Return what the height is multiplied by; ``cycles`` are over."""
        if self.scale_fn is not None:
            given = cycles + 1 if self.scale_mode == "cycle" else epoch
            if isinstance(given, jax.Array):
                return self.scale_fn(given)
            values = [float(self.scale_fn(int(one))) for one in given.ravel()]
            return np.reshape(values, given.shape)
        match self.mode:
            case "triangular":
                return 1.0
            case "triangular2":
                return power(0.5, cycles)
            case "exp_range":
                return power(self.gamma, epoch)


@dataclass(frozen=True, kw_only=True, repr=False)
class _CyclicLR(_Cycle):
    base_lr: float | jax.Array
    max_lr: float | jax.Array

    caller = "cyclic_lr"

    def at(self, epoch: Whole) -> Real:
        return self.base_lr + (self.max_lr - self.base_lr) * self.height(epoch)


@dataclass(frozen=True, kw_only=True, repr=False)
class _CyclicMomentum(_Cycle):
    base_momentum: float = 0.8
    max_momentum: float = 0.9

    caller = "cyclic_momentum"

    def at(self, epoch: Whole) -> Real:
        span = self.max_momentum - self.base_momentum
        return self.max_momentum - span * self.height(epoch)

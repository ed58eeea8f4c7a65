"""torch's schedulers as the calls that make the same schedules."""

from collections.abc import Callable, Iterable
from typing import Any

from jaxclip.convert._errors import ConversionError
from jaxclip.convert._optimizers.checkpoint import Group
from jaxclip.convert._optimizers.expressions import Call, given
from jaxclip.optim import schedules


def schedule_call(
    scheduler: Any, index: int, group: Group, steps_per_epoch: int = 1
) -> Call:
    """Return the call that makes the learning rates of a parameter group.

    Args:
        scheduler: torch's scheduler.
        index: The number of the group.
        group: The group.
        steps_per_epoch: Updates for each step of the scheduler.

    Raises:
        ConversionError: If there is no such schedule.
    """
    name = _name(scheduler)
    per_epoch = {"steps_per_epoch": steps_per_epoch}
    if name in ("SequentialLR", "ChainedScheduler"):
        parts = [schedule_call(s, index, group) for s in scheduler._schedulers]
        if name == "ChainedScheduler":
            return _call("chained_scheduler", (parts,), per_epoch)
        return _call("sequential_lr", (parts, list(scheduler._milestones)), per_epoch)
    if name == "OneCycleLR":
        if steps_per_epoch != 1:
            raise ConversionError(
                [
                    "scheduler is a OneCycleLR, which goes by updates; steps_per_epoch "
                    f"is {steps_per_epoch}."
                ]
            )
        options = _one_cycle(scheduler) | _divisors(group)
        return _call("one_cycle_lr", (float(group["max_lr"]),), options)
    if name == "CyclicLR":
        ends = float(scheduler.base_lrs[index]), float(scheduler.max_lrs[index])
        return _call("cyclic_lr", ends, _cycle(scheduler) | per_epoch)
    function, attributes = _known(scheduler)
    options = {
        attribute: _plain(getattr(scheduler, attribute)) for attribute in attributes
    }
    base_lr = float(scheduler.base_lrs[index])
    return _call(function, (base_lr,), options | per_epoch)


def momentum_call(
    scheduler: Any, group: Group, steps_per_epoch: int = 1
) -> Call | None:
    """Return the call that makes the momenta of a group, if a scheduler sets them."""
    if any(getattr(part, "cycle_momentum", False) for part in _parts(scheduler)):
        raise ConversionError(
            [
                f"scheduler is a {_name(scheduler)} with a part that cycles the "
                "momentum, too, for which there is no schedule."
            ]
        )
    if not getattr(scheduler, "cycle_momentum", False):
        return None
    ends = {
        "base_momentum": float(group["base_momentum"]),
        "max_momentum": float(group["max_momentum"]),
    }
    if _name(scheduler) == "OneCycleLR":
        return _call("one_cycle_momentum", (), _one_cycle(scheduler) | ends)
    cycle = _cycle(scheduler) | {"steps_per_epoch": steps_per_epoch}
    return _call("cyclic_momentum", (), ends | cycle)


def is_plateau(scheduler: Any) -> bool:
    """Say whether a scheduler steps by a metric."""
    return _name(scheduler) == "ReduceLROnPlateau"


def plateau_call(optimizer: Any, scheduler: Any, steps_per_epoch: int) -> Call | None:
    """Return the call that makes what a ReduceLROnPlateau does, if it is one.

    Raises:
        ConversionError: If it scales other than all updates alike.
    """
    if not is_plateau(scheduler):
        return None
    kind = type(optimizer).__name__
    problems = []
    if kind in _NOT_PROPORTIONAL:
        problems.append(
            f"scheduler is a ReduceLROnPlateau, and the steps of {kind} are not "
            "proportional to the learning rate. There is no transformation for both."
        )
    rates = {float(group["lr"]) for group in optimizer.param_groups}
    if len(rates) > 1 or len({*scheduler.min_lrs}) > 1:
        problems.append(
            "scheduler is a ReduceLROnPlateau of groups with learning rates of their "
            "own; reduce_lr_on_plateau has one."
        )
    if problems:
        raise ConversionError(problems)
    names = ("mode", "factor", "patience", "threshold", "threshold_mode", "cooldown")
    options = {name: getattr(scheduler, name) for name in (*names, "eps")}
    options |= {"min_lr": scheduler.min_lrs[0], "steps_per_epoch": steps_per_epoch}
    return _call("reduce_lr_on_plateau", (rates.pop(),), options)


_NOT_PROPORTIONAL = {"Rprop", "ASGD", "Adafactor", "LBFGS"}
"""torch's optimizers whose steps do not grow with the learning rate in proportion."""

_SCHEDULERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "StepLR": ("step_lr", ("step_size", "gamma")),
    "MultiStepLR": ("multi_step_lr", ("milestones", "gamma")),
    "ConstantLR": ("constant_lr", ("factor", "total_iters")),
    "LinearLR": ("linear_lr", ("start_factor", "end_factor", "total_iters")),
    "ExponentialLR": ("exponential_lr", ("gamma",)),
    "PolynomialLR": ("polynomial_lr", ("total_iters", "power")),
    "CosineAnnealingLR": ("cosine_annealing_lr", ("T_max", "eta_min")),
    "CosineAnnealingWarmRestarts": (
        "cosine_annealing_warm_restarts",
        ("T_0", "T_mult", "eta_min"),
    ),
}
"""The schedule for each of torch's schedulers, and the attributes that it takes."""

_WITHOUT = {
    "LambdaLR": "calls functions of yours, which no code can be written for. Use "
    "schedules.lambda_lr with a function of JAX's",
    "MultiplicativeLR": "calls functions of yours, which no code can be written for. "
    "Use schedules.multiplicative_lr with a function of JAX's",
}
"""Why some of torch's have none, and what to use."""


def _parts(scheduler: Any) -> list[Any]:
    """Return the schedulers in a scheduler, and those in them."""
    own = list(getattr(scheduler, "_schedulers", ()))
    return [*own, *(inner for part in own for inner in _parts(part))]


def _known(scheduler: Any) -> tuple[str, tuple[str, ...]]:
    name = _name(scheduler)
    if name in _SCHEDULERS:
        return _SCHEDULERS[name]
    kind = type(scheduler)
    why = _WITHOUT.get(name, "is none of those that jaxclip.optim.schedules has")
    raise ConversionError(
        [f"scheduler is a {kind.__module__}.{kind.__qualname__}: it {why}."]
    )


def _name(scheduler: Any) -> str:
    """Return the name of a class of torch's; nothing for those that others derive."""
    kind = type(scheduler)
    return kind.__name__ if kind.__module__ == "torch.optim.lr_scheduler" else ""


def _one_cycle(scheduler: Any) -> dict[str, Any]:
    total = int(scheduler.total_steps)
    phases = scheduler._schedule_phases
    options: dict[str, Any] = {"total_steps": total}
    end = float(phases[0]["end_step"])
    if 0.3 * total - 1 != end:
        options["pct_start"] = _rounded(
            (end + 1) / total, lambda p: p * total - 1 == end
        )
    if scheduler._anneal_func_type != "cos":
        options["anneal_strategy"] = scheduler._anneal_func_type
    if len(phases) == 3:
        options["three_phase"] = True
    return options


def _divisors(group: Group) -> dict[str, float]:
    """Return by what a one-cycle schedule divides."""
    most, first, least = (float(group[k]) for k in ("max_lr", "initial_lr", "min_lr"))
    return {
        "div_factor": _divisor(most, first),
        "final_div_factor": _divisor(first, least),
    }


def _divisor(larger: float, smaller: float) -> float:
    return _rounded(larger / smaller, lambda divisor: larger / divisor == smaller)


def _cycle(scheduler: Any) -> dict[str, Any]:
    if scheduler._scale_fn_custom is not None:
        raise ConversionError(
            [
                "scheduler is a CyclicLR with a scale_fn of yours, which no code can "
                "be written for. Use schedules.cyclic_lr with a function of JAX's."
            ]
        )
    up = scheduler.total_size * scheduler.step_ratio
    down = scheduler.total_size - up
    return {
        "step_size_up": round(up),
        "step_size_down": None if up == down else round(down),
        "mode": scheduler.mode,
        "gamma": float(scheduler.gamma),
    }


def _rounded(number: float, fits: Callable[[float], bool]) -> float:
    """Return the number that was meant, which rounding may have changed since."""
    candidates: Iterable[float] = (float(f"{number:.{n}g}") for n in range(1, 16))
    return next(filter(fits, candidates), number)


def _plain(value: Any) -> Any:
    # MultiStepLR counts its milestones.
    return sorted(value.elements()) if hasattr(value, "elements") else value


def _call(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Call:
    function = getattr(schedules, name)
    return Call(f"schedules.{name}", function, arguments, given(function, options))

"""Check what a schedule is given."""

from collections.abc import Callable, Iterable
from typing import Any

import jax

from jaxclip._core.arguments import check_between, check_scalar, check_steps

# Twice this is still an int32.
MOST_STEPS = 2**30 - 1


def learning_rate(caller: str, name: str, value: Any) -> float | jax.Array:
    """Return a learning rate ≥ 0 as a float, or as it is while it is traced."""
    scalar = check_between(caller, name, value, 0, float("inf"))
    return scalar if isinstance(scalar, jax.core.Tracer) else float(scalar)


def number(
    caller: str,
    name: str,
    value: Any,
    low: float = float("-inf"),
    high: float = float("inf"),
) -> float:
    """Return a number from ``low`` to ``high`` that is known while Python runs."""
    _refuse_traced(caller, name, value, "a number")
    if (low, high) == (float("-inf"), float("inf")):
        return float(check_scalar(caller, name, value))
    return float(check_between(caller, name, value, low, high))


def whole_number(caller: str, name: str, value: Any, least: int = 1) -> int:
    """Return a number of steps that is known while Python runs."""
    _refuse_traced(caller, name, value, "an int")
    return int(check_steps(caller, name, value, least, MOST_STEPS))


def horizon(caller: str, value: Any) -> int | None:
    """Return how many steps to tabulate, if that is said."""
    return None if value is None else whole_number(caller, "total_iters", value)


def ascending(
    caller: str, name: str, values: Iterable[Any], *, strictly: bool
) -> tuple[int, ...]:
    """Return numbers of steps in their order."""
    steps = tuple(whole_number(caller, name, value, least=0) for value in values)
    ordered = tuple(sorted(set(steps) if strictly else steps))
    if strictly and (steps != ordered or 0 in steps):
        raise ValueError(
            f"{caller}({name}={list(steps)}): expected numbers of steps ≥ 1, each "
            "larger than the one before."
        )
    return ordered


def function(caller: str, name: str, value: Any) -> Callable[..., Any]:
    """Refuse what cannot be called."""
    if callable(value):
        return value  # type: ignore[no-any-return]
    hint = (
        " torch takes one for each parameter group; make one schedule for each."
        if isinstance(value, list | tuple)
        else ""
    )
    raise TypeError(
        f"{caller}({name}={value!r}): expected a function, got "
        f"{type(value).__name__}.{hint}"
    )


def _refuse_traced(caller: str, name: str, value: Any, expected: str) -> None:
    if isinstance(value, jax.core.Tracer):
        raise TypeError(
            f"{caller}({name}=...): was traced; expected {expected}. Only learning "
            "rates may be traced; with optax.inject_hyperparams, make the schedule "
            "outside and pass it in."
        )

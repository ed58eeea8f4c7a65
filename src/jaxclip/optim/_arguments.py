"""Check hyperparameters: the ranges are torch's."""

from collections.abc import Callable
from typing import Any

import jax

from jaxclip._core.arguments import Scalar, check_scalar

Schedule = Callable[[jax.Array], Scalar]
Hyperparameter = Scalar | Schedule
"""A number, a scalar array, or a schedule: a function of the count of updates."""

Pair = tuple[Hyperparameter, Hyperparameter]


def at_least(
    caller: str, name: str, value: Hyperparameter, least: float = 0.0
) -> Hyperparameter:
    """Refuse what is less than ``least``, or no real scalar, as far as it is known.

    Raises:
        TypeError: The value is no real scalar, and cannot be called.
        ValueError: It is too small, or NaN.
    """
    return _within(caller, name, value, lambda x: least <= x, f"a number ≥ {least:g}")


def at_most(
    caller: str, name: str, value: Hyperparameter, most: float = 0.0
) -> Hyperparameter:
    """Refuse what is more than ``most``, or no real scalar, as far as it is known.

    Raises:
        TypeError: The value is no real scalar, and cannot be called.
        ValueError: It is too large, or NaN.
    """
    return _within(caller, name, value, lambda x: x <= most, f"a number ≤ {most:g}")


def between(
    caller: str, name: str, value: Hyperparameter, low: float, high: float
) -> Hyperparameter:
    """Refuse what is not in [low, high], as far as it is known.

    Raises:
        TypeError: The value is no real scalar, and cannot be called.
        ValueError: It is out of range, or NaN.
    """
    return _within(
        caller,
        name,
        value,
        lambda x: low <= x <= high,
        f"a number from {low:g} to {high:g}",
    )


def inside(
    caller: str, name: str, value: Hyperparameter, low: float, high: float
) -> Hyperparameter:
    """Refuse what is not in (low, high), as far as it is known.

    Raises:
        TypeError: The value is no real scalar, and cannot be called.
        ValueError: It is out of range, or NaN.
    """
    return _within(
        caller,
        name,
        value,
        lambda x: low < x < high,
        f"{low:g} < a number" + (f" < {high:g}" if high < float("inf") else ""),
    )


def decay_rate(caller: str, name: str, value: Hyperparameter) -> Hyperparameter:
    """Refuse what is not in [0, 1), as far as it is known.

    Raises:
        TypeError: The value is no real scalar, and cannot be called.
        ValueError: It is out of range, or NaN.
    """
    return _within(
        caller, name, value, lambda x: 0 <= x < 1, "0 ≤ a number < 1, such as 0.9"
    )


def decay_rates(caller: str, betas: Any) -> dict[str, Hyperparameter]:
    """Return ``beta1`` and ``beta2``, both in [0, 1), as far as they are known.

    Raises:
        TypeError: One is no real scalar, and cannot be called.
        ValueError: One is out of range, or there are not two.
    """
    beta1, beta2 = pair(caller, "betas", betas, (0.9, 0.999))
    return {
        "beta1": decay_rate(caller, "betas[0]", beta1),
        "beta2": decay_rate(caller, "betas[1]", beta2),
    }


def pair(caller: str, name: str, values: Any, example: tuple[float, float]) -> Any:
    """Refuse what is not two values.

    Raises:
        ValueError: There are more, or fewer.
    """
    try:
        first, second = values
    except (TypeError, ValueError):
        raise ValueError(
            f"{caller}({name}={values!r}): expected two numbers, such as {example}."
        ) from None
    return first, second


def real(caller: str, name: str, value: Hyperparameter) -> Hyperparameter:
    """Refuse what is no real scalar.

    Raises:
        TypeError: The value is no real scalar, and cannot be called.
    """
    return _within(caller, name, value, lambda x: True, "a number")


def flag(caller: str, name: str, value: Any) -> bool:
    """Refuse what is neither True nor False: a flag decides what is compiled.

    Raises:
        TypeError: The value is no bool.
    """
    if not isinstance(value, bool):
        raise TypeError(
            f"{caller}({name}={value!r}): expected True or False, got "
            f"{type(value).__name__}."
        )
    return value


def _within(
    caller: str,
    name: str,
    value: Hyperparameter,
    allowed: Callable[[Any], bool],
    expected: str,
) -> Hyperparameter:
    def checked(value: Any) -> Scalar:
        scalar = check_scalar(caller, name, value)
        if not isinstance(scalar, jax.core.Tracer) and not allowed(scalar):
            raise ValueError(
                f"{caller}({name}={float(scalar):g}): expected {expected}."
            )
        return scalar

    if callable(value):
        schedule = value
        return lambda count: checked(schedule(count))
    return checked(value)

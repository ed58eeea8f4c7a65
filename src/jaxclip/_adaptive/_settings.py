"""Check the numbers that the methods are set by."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from jaxclip._thresholds import check_scalar

Settings = TypeVar("Settings")


def check_between(
    caller: str, name: str, value: Any, low: float, high: float
) -> float | jax.Array:
    """Refuse a scalar outside of ``[low, high]``, as far as its value is known.

    Args:
        caller: The public function that was called, for the error.
        name: The name of its argument.
        value: A number or a scalar array. A traced value is known by its shape alone.
        low: The least value allowed.
        high: The largest value allowed.

    Returns:
        What `check_scalar` returns.

    Raises:
        TypeError: The value is no real scalar.
        ValueError: The value is out of range or NaN.
    """
    scalar = check_scalar(caller, name, value)
    if not isinstance(scalar, jax.core.Tracer) and not low <= scalar <= high:
        raise ValueError(
            f"{caller}({name}={float(scalar):g}): expected a number from {low:g} to "
            f"{high:g}."
        )
    return scalar


def check_steps(caller: str, name: str, value: Any) -> float | jax.Array:
    """Refuse a number of steps that is below 1 or not whole."""
    scalar = check_scalar(caller, name, value)
    if isinstance(scalar, jax.core.Tracer) or (scalar >= 1 and scalar % 1 == 0):
        return scalar
    raise ValueError(
        f"{caller}({name}={value}): expected a whole number of steps, 1 or more."
    )


def check_choice(caller: str, name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Refuse what is none of the choices."""
    if value not in choices:
        raise ValueError(
            f"{caller}({name}={value!r}): expected one of "
            f"{', '.join(map(repr, choices))}."
        )


def in_dtype(settings: Settings, dtype: Any) -> Settings:
    """Return a tree of numbers as arrays of this dtype.

    ``optax.inject_hyperparams`` makes numbers into arrays of the parameters' dtype,
    which may be narrower or wider than the one that is reckoned in.
    """
    cast: Settings = jax.tree.map(lambda value: jnp.asarray(value, dtype), settings)
    return cast

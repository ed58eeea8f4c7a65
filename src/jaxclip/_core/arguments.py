"""Check the numbers that users give: thresholds and eps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Scalar = jax.Array | np.ndarray[Any, Any] | np.floating[Any] | np.integer[Any] | float


def check_threshold(caller: str, name: str, value: Any) -> float | jax.Array:
    """Refuse a threshold that is not a scalar ≥ 0, as far as its value is known.

    Args:
        caller: The public function that was called, for the error.
        name: The name of its argument.
        value: A number or a scalar array. A traced value is known by its shape alone.

    Returns:
        What `check_scalar` returns.

    Raises:
        TypeError: The value is no real scalar.
        ValueError: The value is negative or NaN.
    """
    scalar = check_scalar(caller, name, value)
    if not isinstance(scalar, jax.core.Tracer) and not float(scalar) >= 0:
        raise ValueError(
            f"{caller}({name}={float(scalar)}): expected a number ≥ 0. Use inf to "
            "leave gradients as they are, 0 to make them 0."
        )
    return scalar


def check_scalar(caller: str, name: str, value: Any) -> float | jax.Array:
    """Return a real scalar as a float, or as it is if it is a JAX array.

    Raises:
        TypeError: The value is no real scalar.
    """
    shape = np.shape(value) if hasattr(value, "shape") else ()
    if shape != ():
        raise TypeError(
            f"{caller}({name}=...): got an array of shape {shape}, expected a number "
            "or an array of shape ()."
        )
    if isinstance(value, jax.Array) and not jnp.iscomplexobj(value):
        return value
    try:
        if not isinstance(value, str):  # which float() would parse
            return float(value)
    except (TypeError, ValueError):
        pass
    raise TypeError(
        f"{caller}({name}={value!r}): expected a real number or a scalar array, got "
        f"{type(value).__name__}."
    )


def check_eps(caller: str, eps: Scalar) -> float | jax.Array:
    """Return eps as a float, or as it is while it is traced."""
    if isinstance(eps, jax.core.Tracer):
        return eps
    if not 0 <= float(eps) < float("inf"):
        raise ValueError(
            f"{caller}(eps={eps}): expected a finite number ≥ 0. torch's is 1e-6; "
            "with 0 the formula is min(1, max_norm / norm)."
        )
    return float(eps)


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


def check_steps(
    caller: str, name: str, value: Any, least: int = 1, most: Scalar = float("inf")
) -> float | jax.Array:
    """Refuse a number of steps that is not whole or out of range, if it is known."""
    scalar = check_scalar(caller, name, value)
    if isinstance(scalar, jax.core.Tracer) or isinstance(most, jax.core.Tracer):
        return scalar
    if not (least <= scalar <= most and scalar % 1 == 0):
        limits = f"{least} or more" if most == float("inf") else f"{least} to {most}"
        raise ValueError(
            f"{caller}({name}={value}): expected a whole number of steps, {limits}."
        )
    return scalar


def check_choice(caller: str, name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Refuse what is none of the choices."""
    if value not in choices:
        raise ValueError(
            f"{caller}({name}={value!r}): expected one of "
            f"{', '.join(map(repr, choices))}."
        )

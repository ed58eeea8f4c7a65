"""Check the numbers that users give: thresholds and eps."""

from typing import Any

import jax
import numpy as np

Scalar = jax.Array | np.ndarray[Any, Any] | np.floating[Any] | np.integer[Any] | float


def check_threshold(caller: str, name: str, value: Any) -> None:
    """Refuse a threshold that is not a scalar ≥ 0, as far as its value is known.

    Args:
        caller: The public function that was called, for the error.
        name: The name of its argument.
        value: A number or a scalar array. A traced value is known by its shape alone.

    Raises:
        TypeError: The value is no real scalar.
        ValueError: The value is negative or NaN.
    """
    given = np.shape(value) if hasattr(value, "shape") else ()
    if given != ():
        raise TypeError(
            f"{caller}({name}=...): got an array of shape {given}, expected a number "
            "or an array of shape ()."
        )
    if isinstance(value, jax.core.Tracer):
        return
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(
            f"{caller}({name}={value!r}): expected a real number or a scalar array, "
            f"got {type(value).__name__}."
        ) from None
    if not number >= 0:
        raise ValueError(
            f"{caller}({name}={number}): expected a number ≥ 0. Use inf to leave "
            "gradients as they are, 0 to make them 0."
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

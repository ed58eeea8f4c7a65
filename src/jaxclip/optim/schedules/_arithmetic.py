"""Arithmetic on counts that loses no digits, on the host and on the device.

A count is an int64 of NumPy or an array of them, computed with in float64 on the host,
or a JAX array, which may be traced. It stays an integer for as long as can be: floats
are made of remainders and differences alone, and of tables that the host computes in
float64.
"""

import math
from types import ModuleType
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

Whole = jax.Array | np.ndarray[Any, Any] | np.int64
Real = Any  # a float, or an array of NumPy's or JAX's

Anneal = Literal["cos", "linear"]
ANNEALS = get_args(Anneal)

_DIGIT_BITS = 11
_DIGITS = 3  # 33 bits, which is more than an int32 has


def float_dtype() -> Any:
    """Return the dtype of learning rates: float32, or float64 under x64."""
    return jnp.result_type(float)


def namespace(whole: Whole) -> ModuleType:
    """Return the module that computes with these integers, jax.numpy or numpy."""
    return jnp if isinstance(whole, jax.Array) else np


def as_float(whole: Whole | int) -> Real:
    """Return integers as floats: on the host in float64."""
    if isinstance(whole, int):
        return float(whole)
    return whole.astype(float_dtype() if isinstance(whole, jax.Array) else np.float64)


def lookup(table: np.ndarray[Any, Any], index: Whole) -> Real:
    """Return the entries of a table of float64; past its end, the last."""
    if isinstance(index, jax.Array):
        with np.errstate(over="ignore"):
            entries = table.astype(float_dtype())
        return jnp.take(jnp.asarray(entries), index, mode="clip")
    return np.take(table, index, mode="clip")


def passed(milestones: tuple[int, ...], whole: Whole) -> Whole:
    """Return how many of some ascending integers are at most these."""
    if isinstance(whole, jax.Array):
        bounds = jnp.array(milestones, whole.dtype)
        return jnp.searchsorted(bounds, whole, side="right", method="compare_all")
    return np.searchsorted(np.array(milestones, np.int64), whole, side="right")


def power(base: float, exponent: Whole) -> Real:
    """Return a known number to the power of integers ≥ 0.

    On the device it is a product of one entry of a table for each 11 bits of the
    exponent, so that three roundings are all. ``base ** n`` in float32 would take the
    rounding of the base, too, to its n-th power.
    """
    if not isinstance(exponent, jax.Array):
        return np.power(base, exponent.astype(np.float64))
    size = 1 << _DIGIT_BITS
    product: Real = 1.0
    for digit in range(_DIGITS):
        place = size**digit
        with np.errstate(over="ignore", under="ignore"):
            table = np.power(base, place * np.arange(size, dtype=np.float64))
        product = lookup(table, exponent // place % size) * product
    return product


def anneal(start: Real, end: Real, done: Real, left: Real, strategy: Anneal) -> Real:
    r"""Return a value on the way from ``start`` to ``end``.

    ``done`` and ``left`` are the parts of the way, in sum 1. The sum of two products
    keeps its digits at both ends, where ``start + (end - start) * done`` loses those
    of the smaller one, and :math:`\sin^2` where :math:`1 + \cos` loses its own.
    """
    if strategy == "cos":
        done, left = _half_wave(done), _half_wave(left)
    return start * left + end * done


def _half_wave(part: Real) -> Real:
    r"""Return :math:`(1 - \cos \pi x) / 2`."""
    xp = jnp if isinstance(part, jax.Array) else np
    return xp.square(xp.sin(math.pi / 2 * part))

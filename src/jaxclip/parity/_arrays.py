"""Arrays of any framework as NumPy arrays, and how far apart their elements are."""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxclip._arrays import to_numpy

Array = NDArray[Any]

ULP_DTYPES = tuple(map(np.dtype, ("float16", jnp.bfloat16, "float32", "float64")))


def as_array(leaf: Any, name: str) -> Array:
    """Read a NumPy, JAX or torch array or a Python number, its dtype kept.

    Raises:
        TypeError: If it is nothing of the kind; the error calls it `name`.
    """
    if isinstance(leaf, bool | int | float | complex):
        return np.asarray(leaf)
    try:
        array = to_numpy(leaf)
    except TypeError as error:
        raise TypeError(f"{name} {error}") from None
    if array.dtype != np.bool_ and not jnp.issubdtype(array.dtype, np.number):
        raise TypeError(f"{name} is an array of {array.dtype}, not of numbers.")
    return array


def ulp_distance(a: Any, b: Any) -> NDArray[np.uint64]:
    """Count the floats from each element of one array to that of another.

    Neighbouring floats are 1 apart. The zeros of both signs are one number, 0 apart,
    and the count goes through it from one sign to the other. Infinity follows the
    largest finite float. A NaN is 2**64 - 1 from everything, another NaN included; no
    two numbers are as far apart.

    Args:
        a: An array of float16, bfloat16, float32 or float64: NumPy, JAX or torch.
        b: An array of the same shape and dtype.

    Returns:
        The distances, in the shape of the arrays.

    Raises:
        TypeError: If the dtype is another; a complex array is two real ones.
        ValueError: If the arrays differ in shape or dtype.

    Example:
        >>> import numpy as np
        >>> from jaxclip.parity import ulp_distance
        >>> one = np.float32(1)
        >>> int(ulp_distance(one, np.nextafter(one, np.float32(2))))
        1
    """
    a, b = as_array(a, "a"), as_array(b, "b")
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        raise ValueError(
            f"a is {a.dtype} of shape {a.shape} and b is {b.dtype} of shape {b.shape}: "
            "ulps are counted between arrays of one shape and dtype"
        )
    if a.dtype not in ULP_DTYPES:
        raise TypeError(
            f"no ulps in {a.dtype}, only in {', '.join(map(str, ULP_DTYPES))}: "
            "take the real and the imaginary part of a complex array"
        )
    sign = 1 << (8 * a.itemsize - 1)
    bits = [x.view(f"u{x.itemsize}") for x in (a, b)]
    # But for the sign, the bits of a float count the floats from zero up to it.
    m, n = ((x & (sign - 1)).astype(np.uint64) for x in bits)
    opposite = ((bits[0] ^ bits[1]) & sign) != 0
    distance = np.where(opposite, m + n, np.maximum(m, n) - np.minimum(m, n))
    with np.errstate(invalid="ignore"):  # which a signalling NaN raises
        nan = np.isnan(a) | np.isnan(b)
    return np.where(nan, np.iinfo(np.uint64).max, distance)


def differences(yardstick: Array, other: Array) -> tuple[Array, Array]:
    """The absolute difference of each element, and that relative to the yardstick.

    Taken in float64. Equal elements and two NaNs differ by 0, a NaN from a number by
    infinity.
    """
    absolute = distances(yardstick, other)
    relative = np.zeros_like(absolute)
    np.divide(absolute, np.abs(widened(yardstick)), out=relative, where=absolute != 0)
    relative[np.isnan(relative)] = np.inf
    return absolute, relative


def distances(yardstick: Array, other: Array) -> Array:
    """The absolute difference of each element, as in ``differences``."""
    apart = np.asarray(np.abs(widened(other) - widened(yardstick)))
    if not np.isfinite(apart).all():
        nan = (yardstick != yardstick) & (other != other)
        apart[(yardstick == other) | nan] = 0.0
        apart[np.isnan(apart)] = np.inf
    return apart


PIECE = 2**13
"""How many elements fit the cache of a processor, with what is computed of them."""


def pieces(*arrays: Array) -> Iterator[tuple[Array, ...]]:
    """Yield the same part of each of some arrays of one shape, part after part, flat.

    A figure that is taken part by part takes no memory, and less time than a pass over
    the memory of a large array. Arrays may lie in any order, and are not copied whole.

    Example:
        >>> [len(part) for [part] in pieces(np.zeros((3, 5000)).T)]
        [8190, 6810]
    """
    first = arrays[0]
    if first.size <= PIECE:
        if first.size:
            yield tuple(array.reshape(-1) for array in arrays)
        return
    row = first.size // len(first)
    if row > PIECE:
        for rows in zip(*arrays, strict=True):
            yield from pieces(*rows)
        return
    several = PIECE // row
    for start in range(0, len(first), several):
        yield tuple(array[start : start + several].reshape(-1) for array in arrays)


def finite_elements(*arrays: Array) -> NDArray[np.bool_]:
    """Tell which elements are finite in all of some arrays of one shape; to read."""
    if all(np.isfinite(part).all() for array in arrays for [part] in pieces(array)):
        return np.broadcast_to(np.True_, arrays[0].shape)
    every: NDArray[np.bool_] = np.logical_and.reduce([*map(np.isfinite, arrays)])
    return every


def chosen(array: Array, mask: NDArray[np.bool_]) -> Array:
    """The elements that a mask is true for; the array itself where that is all."""
    return array if mask.all() else array[mask]


def unfilled(array: Any) -> Array:
    """An array of zeros of the shape and dtype of another, which takes no memory."""
    return np.broadcast_to(np.zeros((), array.dtype), array.shape)


def widened(array: Array) -> Array:
    """The array in float64, or in complex128 if it is complex."""
    wide = np.complex128 if np.iscomplexobj(array) else np.float64
    return array.astype(wide, copy=False)


def is_float(array: Array) -> bool:
    """Say whether an array is one of floats, those of ml_dtypes among them."""
    return bool(jnp.issubdtype(array.dtype, jnp.floating))

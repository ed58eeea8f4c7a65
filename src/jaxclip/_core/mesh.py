"""Where arrays lie on a mesh of devices, and scalars over all of its shards."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

AxisName = str | Sequence[str] | None


def check_axis_name(axis_name: AxisName) -> tuple[str, ...]:
    """Return the names of mesh axes as a tuple, which can be hashed."""
    if axis_name is None:
        return ()
    return (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)


def mesh_axes_of(leaf: jax.Array, axis_names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the mesh axes over which a leaf is sharded, here inside a mapped function.

    ``shard_map`` tracks them in the leaf's type. With ``check_vma=False``, and in
    ``pmap``, it does not, and the caller has to name them.
    """
    if varying := varying_axes(leaf):
        return tuple(sorted(varying))
    if axis_names and varying_axes(lax.axis_index(axis_names[0])):
        return ()  # Types are tracked here, and this one says: replicated.
    return axis_names


def varying_axes(array: jax.Array) -> frozenset[str]:
    """Return the mesh axes that an array's type says it varies over."""
    aval = jax.typeof(array)
    # jax < 0.10 calls it vma.
    varying: frozenset[str] = (
        aval.manual_axis_type.varying if hasattr(aval, "manual_axis_type") else aval.vma
    )
    return varying


def on_all_shards(condition: jax.Array, mesh_axes: tuple[str, ...]) -> jax.Array:
    """Whether a condition holds on every shard; the same boolean on each."""
    return smallest(condition.astype(jnp.int32), mesh_axes) == 1


def largest(value: jax.Array, mesh_axes: tuple[str, ...]) -> jax.Array:
    """Return the largest of the shards' values ≥ 0; NaN if one is."""
    axes = mesh_axes_of(value, mesh_axes)
    return _from_bits(lax.pmax(_to_bits(value), axes), value.dtype) if axes else value


def smallest(value: jax.Array, mesh_axes: tuple[str, ...]) -> jax.Array:
    """Return the smallest of the shards' values; of floats ≥ 0, NaN if one is."""
    axes = mesh_axes_of(value, mesh_axes)
    if not axes or jnp.issubdtype(value.dtype, jnp.integer):
        return lax.pmin(value, axes) if axes else value
    nans = lax.pmax(jnp.isnan(value).astype(jnp.int32), axes)
    return jnp.where(nans > 0, jnp.nan, lax.pmin(value, axes))


@jax.custom_jvp
def largest_element(array: jax.Array) -> jax.Array:
    """Return the largest of the elements ≥ 0, NaN if one is, and 0 if there is none.

    The largest of floats, taken over several devices, forgets a NaN that is not on the
    first. So NaN is looked for too, in the same pass.
    """
    zero = np.zeros((), array.dtype)
    largest, nan = lax.reduce(
        (array, jnp.isnan(array)),
        (zero, np.bool_(False)),
        lambda one, other: (
            lax.max(one[0], other[0]),
            lax.bitwise_or(one[1], other[1]),
        ),
        tuple(range(array.ndim)),
    )
    return jnp.where(nan, jnp.nan, largest)


@largest_element.defjvp
def _largest_element_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (array,), (tangent,) = primals, tangents
    largest = largest_element(array)
    share = (array == largest).astype(array.dtype)
    share = share / jnp.maximum(jnp.sum(share), 1.0)
    return largest, jnp.sum(share * tangent)


def smallest_coefficient(array: jax.Array) -> jax.Array:
    """Return the smallest of the elements and 1; NaN if one is."""
    nan = jnp.any(jnp.isnan(array))
    return jnp.where(nan, jnp.nan, jnp.min(array, initial=1.0))


def _to_bits(array: jax.Array) -> jax.Array:
    # The magnitude clears the sign of NaN.
    bits = jnp.int64 if array.dtype == jnp.float64 else jnp.int32
    return lax.bitcast_convert_type(jnp.abs(array), bits)


def _from_bits(bits: jax.Array, dtype: Any) -> jax.Array:
    return lax.bitcast_convert_type(bits, dtype)


def within(axes: tuple[str, ...], array: jax.Array) -> tuple[str, ...]:
    """Return those mesh axes over which an array varies, where types say that."""
    if not axes or not types_are_tracked(axes[0]):
        return axes
    return tuple(axis for axis in axes if axis in varying_axes(array))


def types_are_tracked(axis: str) -> bool:
    """Whether types say over which mesh axes an array varies, as in ``shard_map``."""
    return bool(varying_axes(lax.axis_index(axis)))

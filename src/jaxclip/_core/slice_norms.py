"""Norms of slices of arrays: of any float dtype and magnitude, whole or in shards."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxclip._core.exact_norms import TreeNorm
from jaxclip._core.mesh import on_all_shards, within
from jaxclip._core.sums import magnitudes_in, root_of


class Sliced(NamedTuple):
    """An array, and the slices of it that have a norm each.

    Attributes:
        array: A real or complex array.
        axes: The axes of the array over which squares are summed.
        mesh_axes: The mesh axes over which those axes are sharded.
    """

    array: jax.Array
    axes: tuple[int, ...]
    mesh_axes: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """The number of elements in one slice, on all shards."""
        lengths = [self.array.shape[axis] for axis in self.axes]
        return math.prod(lengths) * math.prod(map(lax.axis_size, self.mesh_axes))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the norms: that of the array, with 1 for each summed axis."""
        return tuple(
            1 if axis in self.axes else length
            for axis, length in enumerate(self.array.shape)
        )

    def sums(self, dtype: Any, factor: jax.Array | None = None) -> jax.Array:
        """Sum the squares of each slice's elements, each multiplied by a factor."""
        magnitudes = magnitudes_in(self.array, dtype)
        if factor is not None:
            magnitudes = magnitudes * factor.reshape(self.shape)
        total = jnp.sum(magnitudes * magnitudes, self.axes, keepdims=True)
        # A replicated array counts once, where types say that it is replicated.
        axes = within(self.mesh_axes, total)
        return lax.psum(total, axes) if axes else total


def slice_norms(
    groups: Sequence[Sequence[Sliced]],
    dtype: Any,
    *,
    mesh_axes: tuple[str, ...] = (),
    negligible: jax.Array | float = 0.0,
) -> list[TreeNorm]:
    """Return the 2-norm of each slice; one pass where no sum of squares is extreme.

    Args:
        groups: Arrays whose slices belong together: within a group all arrays have
            as many slices, and each slice of the first has a joint norm with the same
            slices of the others. No group is empty.
        dtype: float32 or float64, to sum in.
        mesh_axes: The mesh axes over which anything here is sharded whose type does
            not say so.
        negligible: Norms up to this one may come back as 0; see `group_norms`.

    Returns:
        For each group its norms, in the ``shape`` of its first member.
    """
    sums = [_joint_sums(group, dtype) for group in groups]
    if not sums:
        return []
    info = jnp.finfo(dtype)
    underflows = []
    for group, total in zip(groups, sums, strict=True):
        # Squares below `tiny` are lost; that shows in no sum above `low`.
        size = max(sum(sliced.size for sliced in group), 1)
        low = size * (float(info.tiny) / float(info.eps))
        at_low = jnp.asarray(np.sqrt(2 * low), dtype)
        underflows.append((total < jnp.asarray(low, dtype)) & (at_low > negligible))
    trusted = ~jnp.any(
        jnp.stack(
            [
                jnp.any(low | (total == jnp.inf))
                for low, total in zip(underflows, sums, strict=True)
            ]
        )
    )
    # Shards sum together on either path, and so have to take the same one.
    trusted = on_all_shards(trusted, mesh_axes)

    def scaled() -> list[TreeNorm]:
        # The squares of numbers near these two fit into the range of the dtype.
        large = 2.0 ** (info.maxexp * 5 // 8)
        norms = []
        for group, total, low in zip(groups, sums, underflows, strict=True):
            scale = jnp.where(low, 1 / large, jnp.where(total < jnp.inf, 1.0, large))
            ratio = root_of(_joint_sums(group, dtype, 1.0 / scale), 2.0)
            norms.append(TreeNorm(scale.astype(dtype), ratio))
        return norms

    # What the conditional returns XLA computes once. It would merge scales that depend
    # on all the leaves into what is done to each, and compile for minutes.
    norms: list[TreeNorm] = lax.cond(
        trusted,
        lambda: [TreeNorm(jnp.ones_like(s), root_of(s, 2.0)) for s in sums],
        scaled,
    )
    return norms


def _joint_sums(
    group: Sequence[Sliced], dtype: Any, factor: jax.Array | None = None
) -> jax.Array:
    total = jnp.zeros(group[0].shape, dtype)
    for sliced in group:
        total = total + sliced.sums(dtype, factor).reshape(total.shape)
    return total

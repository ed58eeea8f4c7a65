"""Norms of trees: any float dtype, any magnitude, any sharding."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxclip._core.arguments import Scalar
from jaxclip._core.dispatch import call_compiled
from jaxclip._core.exact_norms import TreeNorm, exact_norms, scaled_norms
from jaxclip._core.leaves import split_leaves
from jaxclip._core.mesh import AxisName, check_axis_name
from jaxclip._core.sums import Groups, base_of, power_of, root_of


def global_norm(
    tree: Any, norm_type: Scalar = 2.0, *, axis_name: AxisName = None
) -> jax.Array:
    r"""Return the p-norm of all elements of a tree, as if they were one vector.

    .. math:: \|x\|_p = \Big(\sum_i |x_i|^p\Big)^{1/p},
              \qquad \|x\|_\infty = \max_i |x_i|

    Powers are summed in at least float32, across leaves too. Where that sum
    overflows, or where its terms underflow, it is taken again in float64 or of scaled
    elements, so that the norm of finite elements is right whenever its dtype can hold
    it.

    Args:
        tree: A tree of real or complex arrays of any shape. ``None``,
            ``optax.MaskedNode`` and ``float0`` leaves have no elements.
        norm_type: p, a positive number or inf.
        axis_name: Inside ``shard_map(..., check_vma=False)`` and ``pmap``: the mesh
            axes over which every leaf is sharded. Not needed elsewhere: ``jit`` and
            ``shard_map`` know how each leaf is laid out, and a replicated leaf
            counts once.

    Returns:
        The norm, a scalar: float64 if a leaf is float64 or complex128, otherwise
        float32. 0 for a tree without elements.

    Raises:
        TypeError: A leaf is an integer, a boolean or no array; the error names it.
        ValueError: ``norm_type`` is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> global_norm({"w": jnp.array([3.0, 0.0]), "b": jnp.array(4.0)})
        Array(5., dtype=float32)
        >>> float(global_norm([jnp.ones(4, jnp.bfloat16)] * 400))
        40.0
        >>> global_norm(jnp.array([3e30, 4e30]))
        Array(5.e+30, dtype=float32)

    Differs from ``optax.tree.norm``, which sums in the dtype of the leaves, and
    overflows and underflows with the squares. Differs from
    ``torch.nn.utils.get_total_norm`` in the same two ways, and by refusing a norm
    type that bounds nothing.

    References:
        Blue, `A Portable Fortran Program to Find the Euclidean Norm of a Vector
        <https://doi.org/10.1145/355769.355771>`_, 1978.
    """
    leaves, _ = split_leaves(tree, "global_norm")
    norm: jax.Array = call_compiled(
        _norm_value,
        leaves,
        norm_type=check_norm_type(norm_type, "global_norm"),
        axis_names=check_axis_name(axis_name),
    )
    return norm


def _norm_value(leaves: Sequence[jax.Array], **options: Any) -> jax.Array:
    return tree_norm(leaves, **options).value


def tree_norm(
    leaves: Sequence[jax.Array],
    *,
    norm_type: float | jax.Array,
    axis_names: tuple[str, ...] = (),
) -> TreeNorm:
    """Return the norm of all the leaves together, as scalars; see `group_norms`."""
    norms = group_norms([leaves], norm_type=norm_type, axis_names=axis_names)
    return TreeNorm(norms.scale[0], norms.ratio[0])


def group_norms(
    groups: Sequence[Sequence[jax.Array]],
    *,
    norm_type: float | jax.Array,
    axis_names: tuple[str, ...] = (),
    negligible: Scalar = 0.0,
) -> TreeNorm:
    """Return the norm of each group of leaves, in arrays of (groups,).

    Args:
        groups: Groups of inexact arrays; a group may be empty.
        norm_type: p, positive or inf; may be traced.
        axis_names: The mesh axes over which leaves are sharded whose type does not
            say so.
        negligible: Norms up to this one may come back as 0 where that saves a pass
            over the leaves: by its sum of squares, a leaf of zeros cannot be told
            from one that underflows.
    """
    table = Groups.of(groups, axis_names)
    if not isinstance(norm_type, jax.core.Tracer):
        return _norms(table, float(norm_type), negligible)
    return _norms_of_traced_power(table, norm_type.astype(table.dtype), negligible)


def joint_norm(norms: TreeNorm, norm_type: float | jax.Array = 2.0) -> TreeNorm:
    """Return the norm of all the groups together, given those of each."""
    scale = jnp.max(norms.scale, initial=0.0)
    shares = norms.ratio * (norms.scale / jnp.where(scale > 0, scale, 1.0))
    return TreeNorm(scale, tree_norm([shares], norm_type=norm_type).value)


def check_norm_type(norm_type: Scalar, caller: str) -> float | jax.Array:
    """Return a norm type as a float, or as it is while it is traced."""
    if isinstance(norm_type, jax.core.Tracer):
        return norm_type
    power = float(norm_type)
    if not power > 0:
        raise ValueError(
            f"{caller}(norm_type={norm_type}): expected a positive number or inf. "
            "torch accepts 0, which counts the elements that are not 0, and negative "
            "numbers, for which one small element makes the norm small; neither "
            "bounds the length of a step. Use 2.0, 1.0 or float('inf')."
        )
    return power


def _norms(groups: Groups, power: float, negligible: Scalar) -> TreeNorm:
    if power == math.inf:
        return TreeNorm(jnp.ones((groups.count,), groups.dtype), groups.largest())
    if power not in (1.0, 2.0):
        return exact_norms(groups, power)

    sums = groups.sums(
        lambda leaf, _: power_of(base_of(leaf, power, groups.dtype), power)
    )
    info = jnp.finfo(groups.dtype)
    # Terms below `tiny` are lost; that shows in no sum above `low`.
    low = np.maximum(groups.sizes(), 1) * (float(info.tiny) / float(info.eps))
    low, at_low = (
        jnp.asarray(x, groups.dtype) for x in (low, (2 * low) ** (1 / power))
    )
    underflows = (sums < low) & (at_low > negligible)
    trusted = ~jnp.any(underflows | (sums == jnp.inf))
    norms: TreeNorm = lax.cond(
        trusted,
        lambda: TreeNorm(jnp.ones_like(sums), root_of(sums, power)),
        lambda: exact_norms(groups, power),
    )
    return norms


def _norms_of_traced_power(
    groups: Groups, power: jax.Array, negligible: Scalar
) -> TreeNorm:
    power = lax.stop_gradient(power)
    unknown = jnp.full((groups.count,), jnp.nan, groups.dtype)
    # The first condition that holds.
    branches = [
        (power == 2.0, lambda: _norms(groups, 2.0, negligible)),
        (power == jnp.inf, lambda: _norms(groups, math.inf, negligible)),
        (power > 0.0, lambda: scaled_norms(groups, power)),
        (True, lambda: TreeNorm(unknown, unknown)),
    ]
    conditions, functions = zip(*branches, strict=True)
    norms: TreeNorm = lax.switch(jnp.argmax(jnp.stack(conditions)), functions)
    return norms

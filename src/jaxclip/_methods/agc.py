"""AGC: clip each unit of a layer by the ratio of its gradient to its weights."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from jaxclip._core.arguments import Scalar, check_eps
from jaxclip._core.leaves import accumulation_dtype
from jaxclip._core.mesh import (
    largest,
    largest_element,
    on_all_shards,
    smallest,
    smallest_coefficient,
    varying_axes,
)
from jaxclip._core.nonfinite import Nonfinite
from jaxclip._core.paths import (
    Where,
    inexact_leaves_with_path,
    leaf_labels,
    matching_params,
)
from jaxclip._core.scaling import Clipped, clip_factors, reread, scale_leaf
from jaxclip._core.slice_norms import Sliced, slice_norms
from jaxclip._core.transformation import Threshold, checked_threshold, transformation
from jaxclip._monitoring import ClipState, init_clip_state, record_clip

_CALLER = "adaptive_grad_clip"

Axes = str | int | Sequence[int]


def adaptive_grad_clip(
    clipping: Threshold = 0.01,
    *,
    eps: Scalar = 1e-3,
    axis: Axes | Callable[[str, tuple[int, ...]], Axes] = "flax",
    where: Where | None = None,
    nonfinite: Nonfinite = "propagate",
    specs: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Bound the gradient of each unit by a fraction of the norm of its weights: AGC.

    .. math:: g_i \leftarrow \min\Big(1, \text{clipping}\,
              \frac{\max(\|w_i\|, \text{eps})}{\|g_i\|}\Big)\, g_i

    for each unit i of a layer: what feeds one of its outputs. A leaf of rank 0 or 1,
    such as a bias, is one unit. In a kernel the output's is the last axis in Flax and
    the first in torch, and the norms are over all the others, whatever its rank: for
    a Conv1D kernel of Flax, (width, in, out), over width and in.

    Rules by rank know nothing of layers. Where several axes belong to the output, as
    in the kernels of Flax's attention, (in, heads, features), or the units are rows,
    as in an embedding of either framework, (tokens, features), let a function say so.

    Args:
        clipping: The largest norm of a unit's gradient, as a fraction of the norm of
            its weights; ≥ 0: a number, a scalar array, or a schedule.
        eps: The least norm that weights are taken to have, ≥ 0, so that those that
            start at 0 can leave it.
        axis: The axes that norms are summed over: ``"flax"``, all but the last, or
            ``"torch"``, all but the first, both for ranks 2 and more; an integer or
            several; or a function of a leaf's path and shape that returns any of
            these, such as ``lambda path, shape: 0 if "query" in path else "flax"``.
        where: The leaves to clip: a tree of booleans, a prefix of one, or a function
            that returns one given the updates; `by_path` makes such a function of one
            of paths. The others pass as they are. The paper leaves out the last
            layer: ``where=by_path(lambda path: not path.startswith("head"))``.
        nonfinite: See `clip_by_global_norm`.
        specs: Inside ``shard_map``: the ``PartitionSpec`` of each leaf, or a prefix,
            as it was given there. Types say over which axes of the mesh a leaf is
            sharded, but not which of its own. Not needed under ``jit``.

    Returns:
        A transformation whose ``update`` needs the parameters. Its state is a
        `ClipState`: the norms are the largest ratio ‖g‖ / max(‖w‖, eps) of any unit,
        which ``clipping`` bounds, and the coefficient is the smallest. In
        ``optax.inject_hyperparams`` name ``axis`` among the ``static_args`` if it is
        a function or an integer, and ``where`` if it is a function.

    Raises:
        TypeError: ``clipping`` is no scalar; in ``update``: a leaf is no inexact
            array.
        ValueError: An argument is out of range; in ``update``: the parameters are
            missing or of other shapes, or ``axis`` does not fit a leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> clip = adaptive_grad_clip(0.5)
        >>> params = {"kernel": jnp.array([[0.0, 3.0], [4.0, 4.0]])}
        >>> grads = {"kernel": jnp.array([[8.0, 1.0], [0.0, 1.0]])}
        >>> updates, state = clip.update(grads, clip.init(params), params)
        >>> print(updates["kernel"], state.clip_coef, state.total_norm)
        [[2. 1.]
         [0. 1.]] 0.25 2.0

    Differs from ``optax.adaptive_grad_clip``: ``clipping`` has a default; rank 3
    leaves all axes but the last to the norm, where Optax sums over axis 0 alone (its
    docstring says 0, 1 and 2); a leaf of shape (1, n) has n units, not one; every
    rank has a rule. Differs from timm, with ``axis="torch"``, in nothing that its
    gradients can show, and from pytorch_optimizer in rank 3, where that sums over
    axis 1 alone. Differs from all three: norms of units are in at least float32 and
    neither overflow nor underflow, and norms below 1e-6 are not taken for 1e-6.

    References:
        Brock et al., `High-Performance Large-Scale Image Recognition Without
        Normalization <https://arxiv.org/abs/2102.06171>`_, 2021.
    """

    def extras(
        updates: optax.Updates, params: optax.Params | None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        named = inexact_leaves_with_path(updates)
        axes = tuple(_summed_axes(axis, path, leaf.shape) for path, leaf in named)
        mesh_axes = tuple(_mesh_axes_by_dimension(specs, updates))
        weights = matching_params(params, updates, _CALLER)
        return (weights,), {"axes": axes, "mesh_axes": mesh_axes}

    return transformation(
        _CALLER,
        init_clip_state,
        _clip_units,
        checked_threshold(_CALLER, "clipping", clipping),
        extras=extras,
        where=where,
        nonfinite=nonfinite,
        eps=check_eps(_CALLER, eps),
    )


def _summed_axes(
    axis: Axes | Callable[[str, tuple[int, ...]], Axes],
    path: str,
    shape: tuple[int, ...],
) -> tuple[int, ...]:
    """Return the axes, ≥ 0, over which the norm of each unit is summed."""
    given = axis(path, shape) if callable(axis) else axis
    rank = len(shape)
    if given in ("flax", "torch"):
        if rank <= 1:
            return tuple(range(rank))
        return tuple(range(rank - 1) if given == "flax" else range(1, rank))
    axes: Any = (given,) if isinstance(given, int) else given
    if isinstance(axes, str) or not isinstance(axes, Sequence):
        raise ValueError(
            f"{_CALLER}(axis={given!r}): expected 'flax', 'torch', an integer, "
            "several, or a function of a path and a shape that returns one of these."
        )
    if not all(-rank <= each < rank for each in axes):
        raise ValueError(
            f"{_CALLER}(axis={given!r}): the leaf {path!r} of shape {shape} has no "
            "such axis. Give a function of path and shape, or leave it out by where."
        )
    return tuple(sorted({each % rank for each in axes}))


def _mesh_axes_by_dimension(
    specs: Any, updates: optax.Updates
) -> list[tuple[tuple[str, ...], ...]]:
    """Return the mesh axes that each axis of each leaf is sharded over."""
    named = inexact_leaves_with_path(updates)
    if specs is None:
        for path, leaf in named:
            if varying := sorted(varying_axes(leaf)):
                raise ValueError(
                    f"{_CALLER}: the leaf {path!r} is sharded over the mesh axes "
                    f"{varying}. Pass specs=, the PartitionSpecs that shard_map was "
                    "given for it, to say which of its own axes that are."
                )
        return [((),) * len(leaf.shape) for _, leaf in named]
    return [
        _by_dimension(spec, len(leaf.shape))
        for leaf, spec in zip(
            jax.tree.leaves(updates),
            leaf_labels(specs, updates, _CALLER, "specs"),
            strict=True,
        )
        if getattr(leaf, "dtype", None) != jax.dtypes.float0
    ]


def _by_dimension(spec: PartitionSpec, rank: int) -> tuple[tuple[str, ...], ...]:
    names = [
        () if name is None else (name,) if isinstance(name, str) else tuple(name)
        for name in spec
    ]
    return tuple(names + [()] * (rank - len(names)))


def _clip_units(
    leaves: Sequence[jax.Array],
    clipping: Scalar,
    state: ClipState,
    params: Sequence[jax.Array],
    *,
    axes: tuple[tuple[int, ...], ...],
    mesh_axes: tuple[tuple[tuple[str, ...], ...], ...],
    eps: float | jax.Array,
) -> tuple[Clipped, ClipState]:
    dtype = accumulation_dtype([*leaves, *params])
    clipping, least = jnp.asarray(clipping, dtype), jnp.asarray(eps, dtype)
    rounding = float(jnp.finfo(dtype).eps)
    mesh = tuple(sorted({name for leaf in mesh_axes for axis in leaf for name in axis}))

    def norms(arrays: Sequence[jax.Array], negligible: jax.Array) -> Any:
        slices = [
            [Sliced(array, summed, sum((names[axis] for axis in summed), ()))]
            for array, summed, names in zip(arrays, axes, mesh_axes, strict=True)
        ]
        return slice_norms(slices, dtype, mesh_axes=mesh, negligible=negligible)

    # A gradient this far below its bound is not clipped, whatever it is, and weights
    # this far below eps count as eps.
    gradients = norms(leaves, clipping * least * rounding)
    weights = [
        jnp.maximum(norm.value, least) for norm in norms(params, least * rounding)
    ]
    factors = [
        clip_factors(norm, clipping * weight, 0.0)
        for norm, weight in zip(gradients, weights, strict=True)
    ]

    def largest_ratio(values: Sequence[jax.Array]) -> jax.Array:
        ratios = map(_ratio, values, weights)
        return largest(_join(largest_element, ratios, 0.0, dtype), mesh)

    coefs = (factor.clip_coef for factor in factors)
    finite = jnp.asarray(True)
    for norm in gradients:
        finite &= jnp.all(norm.finite)
    clipped = Clipped(
        leaves=[
            scale_leaf(leaf, factor.unit, factor.length)
            for leaf, factor in zip(reread(leaves), factors, strict=True)
        ],
        total_norm=largest_ratio([norm.value for norm in gradients]),
        clipped_norm=largest_ratio(
            [f.norm_after(n) for f, n in zip(factors, gradients, strict=True)]
        ),
        clip_coef=smallest(_join(smallest_coefficient, coefs, 1.0, dtype), mesh),
        finite=on_all_shards(finite, mesh),
    )
    return clipped, record_clip(state, clipped)


def _ratio(norm: jax.Array, weight: jax.Array) -> jax.Array:
    """Divide, where nothing over nothing is nothing."""
    nothing = (norm == 0) & (weight == 0)
    return norm / jnp.where(nothing, 1.0, weight)


def _join(
    reduce: Callable[[jax.Array], jax.Array], arrays: Any, none: float, dtype: Any
) -> jax.Array:
    """Reduce arrays to one scalar."""
    scalars = [reduce(array) for array in arrays]
    return reduce(jnp.stack(scalars)) if scalars else jnp.asarray(none, dtype)

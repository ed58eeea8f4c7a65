"""Clip the gradient of each example of a batch, then add them up."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxclip._core.arguments import Scalar, check_threshold
from jaxclip._core.dispatch import call_compiled
from jaxclip._core.exact_norms import TreeNorm
from jaxclip._core.leaves import accumulation_dtype, leaf_names, split_leaves
from jaxclip._core.mesh import (
    AxisName,
    check_axis_name,
    largest,
    smallest,
    varying_axes,
)
from jaxclip._core.scaling import Clipped, clip_factors, scale_leaf
from jaxclip._core.slice_norms import Sliced, slice_norms
from jaxclip._core.transformation import Threshold, checked_threshold, transformation
from jaxclip._monitoring import ClipState, init_clip_state, record_clip


class PerExampleReport(NamedTuple):
    """What clipping did to each example of a batch.

    Attributes:
        norms: The norm of each example's gradient before clipping, over all leaves.
            Shape (batch,), float32 or float64.
        clip_coefs: What each example's gradient was multiplied by; the smallest
            factor, where leaves differ; 0 for one that was dropped. Shape (batch,).
        clipped: How many examples were scaled, an int32 scalar.
        dropped: How many examples had a NaN or infinite element, an int32 scalar.
    """

    norms: jax.Array
    clip_coefs: jax.Array
    clipped: jax.Array
    dropped: jax.Array


class PerExampleState(NamedTuple):
    """What `per_example_clip` remembers; all 0 before the first step.

    Attributes:
        clip: The largest norm of an example that was not dropped, before and after,
            and the smallest coefficient; a step counts as not finite when an example
            was dropped.
        clipped_examples: How many of the last batch were scaled. int32 scalar.
        dropped_examples: How many of the last batch were not finite. int32 scalar.
    """

    clip: ClipState
    clipped_examples: jax.Array
    dropped_examples: jax.Array


def clip_per_example_grads(
    grads: Any,
    max_norm: Scalar,
    *,
    per_layer: str | None = None,
    reduction: str = "mean",
    axis_name: AxisName = None,
) -> tuple[Any, PerExampleReport]:
    r"""Scale each example's gradient to a norm of at most ``max_norm``; add them up.

    .. math:: \bar g = \sum_{i} \min\Big(1, \frac{\text{max\_norm}}
              {\|g_i\|}\Big)\, g_i

    over the examples i of a batch; for ``reduction="mean"``, divided by their number.
    An example with a NaN or an infinite element is left out: it counts as a gradient
    of 0, in the mean too, so that no example moves the mean by more than
    ``max_norm`` over the size of the batch.

    With ``per_layer`` each leaf k of an example is clipped by its own norm, to
    max_norm / √K (``"uniform"``, of K leaves) or max_norm √(nₖ / n) (``"scaled"``, of
    nₖ of n elements), which bounds the norm over all leaves by ``max_norm`` too.

    Args:
        grads: A tree of arrays (batch, ...), such as ``jax.vmap(jax.grad(loss))``
            gives.
        max_norm: The largest norm allowed to an example's gradient, ≥ 0. May be
            traced.
        per_layer: None for one norm over all leaves; ``"uniform"`` or ``"scaled"``.
        reduction: ``"mean"`` or ``"sum"``.
        axis_name: Inside ``shard_map`` and ``pmap``: the mesh axes over which the
            batch is sharded, ``()`` for none; sums and counts are then over all
            shards. Axes besides, by the type of a leaf, are its parameters'.

    Returns:
        The clipped gradients, (...), summed in at least float32, each leaf of its own
        dtype; and a `PerExampleReport`.

    Raises:
        TypeError: A leaf is no inexact array, or ``max_norm`` no scalar.
        ValueError: The batch axes of leaves differ, or an argument is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> grads = {"w": jnp.array([[3.0, 4.0], [0.0, 0.5], [jnp.nan, 1.0]])}
        >>> clipped, report = clip_per_example_grads(grads, 1.0, reduction="sum")
        >>> print(clipped["w"], report.clipped, report.dropped)
        [0.6 1.3] 1 1

    Differs from ``optax.per_example_global_norm_clip`` and
    ``optax.per_example_layer_norm_clip``: the mean by default; an example that is not
    finite is dropped, not passed on; norms and sums are in at least float32 and
    neither overflow nor underflow; leaves without elements are no layers.

    References:
        Abadi et al., `Deep Learning with Differential Privacy
        <https://arxiv.org/abs/1607.00133>`_, 2016; per layer: McMahan et al.,
        `Learning Differentially Private Recurrent Language Models
        <https://arxiv.org/abs/1710.06963>`_, 2017.
    """
    caller = "clip_per_example_grads"
    max_norm = check_threshold(caller, "max_norm", max_norm)
    options = _check_options(caller, per_layer, reduction)
    leaves, rebuild = split_leaves(grads, caller)
    _check_batch(grads, leaves, axis_name, caller)
    clipped, report = call_compiled(
        _clip_and_report,
        leaves,
        max_norm,
        axis_names=check_axis_name(axis_name),
        **options,
    )
    return rebuild(clipped), report


def per_example_clip(
    max_norm: Threshold,
    *,
    per_layer: str | None = None,
    reduction: str = "mean",
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    """Clip the gradient of each example in the updates, and add them up.

    What `clip_per_example_grads` computes, as an Optax transformation. It takes
    updates whose leaves have the batch for first axis and returns them without it,
    and so comes first in a chain, and outside of ``optax.MultiSteps``.

    Args:
        max_norm: The largest norm allowed to an example's gradient, ≥ 0: a number, a
            scalar array, or a schedule, ``count -> max_norm``.
        per_layer: None, ``"uniform"`` or ``"scaled"``.
        reduction: ``"mean"`` or ``"sum"``.
        axis_name: See `clip_per_example_grads`.

    Returns:
        A transformation whose state is a `PerExampleState`.

    Raises:
        TypeError: ``max_norm`` is no scalar; in ``update``: a leaf is no inexact
            array.
        ValueError: An argument is out of range; in ``update``: the batch axes of
            leaves differ.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> optimizer = optax.chain(per_example_clip(1.0), optax.sgd(0.1))
        >>> params = jnp.zeros(2)
        >>> state = optimizer.init(params)
        >>> loss = lambda params, x: jnp.vdot(params, x)
        >>> batch = jnp.array([[3.0, 4.0], [0.0, 0.4]])
        >>> grads = jax.vmap(jax.grad(loss), in_axes=(None, 0))(params, batch)
        >>> updates, state = optimizer.update(grads, state, params)
        >>> print(updates, state[0].clipped_examples)
        [-0.03 -0.06] 1

    Differs from ``optax.contrib.differentially_private_aggregate``, which adds noise
    and always takes the mean, as `clip_per_example_grads` does from its namesakes.
    """
    caller = "per_example_clip"
    options = _check_options(caller, per_layer, reduction)

    def init(params: optax.Params) -> PerExampleState:
        counts = (jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))
        return PerExampleState(init_clip_state(params), *counts)

    return transformation(
        caller,
        init,
        _clip_and_record,
        checked_threshold(caller, "max_norm", max_norm),
        check=lambda grads, leaves, caller: _check_batch(
            grads, leaves, axis_name, caller
        ),
        axis_names=check_axis_name(axis_name),
        **options,
    )


def _check_options(
    caller: str, per_layer: str | None, reduction: str
) -> dict[str, Any]:
    if per_layer not in (None, "uniform", "scaled"):
        raise ValueError(
            f"{caller}(per_layer={per_layer!r}): expected None for one norm over all "
            "leaves, 'uniform' or 'scaled'."
        )
    if reduction not in ("mean", "sum"):
        raise ValueError(
            f"{caller}(reduction={reduction!r}): expected 'mean' or 'sum'."
        )
    return {"per_layer": per_layer, "reduction": reduction}


def _check_batch(
    grads: Any, leaves: Sequence[jax.Array], axis_name: AxisName, caller: str
) -> None:
    """Refuse leaves of different batches, and mesh axes that were not named."""
    for index, leaf in enumerate(leaves):
        if leaf.shape[:1] != leaves[0].shape[:1] or leaf.ndim == 0:
            names = leaf_names(grads)
            raise ValueError(
                f"{caller}: the leaf {names[index]} has the shape {leaf.shape}, and "
                f"{names[0]} has {leaves[0].shape}; expected the batch for first axis "
                "of each, as jax.vmap(jax.grad(loss), in_axes=(None, 0)) gives."
            )
        if axis_name is None and (varying := sorted(varying_axes(leaf))):
            raise ValueError(
                f"{caller}: the leaf {leaf_names(grads)[index]} is sharded over the "
                f"mesh axes {varying}. Name those that shard the batch with "
                "axis_name=, () for none."
            )


class _Clipped(NamedTuple):
    """Reduced leaves, and what each example was; arrays of (batch,)."""

    leaves: list[jax.Array]
    report: PerExampleReport
    clipped_norms: jax.Array
    kept: jax.Array


def _clip_and_report(
    leaves: Sequence[jax.Array], max_norm: Scalar, **options: Any
) -> tuple[list[jax.Array], PerExampleReport]:
    clipped = _clip_examples(leaves, max_norm, **options)
    return clipped.leaves, clipped.report


def _clip_and_record(
    leaves: Sequence[jax.Array],
    max_norm: Scalar,
    state: PerExampleState,
    *,
    axis_names: tuple[str, ...],
    **options: Any,
) -> tuple[Clipped, PerExampleState]:
    clipped = _clip_examples(leaves, max_norm, axis_names=axis_names, **options)
    report, kept = clipped.report, clipped.kept

    def largest_kept(norms: jax.Array) -> jax.Array:
        return largest(jnp.max(norms, initial=0.0, where=kept), axis_names)

    least = jnp.min(report.clip_coefs, initial=1.0, where=kept)
    clip = Clipped(
        clipped.leaves,
        total_norm=largest_kept(report.norms),
        clipped_norm=largest_kept(clipped.clipped_norms),
        clip_coef=smallest(least, axis_names),
        finite=report.dropped == 0,
    )
    return clip, PerExampleState(
        record_clip(state.clip, clip), report.clipped, report.dropped
    )


def _clip_examples(
    leaves: Sequence[jax.Array],
    max_norm: Scalar,
    *,
    per_layer: str | None,
    reduction: str,
    axis_names: tuple[str, ...],
) -> _Clipped:
    dtype = accumulation_dtype(leaves)
    batch = leaves[0].shape[0] if leaves else 0
    slices = [_examples(leaf, axis_names) for leaf in leaves]
    layers = _layers(slices, per_layer)
    max_norm = jnp.asarray(max_norm, dtype)
    least_share = min((share for _, share in layers if share), default=1.0)
    norms = [
        TreeNorm(norm.scale.reshape(batch), norm.ratio.reshape(batch))  # (batch,)
        for norm in slice_norms(
            [group for group, _ in layers],
            dtype,
            # A norm this far below its threshold changes no coefficient.
            negligible=max_norm * (least_share * float(jnp.finfo(dtype).eps)),
        )
    ]
    factors = [
        clip_factors(norm, max_norm * jnp.asarray(share, dtype), 0.0)
        for norm, (_, share) in zip(norms, layers, strict=True)
    ]

    kept = jnp.ones((batch,), bool)
    coefs = jnp.ones((batch,), dtype)
    for norm, factor in zip(norms, factors, strict=True):
        kept = kept & norm.finite
        coefs = jnp.minimum(coefs, factor.clip_coef)
    coefs = jnp.where(kept, coefs, 0.0)

    count = batch * math.prod(map(lax.axis_size, axis_names))
    weight = 1.0 / max(count, 1) if reduction == "mean" else 1.0
    per_leaf = factors if per_layer else factors * len(leaves)
    reduced = [
        _weighted_sum(
            leaf,
            kept,
            jnp.where(kept, factor.unit, 1.0),
            jnp.where(kept, factor.length * weight, 0.0),
            axis_names,
        )
        for leaf, factor in zip(leaves, per_leaf, strict=True)
    ]
    report = PerExampleReport(
        _joint([norm.value for norm in norms], batch, dtype),
        coefs,
        _count(kept & (coefs < 1), axis_names),
        _count(~kept, axis_names),
    )
    after = [f.norm_after(n) for f, n in zip(factors, norms, strict=True)]
    return _Clipped(reduced, report, _joint(after, batch, dtype), kept)


def _examples(leaf: jax.Array, axis_names: tuple[str, ...]) -> Sliced:
    """Take the examples of a leaf for its slices."""
    # What shards a leaf and not the batch shards the parameters.
    of_params = varying_axes(leaf) - set(axis_names)
    return Sliced(leaf, tuple(range(1, leaf.ndim)), tuple(sorted(of_params)))


def _layers(
    slices: Sequence[Sliced], per_layer: str | None
) -> list[tuple[Sequence[Sliced], float]]:
    """Return the groups of leaves with a norm each, and their shares of max_norm."""
    if per_layer is None:
        return [(slices, 1.0)] if slices else []
    sizes = np.array([sliced.size for sliced in slices], float)
    if per_layer == "uniform":
        sizes = np.minimum(sizes, 1.0)
    shares = np.sqrt(sizes / max(sizes.sum(), 1.0))
    return [([s], share) for s, share in zip(slices, shares.tolist(), strict=True)]


def _weighted_sum(
    leaf: jax.Array,
    kept: jax.Array,
    unit: jax.Array,
    length: jax.Array,
    axis_names: tuple[str, ...],
) -> jax.Array:
    """Sum over the examples that are kept, each times its two factors."""
    column = (len(kept), *[1] * (leaf.ndim - 1))  # (batch, 1, ...)
    wide = leaf
    if not jnp.iscomplexobj(leaf):
        wide = leaf.astype(accumulation_dtype([leaf]))
    # NaN times 0 is NaN.
    wide = jnp.where(kept.reshape(column), wide, jnp.zeros((), wide.dtype))
    scaled = scale_leaf(wide, unit.reshape(column), length.reshape(column))
    total = jnp.sum(scaled, axis=0)
    total = lax.psum(total, axis_names) if axis_names else total
    return total.astype(leaf.dtype)


def _joint(norms: Sequence[jax.Array], batch: int, dtype: Any) -> jax.Array:
    """Return each example's norm over all layers."""
    if len(norms) <= 1:
        return norms[0] if norms else jnp.zeros((batch,), dtype)
    table = jnp.stack(norms, axis=1)  # (batch, layers)
    (joint,) = slice_norms([[Sliced(table, (1,))]], dtype)
    return joint.value.reshape(batch)


def _count(condition: jax.Array, axis_names: tuple[str, ...]) -> jax.Array:
    count = jnp.sum(condition, dtype=jnp.int32)
    return lax.psum(count, axis_names) if axis_names else count

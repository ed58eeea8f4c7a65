"""What a clip did: the state that it keeps, and how to read it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip._core.leaves import accumulation_dtype, has_norm
from jaxclip._core.paths import inexact_leaves_with_path
from jaxclip._core.scaling import Clipped
from jaxclip._core.sums import unstack


class ClipState(NamedTuple):
    """What a clipping transformation remembers.

    Its structure, shapes and dtypes are fixed from ``init`` on. The floats are
    float64 if a parameter is float64, otherwise float32. All is 0 before the first
    step: `clip_metrics` reads NaN then, which the state itself may not hold where
    ``jax_debug_nans`` is to find others.

    Attributes:
        count: Steps so far. int32 scalar, as the other counts.
        clipped_count: Steps on which the gradients were changed.
        nonfinite_count: Steps on which an element was NaN or infinite.
        total_norm: The last step's norm before clipping.
        clipped_norm: The last step's norm after clipping.
        clip_coef: What the last step's gradients were multiplied by. 0 where the true
            coefficient is below the normal numbers of its dtype.
        last_finite_norm: The norm before clipping of the last step whose elements
            were all finite.
        leaf_norms: Each leaf's norm before clipping on the last step, in a tree like
            the parameters; None unless the clip was made with ``per_leaf=True``.

    `clip_by_norm` and `clip_by_value` say in their docstrings what norm they keep.
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, as Optax's do
    clipped_count: jax.Array
    nonfinite_count: jax.Array
    total_norm: jax.Array
    clipped_norm: jax.Array
    clip_coef: jax.Array
    last_finite_norm: jax.Array
    leaf_norms: Any = None


class ClipMetrics(NamedTuple):
    """What a clip did on the last step, and how often it has.

    All are scalars, but for ``leaf_norms``.

    Attributes:
        total_norm: The last step's norm before clipping; NaN before the first step.
        clipped_norm: The last step's norm after clipping; NaN before the first step.
        clip_coef: What the last step's gradients were multiplied by; NaN before the
            first step.
        clipped: Whether the last step was clipped.
        clipped_share: The share of steps that were clipped, from 0 to 1; NaN before
            the first step.
        count: Steps so far.
        clipped_count: Steps on which the gradients were changed.
        nonfinite_count: Steps on which an element was NaN or infinite.
        last_finite_norm: The norm before clipping of the last step whose elements
            were all finite; NaN before the first of these.
        leaf_norms: Each leaf's norm before clipping on the last step, by the path of
            the leaf; empty unless asked for.
    """

    total_norm: jax.Array
    clipped_norm: jax.Array
    clip_coef: jax.Array
    clipped: jax.Array
    clipped_share: jax.Array
    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, as Optax's do
    clipped_count: jax.Array
    nonfinite_count: jax.Array
    last_finite_norm: jax.Array
    leaf_norms: dict[str, jax.Array]


def init_clip_state(params: Any, *, per_leaf: bool = False) -> ClipState:
    """Return the state before the first step.

    Args:
        params: The parameters, of which the dtype is taken.
        per_leaf: Keep each leaf's norm.
    """
    dtype = accumulation_dtype(jax.tree.leaves(params))

    def zero(leaf: Any) -> jax.Array | None:
        return jnp.zeros((), dtype) if has_norm(leaf) else None

    # An array for each field: one that stands twice in a state cannot be donated.
    return ClipState(
        count=jnp.zeros((), jnp.int32),
        clipped_count=jnp.zeros((), jnp.int32),
        nonfinite_count=jnp.zeros((), jnp.int32),
        total_norm=jnp.zeros((), dtype),
        clipped_norm=jnp.zeros((), dtype),
        clip_coef=jnp.zeros((), dtype),
        last_finite_norm=jnp.zeros((), dtype),
        leaf_norms=jax.tree.map(zero, params) if per_leaf else None,
    )


def record_clip(state: ClipState, clipped: Clipped) -> ClipState:
    """Return the state after one more step."""
    dtype = state.total_norm.dtype
    total_norm = clipped.total_norm.astype(dtype)
    return ClipState(
        count=optax.safe_increment(state.count),
        clipped_count=count_if(clipped.clip_coef < 1, state.clipped_count),
        nonfinite_count=count_if(~clipped.finite, state.nonfinite_count),
        total_norm=total_norm,
        clipped_norm=clipped.clipped_norm.astype(dtype),
        clip_coef=clipped.clip_coef.astype(dtype),
        last_finite_norm=jnp.where(clipped.finite, total_norm, state.last_finite_norm),
        leaf_norms=_record_leaves(state, clipped.leaf_norms),
    )


def _record_leaves(state: ClipState, norms: jax.Array | None) -> Any:
    if norms is None:
        return None
    scalars = unstack(norms.astype(state.total_norm.dtype))
    leaves, structure = jax.tree.flatten(state.leaf_norms)
    if len(leaves) != len(scalars):
        raise ValueError(
            f"got updates with {len(scalars)} leaves, expected {len(leaves)}, as many "
            "as the parameters had that init was given: per_leaf=True keeps a norm of "
            "each. Give init the same tree."
        )
    return jax.tree.unflatten(structure, scalars)


def count_if(happened: jax.Array, count: jax.Array) -> jax.Array:
    """Return the count, greater by 1 if something happened."""
    return jnp.where(happened, optax.safe_increment(count), count)


def clip_metrics(opt_state: Any, *, per_leaf: bool = False) -> ClipMetrics:
    """Find the state of a clip in an optimizer's state, and read it.

    Works in and out of ``jit``, for the state of a chain and for states wrapped by
    ``optax.masked``, ``partition``, ``inject_hyperparams``, ``MultiSteps`` and the
    like: for whatever is a tree to JAX.

    Args:
        opt_state: An optimizer state that holds one `ClipState`.
        per_leaf: Also return the norm of each leaf, of a clip that was made with
            ``per_leaf=True``.

    Returns:
        Scalars, ready to be logged, and with ``per_leaf`` a dictionary of them.

    Raises:
        ValueError: There is no `ClipState` in it, or more than one; the error says
            where they are. Or ``per_leaf`` is set, and it holds no norms of leaves.

    Example:
        >>> import jax.numpy as jnp, jaxclip, optax
        >>> optimizer = optax.chain(jaxclip.clip_by_global_norm(1.0), optax.sgd(0.1))
        >>> params = {"w": jnp.zeros(2)}
        >>> opt_state = optimizer.init(params)
        >>> _, opt_state = optimizer.update({"w": jnp.array([3.0, 4.0])}, opt_state)
        >>> metrics = clip_metrics(opt_state)
        >>> print(metrics.total_norm, metrics.clipped, metrics.clipped_share)
        5.0 True 1.0
    """
    found = [
        (jax.tree_util.keystr(path), node)
        for path, node in jax.tree_util.tree_leaves_with_path(
            opt_state, is_leaf=lambda node: isinstance(node, ClipState)
        )
        if isinstance(node, ClipState)
    ]
    if not found:
        raise ValueError(
            f"clip_metrics: found no ClipState in this {type(opt_state).__name__}. "
            "Expected the state of an optimizer with a jaxclip clip in its chain, "
            "such as optax.chain(jaxclip.clip_by_global_norm(1.0), optax.sgd(0.1))."
        )
    if len(found) > 1:
        places = ", ".join(f"opt_state{path}" for path, _ in found)
        raise ValueError(
            f"clip_metrics: found {len(found)} ClipStates, expected one. Pass the one "
            f"you mean: {places}."
        )
    # The optimizers of NNX wrap each array in a variable, which is a tree to JAX.
    state: ClipState = jax.tree.map(
        jnp.asarray,
        found[0][1],
        is_leaf=lambda node: hasattr(node, "__jax_array__"),
    )
    if per_leaf and state.leaf_norms is None:
        raise ValueError(
            "clip_metrics(per_leaf=True): this clip keeps no norms of leaves. Make it "
            "with per_leaf=True, such as clip_by_global_norm(1.0, per_leaf=True)."
        )
    return _read(state, per_leaf)


def _read(state: ClipState, per_leaf: bool) -> ClipMetrics:
    dtype = state.total_norm.dtype
    begun = state.count > 0
    steps = jnp.maximum(state.count, 1).astype(dtype)

    def known(value: jax.Array, condition: jax.Array = begun) -> jax.Array:
        return jnp.where(condition, value, jnp.nan)

    return ClipMetrics(
        total_norm=known(state.total_norm),
        clipped_norm=known(state.clipped_norm),
        clip_coef=known(state.clip_coef),
        clipped=begun & (state.clip_coef < 1),
        clipped_share=known(state.clipped_count.astype(dtype) / steps),
        count=state.count,
        clipped_count=state.clipped_count,
        nonfinite_count=state.nonfinite_count,
        last_finite_norm=known(
            state.last_finite_norm, state.count > state.nonfinite_count
        ),
        leaf_norms={
            path: known(norm)
            for path, norm in inexact_leaves_with_path(state.leaf_norms)
            if per_leaf
        },
    )

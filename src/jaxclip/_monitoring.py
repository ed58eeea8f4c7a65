"""What a clip did: the state that it keeps, and how to read it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip._leaves import accumulation_dtype


class ClipState(NamedTuple):
    """What a clipping transformation remembers.

    Its structure, shapes and dtypes are fixed from ``init`` on. The three floats are
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

    `clip_by_norm` and `clip_by_value` say in their docstrings what norm they keep.
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, as Optax's do
    clipped_count: jax.Array
    nonfinite_count: jax.Array
    total_norm: jax.Array
    clipped_norm: jax.Array
    clip_coef: jax.Array


class ClipMetrics(NamedTuple):
    """What a clip did on the last step, and how often it has. All scalars.

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
    """

    total_norm: jax.Array
    clipped_norm: jax.Array
    clip_coef: jax.Array
    clipped: jax.Array
    clipped_share: jax.Array
    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, as Optax's do
    clipped_count: jax.Array
    nonfinite_count: jax.Array


def init_clip_state(params: Any) -> ClipState:
    """Return the state before the first step."""
    # An array for each field: one that stands twice in a state cannot be donated.
    dtype = accumulation_dtype(jax.tree.leaves(params))
    counts = [jnp.zeros((), jnp.int32) for _ in range(3)]
    return ClipState(*counts, *[jnp.zeros((), dtype) for _ in range(3)])


def record_clip(
    state: ClipState,
    *,
    total_norm: jax.Array,
    clipped_norm: jax.Array,
    clip_coef: jax.Array,
    finite: jax.Array,
) -> ClipState:
    """Return the state after one more step."""
    dtype = state.total_norm.dtype
    return ClipState(
        count=optax.safe_increment(state.count),
        clipped_count=count_if(clip_coef < 1, state.clipped_count),
        nonfinite_count=count_if(~finite, state.nonfinite_count),
        total_norm=total_norm.astype(dtype),
        clipped_norm=clipped_norm.astype(dtype),
        clip_coef=clip_coef.astype(dtype),
    )


def count_if(happened: jax.Array, count: jax.Array) -> jax.Array:
    """Return the count, greater by 1 if something happened."""
    return jnp.where(happened, optax.safe_increment(count), count)


def clip_metrics(opt_state: Any) -> ClipMetrics:
    """Find the state of a clip in an optimizer's state, and read it.

    Works in and out of ``jit``, for the state of a chain and for states wrapped by
    ``optax.masked``, ``partition``, ``inject_hyperparams``, ``MultiSteps`` and the
    like: for whatever is a tree to JAX.

    Args:
        opt_state: An optimizer state that holds one `ClipState`.

    Returns:
        Scalars, ready to be logged.

    Raises:
        ValueError: There is no `ClipState` in it, or more than one; the error says
            where they are.

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
    return _read(ClipState(*map(jnp.asarray, found[0][1])))


def _read(state: ClipState) -> ClipMetrics:
    dtype = state.total_norm.dtype
    begun = state.count > 0
    steps = jnp.maximum(state.count, 1).astype(dtype)

    def known(value: jax.Array) -> jax.Array:
        return jnp.where(begun, value, jnp.nan)

    return ClipMetrics(
        total_norm=known(state.total_norm),
        clipped_norm=known(state.clipped_norm),
        clip_coef=known(state.clip_coef),
        clipped=begun & (state.clip_coef < 1),
        clipped_share=known(state.clipped_count.astype(dtype) / steps),
        count=state.count,
        clipped_count=state.clipped_count,
        nonfinite_count=state.nonfinite_count,
    )

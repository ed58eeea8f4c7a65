"""What becomes of a step whose updates are not finite."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip._core.arguments import check_steps
from jaxclip._core.dispatch import call_compiled
from jaxclip._core.leaves import split_leaves
from jaxclip._core.mesh import AxisName, check_axis_name
from jaxclip._core.nonfinite import raise_if_nonfinite, zero_unless
from jaxclip._monitoring import count_if
from jaxclip._norms import tree_norm


class SkipNonfiniteState(NamedTuple):
    """What `skip_nonfinite` remembers.

    Attributes:
        count: Steps so far. int32 scalar, as the other counts.
        skipped_count: Steps that were skipped.
        consecutive: Steps skipped in a row, up to the last one: 0 if that was taken.
        inner_state: The state of the inner optimizer, which knows of the steps that
            were taken alone.
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, as Optax's do
    skipped_count: jax.Array
    consecutive: jax.Array
    inner_state: optax.OptState


def skip_nonfinite(
    inner: optax.GradientTransformation,
    *,
    max_consecutive: int | None = None,
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Skip the steps on which an element of the updates is NaN or infinite.

    .. math:: (u_t, s_t) = \begin{cases}
              \text{inner}(g_t, s_{t-1}) & \text{if every element of } g_t
              \text{ is finite} \\ (0, s_{t-1}) & \text{otherwise} \end{cases}

    After a skipped step the parameters, the inner optimizer's moments and its
    schedules are as if the step had not been. The elements decide and not their norm:
    a step of finite elements is taken, however large. Every device of a mesh decides
    alike.

    Wrap ``optax.MultiSteps`` in it, to leave out one micro-batch, and not the other
    way round: the accumulator of ``MultiSteps`` keeps a NaN for ever.

    Costs one read of the updates, and none where a `jaxclip.clip_by_global_norm`
    inside takes the same norm. The inner optimizer runs on every step, and selects drop
    what it made of a bad one: no branch, which would write out the updates, and whose
    two sides would need equal types inside ``shard_map``. On CPU, XLA copies donated
    moments for them, which it would update in place otherwise.

    Args:
        inner: The optimizer to wrap, clips and schedules included.
        max_consecutive: Raise on the step after so many skipped in a row, ≥ 0; None
            skips for ever. Under ``jit`` the error comes when the program runs, as a
            ``jax.errors.JaxRuntimeError``.
        axis_name: See `jaxclip.global_norm`.

    Returns:
        A transformation whose state is a `SkipNonfiniteState`. It passes extra
        arguments on.

    Raises:
        ValueError: ``max_consecutive`` is negative or not whole.
        TypeError: In ``update``: a leaf is no inexact array.
        RuntimeError: In ``update``: more than ``max_consecutive`` steps in a row were
            not finite; the error names the last one's leaves and counts the elements.

    Example:
        >>> import jax.numpy as jnp, jaxclip, optax
        >>> optimizer = skip_nonfinite(
        ...     optax.chain(jaxclip.clip_by_global_norm(1.0), optax.adam(1e-3))
        ... )
        >>> state = optimizer.init(jnp.zeros(2))
        >>> updates, state = optimizer.update(jnp.array([1.0, jnp.nan]), state)
        >>> print(updates, state.skipped_count)
        [0. 0.] 1

    Differs from ``optax.apply_if_finite``: raises where that gives up, which is to let
    NaN into the parameters for good, on the step after ``max_consecutive_errors`` bad
    ones and, as its counter is not reset then, on every bad one up to the next good
    one; all devices decide alike inside ``shard_map``. Both take finite updates whose
    norm overflows, but a clip of Optax inside makes 0 of them, which nothing counts.

    References:
        Micikevicius et al., `Mixed Precision Training
        <https://arxiv.org/abs/1710.03740>`_, 2018, skip the steps on which the scaled
        loss overflows.
    """
    caller = "skip_nonfinite"
    inner = optax.with_extra_args_support(inner)
    axis_names = check_axis_name(axis_name)
    if max_consecutive is not None:
        check_steps(caller, "max_consecutive", max_consecutive, 0)

    def init(params: optax.Params) -> SkipNonfiniteState:
        return SkipNonfiniteState(
            **zero_counts("count", "skipped_count", "consecutive"),
            inner_state=inner.init(params),
        )

    def update(
        updates: optax.Updates,
        state: SkipNonfiniteState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SkipNonfiniteState]:
        leaves, _ = split_leaves(updates, caller)
        finite = call_compiled(_all_finite, leaves, axis_names=axis_names)
        counts = tally(state, finite)
        if max_consecutive is not None:
            limit = jnp.asarray(max_consecutive, jnp.int32)
            raise_if_nonfinite(
                updates,
                finite | (counts["consecutive"] <= limit),
                f"{caller}: more than max_consecutive steps in a row",
            )
        updates, inner_state = update_if(
            finite, inner, updates, state.inner_state, params, extra_args, caller
        )
        return updates, SkipNonfiniteState(**counts, inner_state=inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _all_finite(
    leaves: Sequence[jax.Array], *, axis_names: tuple[str, ...]
) -> jax.Array:
    # By the norm that clips take, which XLA then computes once for both of them; it
    # knows whether all elements are finite where it is itself too large.
    return tree_norm(leaves, norm_type=2.0, axis_names=axis_names).finite


def update_if(
    taken: jax.Array,
    inner: optax.GradientTransformationExtraArgs,
    updates: optax.Updates,
    inner_state: optax.OptState,
    params: optax.Params | None,
    extra_args: Mapping[str, Any],
    caller: str,
) -> tuple[optax.Updates, optax.OptState]:
    """Return what an optimizer makes of a step, or zeros and its state as it was."""
    updates, new_state = inner.update(updates, inner_state, params, **extra_args)
    leaves, rebuild = split_leaves(updates, caller)
    leaves = call_compiled(zero_unless, taken, leaves)
    return rebuild(leaves), call_compiled(_either, taken, new_state, inner_state)


def _either(condition: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), new, old)


def tally(state: Any, taken: jax.Array) -> dict[str, jax.Array]:
    """Count one more step, as both guards do."""
    return {
        "count": optax.safe_increment(state.count),
        "skipped_count": count_if(~taken, state.skipped_count),
        "consecutive": jnp.where(taken, 0, optax.safe_increment(state.consecutive)),
    }


def zero_counts(*names: str) -> dict[str, jax.Array]:
    """Return a count of 0 for each name."""
    # An array for each: one that stands twice in a state cannot be donated.
    return {name: jnp.zeros((), jnp.int32) for name in names}

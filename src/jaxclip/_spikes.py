"""Skip the steps on which the loss or the gradient norm spikes."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxclip._core.arguments import Scalar, check_scalar, check_steps
from jaxclip._core.dispatch import call_compiled
from jaxclip._core.leaves import accumulation_dtype, saturate, split_leaves
from jaxclip._core.mesh import AxisName, check_axis_name, mesh_axes_of
from jaxclip._guards import tally, update_if, zero_counts
from jaxclip._monitoring import count_if
from jaxclip._norms import tree_norm

Watch = Literal["both", "loss", "norm"]


class SkipSpikesState(NamedTuple):
    """What `skip_spikes` remembers.

    Attributes:
        count: Steps so far. int32 scalar, as the other counts.
        skipped_count: Steps that were skipped.
        consecutive: Steps skipped in a row, up to the last one: 0 if that was taken.
        nonfinite_count: Steps that were skipped as not finite.
        known: Steps that the history holds; at most its length.
        losses: The last losses, the latest last, of (window,); 0 where the history
            is not full, and throughout if the loss is not watched. float64 if a
            parameter is float64, otherwise float32.
        norms: The last gradient norms, likewise.
        inner_state: The state of the inner optimizer, which knows of the steps that
            were taken alone.
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, as Optax's do
    skipped_count: jax.Array
    consecutive: jax.Array
    nonfinite_count: jax.Array
    known: jax.Array
    losses: jax.Array
    norms: jax.Array
    inner_state: optax.OptState


def skip_spikes(
    inner: optax.GradientTransformation,
    *,
    window: int = 128,
    sigmas: Scalar = 6.0,
    min_history: int | None = None,
    watch: Watch = "both",
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Skip the steps on which the loss or the gradient norm spikes.

    .. math:: (u_t, s_t) = \begin{cases}
              (0, s_{t-1}) & \text{if } x_t - \mu_t > \text{sigmas} \cdot \sigma_t
              \text{ for } x \in \{\text{loss}, \|g\|_2\} \\
              \text{inner}(g_t, s_{t-1}) & \text{otherwise} \end{cases}

    :math:`\mu_t` and :math:`\sigma_t` are the mean and the unbiased standard deviation
    of the ``window`` values before :math:`x_t`. The details are those of OLMo-core:
    the current value is not among them; values of skipped steps are, so that a lasting
    change becomes the new normal; low values never count as spikes; and no step is
    skipped before ``min_history`` values are known.

    A step whose loss or gradients are not finite is skipped whatever is known, and
    enters no history. After a skipped step the parameters and the inner optimizer's
    state are as if it had not been. Costs what `skip_nonfinite` does.

    Args:
        inner: The optimizer to wrap. Put clips inside, so that the norm is judged as
            it was before clipping.
        window: How many values are remembered, ≥ 2. Fixes a shape:
            ``optax.inject_hyperparams(skip_spikes, static_args=("window",))``.
        sigmas: How many standard deviations above the mean a spike begins, ≥ 0.
        min_history: How many values must be known before one can be a spike, from 2
            to ``window``. None is OLMo-core's ``max(20, window // 2) - 1``.
        watch: "both" as published, or "loss" or "norm" alone; what is not watched is
            not looked at, and not found to be NaN either.
        axis_name: See `jaxclip.global_norm`. A loss that differs between the devices
            is averaged over them.

    Returns:
        A transformation whose state is a `SkipSpikesState`. Its ``update`` needs the
        loss, a scalar, as ``update(grads, state, params, value=loss)``, which is also
        what Optax's line searches take, or as ``loss=``; it passes extra arguments on.

    Raises:
        TypeError: ``sigmas`` is no scalar; in ``update``: the loss is missing or no
            scalar, or a leaf is no inexact array.
        ValueError: An argument is out of range; in ``init``: ``window`` is traced.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> optimizer = skip_spikes(optax.sgd(0.1))
        >>> params = jnp.ones(1)
        >>> state = optimizer.init(params)
        >>> for step in range(100):
        ...     loss = 2.0 + 0.1 * (-1) ** step
        ...     _, state = optimizer.update(jnp.ones(1), state, params, value=loss)
        >>> updates, state = optimizer.update(jnp.ones(1), state, params, value=5.0)
        >>> print(updates, state.skipped_count)
        [0.] 1

    Differs from OLMo-core's ``SkipStepOptimizer``: there a NaN makes the statistics
    NaN, and so every step is skipped until it has left the window, or, if it comes
    early, is taken and trained on; with a ``window`` below 19 nothing is ever skipped
    there, here ``min_history`` is at most the window. Differs from MaxText's
    ``skip_step_on_spikes``, which follows OLMo-core, by a loss that is required:
    without one that skips nothing. Differs from Levanter's ``SkipStepConfig``, which
    takes the biased deviation, at least 1e-6, of ``window + 1`` values.

    References:
        Team OLMo, `2 OLMo 2 Furious <https://arxiv.org/abs/2501.00656>`_, 2025; the
        details are in `OLMo-core <https://github.com/allenai/OLMo-core>`_,
        ``olmo_core/optim/skip_step_optimizer.py``.
    """
    caller = "skip_spikes"
    inner = optax.with_extra_args_support(inner)
    axis_names = check_axis_name(axis_name)
    sigmas = _check_sigmas(sigmas)
    check_steps(caller, "window", window, 2)
    if min_history is not None:
        check_steps(caller, "min_history", min_history, 2, window)
    if watch not in get_args(Watch):
        raise ValueError(
            f"skip_spikes(watch={watch!r}): expected 'both', 'loss' or 'norm'."
        )

    def init(params: optax.Params) -> SkipSpikesState:
        if isinstance(window, jax.core.Tracer):
            raise ValueError(
                "skip_spikes: window is the length of an array, and was traced; "
                "expected an int. Use optax.inject_hyperparams(skip_spikes, "
                "static_args=('window',))."
            )
        dtype = accumulation_dtype(jax.tree.leaves(params))
        counts = ("count", "skipped_count", "consecutive", "nonfinite_count", "known")
        return SkipSpikesState(
            **zero_counts(*counts),
            losses=jnp.zeros((int(window),), dtype),
            norms=jnp.zeros((int(window),), dtype),
            inner_state=inner.init(params),
        )

    def update(
        updates: optax.Updates,
        state: SkipSpikesState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SkipSpikesState]:
        leaves, _ = split_leaves(updates, caller)
        taken, recorded = call_compiled(
            _judge,
            leaves if watch != "loss" else None,
            _find_loss(extra_args) if watch != "norm" else None,
            sigmas,
            min_history,
            state._replace(inner_state=None),
            axis_names=axis_names,
        )
        updates, inner_state = update_if(
            taken, inner, updates, state.inner_state, params, extra_args, caller
        )
        return updates, recorded._replace(inner_state=inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _judge(
    leaves: Sequence[jax.Array] | None,
    loss: jax.Array | None,
    sigmas: Scalar,
    min_history: Scalar | None,
    state: SkipSpikesState,
    *,
    axis_names: tuple[str, ...],
) -> tuple[jax.Array, SkipSpikesState]:
    """Return whether to take a step, and the state after it but for the inner one."""
    window = state.losses.shape[0]
    if min_history is None:
        min_history = min(max(20, window // 2) - 1, window)
    finite = jnp.asarray(True)
    spike = jnp.asarray(False)
    losses, norms = state.losses, state.norms

    if loss is not None:
        loss = _mean_over_devices(loss.astype(losses.dtype), axis_names)
        finite &= jnp.isfinite(loss)
        spike |= _stands_out(losses, state.known, loss, sigmas)
        losses = _append(losses, loss)
    if leaves is not None:
        norm = tree_norm(leaves, norm_type=2.0, axis_names=axis_names)
        finite &= norm.finite
        # The norm of finite gradients may overflow, and counts as the largest number.
        length = saturate(norm.value, norms.dtype)
        spike |= _stands_out(norms, state.known, length, sigmas)
        norms = _append(norms, length)

    least = jnp.asarray(min_history, jnp.int32)
    taken = finite & ~(spike & (state.known >= least))
    known = jnp.minimum(state.known + 1, window)
    return taken, SkipSpikesState(
        **tally(state, taken),
        nonfinite_count=count_if(~finite, state.nonfinite_count),
        known=jnp.where(finite, known, state.known),
        losses=jnp.where(finite, losses, state.losses),
        norms=jnp.where(finite, norms, state.norms),
        inner_state=None,
    )


def _stands_out(
    history: jax.Array, known: jax.Array, value: jax.Array, sigmas: Scalar
) -> jax.Array:
    """Whether a value is an outlier, above the last ``known`` ones of a history."""
    dtype = history.dtype
    slots = jnp.arange(history.shape[0], dtype=jnp.int32)
    held = slots >= history.shape[0] - known
    # What is added to all the values, or multiplies them, changes nothing. So take
    # them as differences from this one, which are exact where it is one of many that
    # are equal, and bring these to 1, so that no square leaves the range of the dtype.
    # By an eighth first: the reciprocals of the largest numbers are subnormal, and 0.
    gaps = jnp.where(held, 0.125 * history - 0.125 * value, 0.0)
    largest = jnp.max(jnp.abs(gaps))
    gaps = gaps / jnp.where(largest > 0, largest, 1.0)
    count = known.astype(dtype)
    mean = jnp.sum(gaps) / jnp.maximum(count, 1.0)
    squares = jnp.where(held, jnp.square(gaps - mean), 0.0)
    std = jnp.sqrt(jnp.sum(squares) / jnp.maximum(count - 1.0, 1.0))
    return -mean > jnp.asarray(sigmas, dtype) * std


def _append(history: jax.Array, value: jax.Array) -> jax.Array:
    return jnp.concatenate([history[1:], value[None]])


def _mean_over_devices(value: jax.Array, axis_names: tuple[str, ...]) -> jax.Array:
    axes = mesh_axes_of(value, axis_names)
    mean: jax.Array = lax.pmean(value, axes) if axes else value
    return mean


def _find_loss(extra_args: Mapping[str, Any]) -> jax.Array:
    loss = extra_args.get("value", extra_args.get("loss"))
    if loss is None:
        raise TypeError(
            "skip_spikes: got no loss; expected update(grads, state, params, "
            "value=loss). To watch the gradient norm alone, use "
            "skip_spikes(..., watch='norm')."
        )
    return jnp.asarray(check_scalar("skip_spikes.update", "value", loss))


def _check_sigmas(sigmas: Scalar) -> float | jax.Array:
    scalar = check_scalar("skip_spikes", "sigmas", sigmas)
    if isinstance(scalar, jax.core.Tracer) or scalar >= 0:
        return scalar
    raise ValueError(
        f"skip_spikes(sigmas={float(scalar)}): expected a number ≥ 0, such as the "
        "published 6; inf skips only steps that are not finite."
    )

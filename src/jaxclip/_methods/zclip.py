"""ZClip: clip the norms that stand out from those before."""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from jaxclip._core.arguments import (
    Scalar,
    check_between,
    check_choice,
    check_eps,
    check_steps,
    check_threshold,
)
from jaxclip._core.leaves import accumulation_dtype, saturate
from jaxclip._core.mesh import AxisName, check_axis_name
from jaxclip._core.nonfinite import Nonfinite
from jaxclip._core.scaling import Clipped, scale_to
from jaxclip._core.transformation import transformation
from jaxclip._methods._history import Leaves, in_dtype
from jaxclip._monitoring import ClipState, count_if, init_clip_state, record_clip
from jaxclip._norms import tree_norm

ClipOption = Literal["adaptive_scaling", "mean", "percentile"]


class ZClipState(NamedTuple):
    """What `zclip` remembers; scalars.

    Attributes:
        clip: What the clip did.
        observed: Norms learned from so far: steps whose elements were all finite.
            int32.
        mean: The mean of the norms; 0 before the first. Its dtype is that of
            ``clip.total_norm``, and norms too large for it count as its largest
            number.
        std: Their standard deviation: not its square, which would leave the range of
            the dtype where the norm does not.
    """

    clip: ClipState
    observed: jax.Array
    mean: jax.Array
    std: jax.Array


class _Settings(NamedTuple):
    weight: float | jax.Array
    z_thresh: float | jax.Array
    max_grad_norm: float | jax.Array
    eps: float | jax.Array
    warmup_steps: float | jax.Array
    clip_factor: float | jax.Array


def zclip(
    alpha: Scalar = 0.97,
    *,
    z_thresh: Scalar = 2.5,
    max_grad_norm: Scalar | None = 1.0,
    eps: Scalar = 1e-6,
    warmup_steps: Scalar = 25,
    clip_option: ClipOption = "adaptive_scaling",
    clip_factor: Scalar = 1.0,
    skip_update_on_spike: bool = False,
    nonfinite: Nonfinite = "propagate",
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Scale down updates whose norm is an outlier among the norms so far.

    .. math::
        z_t &= \frac{\|g_t\| - \mu}{\sigma + \text{eps}}, \qquad
        T_t = \mu + \frac{z_\text{thresh}\,\sigma}{z_t / z_\text{thresh}}
              \quad\text{if } z_t > z_\text{thresh}, \\
        g_t &\leftarrow \min\Big(1, \frac{\min(T_t, \text{max\_grad\_norm})}
               {\|g_t\| + \text{eps}}\Big)\, g_t, \\
        \mu &\leftarrow \alpha\,\mu + (1 - \alpha)\, n_t, \qquad
        \sigma^2 \leftarrow \alpha\,\sigma^2 + (1 - \alpha)(n_t - \mu)^2

    The further out a norm lies, the closer to the mean it is clipped. The moving
    averages take in :math:`n_t`: the threshold :math:`T_t` of a step that has one, and
    the norm of any other. For the first ``warmup_steps`` steps they are the plain mean
    and variance, and ``max_grad_norm`` alone clips.

    Args:
        alpha: How much of the averages is kept at each step, from 0 to 1.
        z_thresh: The z-score above which a norm is an outlier, ≥ 0.
        max_grad_norm: A bound on the norm at every step, ≥ 0; None for no bound.
        eps: Added to the standard deviation and to the norm, ≥ 0. With 0 the method
            does not depend on the unit of the gradients.
        warmup_steps: Steps to learn from before outliers are looked for, ≥ 1.
        clip_option: What an outlier is clipped to: "adaptive_scaling" to
            :math:`T_t`, "mean" to :math:`\mu`, "percentile" to
            :math:`\mu + z_\text{thresh}\,\sigma`, which is then also the norm from
            which on it is one.
        clip_factor: :math:`T_t` is multiplied by it under "adaptive_scaling", ≥ 0;
            below 1 clips harder.
        skip_update_on_spike: Leave outliers out of the averages.
        nonfinite: See `jaxclip.clip_by_global_norm`. Such a step is not learned from,
            whatever becomes of it.
        axis_name: See `jaxclip.global_norm`.

    Returns:
        A transformation whose state is a `ZClipState`.

    Raises:
        TypeError: A number is no scalar; in ``update``: a leaf is no inexact array.
        ValueError: An argument is out of range.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> optimizer = optax.chain(zclip(max_grad_norm=None), optax.sgd(1.0))
        >>> state = optimizer.init(jnp.zeros(1))
        >>> for step in range(25):
        ...     grad = jnp.array([1.0 + 0.1 * (-1) ** step])
        ...     _, state = optimizer.update(grad, state)
        >>> updates, state = optimizer.update(jnp.array([100.0]), state)
        >>> print(f"{updates[0]:.3f}")
        -1.005

    Differs from the package ``zclip``: a step that is not finite is left out of the
    averages, which there stay NaN for ever; while every norm so far was 0 none is an
    outlier, where there all are clipped to 0, and so for ever; norms are summed in at
    least float32. ``mode="percentile"`` there is ``clip_option="percentile"``. Its
    documentation has ``clip_factor`` multiply the standard deviation; here, as in its
    code, it multiplies the threshold.

    References:
        Kumar et al., `ZClip: Adaptive Spike Mitigation for LLM Pre-Training
        <https://arxiv.org/abs/2504.02507>`_, 2025.
    """
    check_choice("zclip", "clip_option", clip_option, get_args(ClipOption))
    bound = float("inf") if max_grad_norm is None else max_grad_norm
    settings = _Settings(
        weight=1.0 - check_between("zclip", "alpha", alpha, 0, 1),
        z_thresh=check_threshold("zclip", "z_thresh", z_thresh),
        max_grad_norm=check_threshold("zclip", "max_grad_norm", bound),
        eps=check_eps("zclip", eps),
        warmup_steps=check_steps("zclip", "warmup_steps", warmup_steps),
        clip_factor=check_threshold("zclip", "clip_factor", clip_factor),
    )
    return transformation(
        "zclip",
        _init,
        _step,
        settings,
        clip_option=clip_option,
        skip_update_on_spike=skip_update_on_spike,
        nonfinite=nonfinite,
        axis_names=check_axis_name(axis_name),
    )


def _init(params: optax.Params) -> ZClipState:
    dtype = accumulation_dtype(jax.tree.leaves(params))
    return ZClipState(
        clip=init_clip_state(params),
        observed=jnp.zeros((), jnp.int32),
        mean=jnp.zeros((), dtype),
        std=jnp.zeros((), dtype),
    )


def _step(
    leaves: Leaves,
    settings: _Settings,
    state: ZClipState,
    *,
    clip_option: ClipOption,
    skip_update_on_spike: bool,
    axis_names: tuple[str, ...],
) -> tuple[Clipped, ZClipState]:
    dtype = state.mean.dtype
    settings = in_dtype(settings, dtype)
    norm = tree_norm(leaves, norm_type=2.0, axis_names=axis_names)
    length = saturate(norm.value, dtype)
    learning = state.observed.astype(dtype) < settings.warmup_steps

    spike, threshold = _outlier(length, settings, state, clip_option)
    spike &= ~learning
    bound = jnp.where(spike, threshold, jnp.inf)
    clipped = scale_to(
        leaves, norm, jnp.minimum(bound, settings.max_grad_norm), settings.eps
    )

    mean, std = _averages(
        jnp.where(spike, threshold, length), settings, state, learning
    )
    learned = norm.finite & ~spike if skip_update_on_spike else norm.finite
    return clipped, ZClipState(
        clip=record_clip(state.clip, clipped),
        observed=count_if(learned, state.observed),
        mean=jnp.where(learned, mean, state.mean),
        std=jnp.where(learned, std, state.std),
    )


def _outlier(
    length: jax.Array, settings: _Settings, state: ZClipState, clip_option: ClipOption
) -> tuple[jax.Array, jax.Array]:
    """Return whether a norm is an outlier, and what it is then clipped to."""
    excess = length - state.mean
    spread = state.std if clip_option == "percentile" else state.std + settings.eps
    # Quotients such as the z-score would overflow where this product does not.
    spike = (excess > settings.z_thresh * spread) & (state.mean > 0)
    match clip_option:
        case "mean":
            return spike, state.mean
        case "percentile":
            return spike, state.mean + settings.z_thresh * state.std
        case "adaptive_scaling":
            shrinkage = settings.z_thresh * spread / jnp.where(spike, excess, 1.0)
            threshold = state.mean + settings.z_thresh * state.std * shrinkage
            return spike, settings.clip_factor * threshold


def _averages(
    observation: jax.Array,
    settings: _Settings,
    state: ZClipState,
    learning: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Return the mean and the standard deviation after one more observation."""
    dtype = observation.dtype
    nth = state.observed.astype(dtype) + 1.0
    weight = jnp.where(learning, 1.0 / nth, settings.weight)
    kept = 1.0 - weight
    excess = observation - state.mean
    mean = saturate(state.mean + weight * excess, dtype)
    # Exact for the plain variance; the published moving one takes both deviations
    # from the new mean.
    deviation = excess * jnp.where(learning, jnp.sqrt(kept), kept)
    std = jnp.hypot(jnp.sqrt(kept) * state.std, jnp.sqrt(weight) * deviation)
    return mean, std

"""Clippy: scale each tensor's step so that no element moves too far from its value."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxclip._core.arguments import Scalar, check_threshold
from jaxclip._core.exact_norms import TreeNorm
from jaxclip._core.leaves import accumulation_dtype
from jaxclip._core.mesh import AxisName, check_axis_name
from jaxclip._core.paths import matching_params
from jaxclip._core.scaling import Clipped, scale_each_to
from jaxclip._core.sums import magnitudes_in
from jaxclip._core.transformation import Threshold, checked_threshold, transformation
from jaxclip._monitoring import ClipState, init_clip_state, record_clip
from jaxclip._norms import group_norms


def clippy(
    relative: Threshold = 0.1,
    *,
    absolute: Scalar = 1e-7,
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Scale each tensor's step so that no element moves by more than a part of itself.

    .. math:: \Delta_k \leftarrow \min\Big(1, \min_i
              \frac{\text{relative}\,|w_{ki}| + \text{absolute}}{|\Delta_{ki}|}\Big)\,
              \Delta_k

    Δ is the step: what is added to the parameters w, the learning rate in it. So this
    belongs at the end of the chain, after the optimizer. One element that would move
    too far holds its whole tensor back, and the direction within it is kept.

    Args:
        relative: The largest change of an element, as a fraction of its magnitude; ≥
            0: a number, a scalar array, or a schedule, ``count -> relative``.
        absolute: The change allowed besides, > 0, in the unit of the parameters: what
            an element of 0 may move by, and with it, at the least, its tensor.
        axis_name: See `global_norm`.

    Returns:
        A transformation whose ``update`` needs the parameters. Its state is a
        `ClipState`: its norms are the largest ratio of an element's change to the one
        allowed, at most 1 afterwards; its coefficient is the smallest.

    Raises:
        TypeError: An argument is no scalar; in ``update``: a leaf is no inexact
            array.
        ValueError: An argument is out of range; in ``update``: the parameters are
            missing or of other shapes.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> optimizer = optax.chain(optax.sgd(0.5), clippy(0.25))
        >>> params = jnp.array([4.0, -2.0])
        >>> state = optimizer.init(params)
        >>> updates, state = optimizer.update(jnp.array([1.0, 4.0]), state, params)
        >>> print(updates.round(4), state[-1].clip_coef.round(4))
        [-0.125 -0.5  ] 0.25

    Differs from ``ClippyAdagrad`` of TensorFlow Recommenders, whose defaults these
    are: it is for every optimizer, which it does not see, so that Adagrad's
    accumulators take the gradients as they are (``clip_accumulator_update=False``)
    and have no share in the threshold (``accumulator_relative_threshold=0``).

    References:
        Tang et al., `Improving Training Stability for Multitask Ranking Models in
        Recommender Systems <https://arxiv.org/abs/2302.09178>`_, 2023.
    """
    absolute = check_threshold("clippy", "absolute", absolute)
    if not isinstance(absolute, jax.core.Tracer) and not 0 < absolute < jnp.inf:
        raise ValueError(
            f"clippy(absolute={float(absolute)}): expected a finite number > 0. With "
            "0 a parameter that is 0 would never move, nor its tensor."
        )

    return transformation(
        "clippy",
        init_clip_state,
        _clip_steps,
        (checked_threshold("clippy", "relative", relative), absolute),
        extras=lambda updates, params: (
            (matching_params(params, updates, "clippy"),),
            {},
        ),
        axis_names=check_axis_name(axis_name),
    )


def _clip_steps(
    leaves: Sequence[jax.Array],
    thresholds: tuple[Scalar, Scalar],
    state: ClipState,
    params: Sequence[jax.Array],
    *,
    axis_names: tuple[str, ...],
) -> tuple[Clipped, ClipState]:
    dtype = accumulation_dtype([*leaves, *params])
    relative, absolute = (jnp.asarray(x, dtype) for x in thresholds)

    def largest_ratios(unit: float) -> jax.Array:
        """Return each leaf's largest ratio of step to allowed step, times ``unit``."""
        ratios = [
            [
                magnitudes_in(leaf, dtype)
                * unit
                / (relative * magnitudes_in(param, dtype) + absolute)
            ]
            for leaf, param in zip(leaves, params, strict=True)
        ]
        return group_norms(ratios, norm_type=float("inf"), axis_names=axis_names).ratio

    ratios = largest_ratios(1.0)
    overflow = jnp.any(ratios == jnp.inf)
    # In this unit every ratio fits that is not of an infinite step, and none that
    # clips is lost.
    large = 2.0 ** (jnp.finfo(dtype).maxexp * 25 // 32)
    ratios = lax.cond(overflow, lambda: largest_ratios(1.0 / large), lambda: ratios)
    norms = TreeNorm(jnp.where(overflow, large, jnp.ones_like(ratios)), ratios)

    clipped = scale_each_to(leaves, norms, 1.0, 0.0)
    return clipped, record_clip(state, clipped)

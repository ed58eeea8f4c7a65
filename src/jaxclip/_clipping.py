"""Optax transformations that clip by a given threshold."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxclip._clip_grad import (
    check_real,
    clip_leaves_by_global_norm,
    clip_leaves_by_norm,
    clip_leaves_by_value,
)
from jaxclip._core.arguments import Scalar, check_eps
from jaxclip._core.mesh import AxisName, check_axis_name
from jaxclip._core.nonfinite import Nonfinite
from jaxclip._core.paths import Where
from jaxclip._core.scaling import Clipped
from jaxclip._core.transformation import Threshold, checked_threshold, transformation
from jaxclip._monitoring import ClipState, init_clip_state, record_clip
from jaxclip._norms import check_norm_type


def clip_by_global_norm(
    max_norm: Threshold,
    norm_type: Scalar = 2.0,
    *,
    eps: Scalar = 1e-6,
    where: Where | None = None,
    nonfinite: Nonfinite = "propagate",
    stop_gradient: bool = False,
    per_leaf: bool = False,
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Scale updates so that their joint norm is at most ``max_norm``.

    .. math:: g \leftarrow \min\Big(1, \frac{\text{max\_norm}}
              {\|g\|_p + \text{eps}}\Big)\, g

    What `clip_grad_norm` computes, as an Optax transformation. It belongs before the
    optimizer in ``optax.chain``, and costs one read of the updates: the
    multiplication is fused into what follows. `clip_metrics` says what it did.

    Args:
        max_norm: The largest norm allowed, ≥ 0: a number, a scalar array, or a
            schedule, ``count -> max_norm``, called with the number of steps so far.
        norm_type: p, a positive number or inf.
        eps: Added to the norm, ≥ 0. The default is torch's; 0 gives
            ``min(1, max_norm / norm)``, which is Optax's.
        where: The leaves to clip, whose norm it is: a tree of booleans like the
            updates or a prefix of one, or a function that returns one given the
            updates; `by_path` makes such a function of one of paths. The others pass
            as they are. None clips all.
        nonfinite: What becomes of a step on which an element is NaN or infinite.
            ``"propagate"`` returns NaN, as torch does; ``"zero"`` makes the whole step
            0; ``"raise"`` raises an error that names the leaves and counts the
            elements, under ``jit`` too. A norm that overflows does not make a step
            of finite elements one of these. To hold back the optimizer's state as
            well, use `skip_nonfinite`.
        stop_gradient: See `clip_grad_norm`.
        per_leaf: Keep each leaf's norm in the state, for
            ``clip_metrics(opt_state, per_leaf=True)``. Costs no further pass.
        axis_name: See `global_norm`.

    Returns:
        A transformation whose state is a `ClipState`.

    Raises:
        TypeError: ``max_norm`` is no scalar; in ``update``: a leaf is no inexact
            array.
        ValueError: An argument is out of range; in ``update``: ``where`` does not fit.
        RuntimeError: In ``update``: a step is not finite, with ``nonfinite="raise"``.

    Example:
        >>> import jax.numpy as jnp, jaxclip, optax
        >>> optimizer = optax.chain(jaxclip.clip_by_global_norm(1.0), optax.sgd(0.1))
        >>> params = {"w": jnp.zeros(2), "b": jnp.zeros(1)}
        >>> opt_state = optimizer.init(params)
        >>> grads = {"w": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}
        >>> updates, opt_state = optimizer.update(grads, opt_state, params)
        >>> print(updates["w"], updates["b"])
        [-0.05999999 -0.        ] [-0.07999998]
        >>> print(jaxclip.clip_metrics(opt_state).total_norm)
        5.0

        A threshold that falls from 1 to 0.1 over the first thousand steps:

        >>> schedule = optax.linear_schedule(1.0, 0.1, transition_steps=1000)
        >>> optimizer = optax.chain(clip_by_global_norm(schedule), optax.adam(1e-3))

    Differs from ``optax.clip_by_global_norm``: ``eps`` defaults to torch's 1e-6, so
    that updates whose norm equals ``max_norm`` are scaled a little; norms are summed
    in at least float32 and neither overflow nor underflow; thresholds may be traced,
    arrays or schedules, for updates of every dtype; updates of norm 0 stay 0 with
    ``max_norm=0``; inside ``shard_map`` the norm is that of the whole tree.

    References:
        Pascanu et al., `On the Difficulty of Training Recurrent Neural Networks
        <https://arxiv.org/abs/1211.5063>`_, 2013.
    """
    return threshold_clip(
        "clip_by_global_norm",
        "max_norm",
        max_norm,
        clip_leaves_by_global_norm,
        norm_type=check_norm_type(norm_type, "clip_by_global_norm"),
        eps=check_eps("clip_by_global_norm", eps),
        where=where,
        nonfinite=nonfinite,
        stop_gradient=stop_gradient,
        per_leaf=per_leaf,
        axis_names=check_axis_name(axis_name),
    )


def clip_by_norm(
    max_norm: Threshold,
    norm_type: Scalar = 2.0,
    *,
    eps: Scalar = 1e-6,
    where: Where | None = None,
    nonfinite: Nonfinite = "propagate",
    stop_gradient: bool = False,
    per_leaf: bool = False,
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Scale each leaf of the updates so that its own norm is at most ``max_norm``.

    .. math:: g_k \leftarrow \min\Big(1, \frac{\text{max\_norm}}
              {\|g_k\|_p + \text{eps}}\Big)\, g_k

    Args:
        max_norm: The largest norm allowed to each leaf, ≥ 0: a number, a scalar
            array, or a schedule.
        norm_type: p, a positive number or inf.
        eps: Added to each norm, ≥ 0.
        where: See `clip_by_global_norm`, as for the next three.
        nonfinite: A leaf that is not finite makes the whole step so.
        stop_gradient: Take the coefficients for constants in derivatives.
        per_leaf: Keep each leaf's norm in the state.
        axis_name: See `global_norm`.

    Returns:
        A transformation whose state is a `ClipState`. Its norms are those of the
        leaf with the largest one, its coefficient is the smallest, and a step counts
        as clipped when any leaf was.

    Raises:
        TypeError: ``max_norm`` is no scalar; in ``update``: a leaf is no inexact
            array.
        ValueError: An argument is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> clip = clip_by_norm(1.0, eps=0.0)
        >>> grads = {"w": jnp.array([3.0, 4.0]), "b": jnp.array([0.5])}
        >>> clip.update(grads, clip.init(grads))[0]
        {'b': Array([0.5], dtype=float32), 'w': Array([0.6, 0.8], dtype=float32)}

    Differs from ``torch.nn.utils.clip_grad_norm_`` on each parameter in turn as
    `clip_grad_norm` does.
    """
    return threshold_clip(
        "clip_by_norm",
        "max_norm",
        max_norm,
        clip_leaves_by_norm,
        norm_type=check_norm_type(norm_type, "clip_by_norm"),
        eps=check_eps("clip_by_norm", eps),
        where=where,
        nonfinite=nonfinite,
        stop_gradient=stop_gradient,
        per_leaf=per_leaf,
        axis_names=check_axis_name(axis_name),
    )


def clip_by_value(
    clip_value: Threshold, *, axis_name: AxisName = None
) -> optax.GradientTransformationExtraArgs:
    r"""Limit every element of the updates to ``[-clip_value, clip_value]``.

    .. math:: g_i \leftarrow \max(-\text{clip\_value}, \min(\text{clip\_value}, g_i))

    What `clip_grad_value` computes, as an Optax transformation.

    Args:
        clip_value: The largest magnitude allowed, ≥ 0: a number, a scalar array, or
            a schedule.
        axis_name: See `global_norm`; needed for the state alone.

    Returns:
        A transformation whose state is a `ClipState`. Its norms are the largest
        magnitudes, its coefficient is what the largest element was multiplied by.

    Raises:
        TypeError: ``clip_value`` is no scalar; in ``update``: a leaf is complex, or
            no inexact array.
        ValueError: ``clip_value`` is negative or NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> clip = clip_by_value(1.0)
        >>> grads = [jnp.array([-4.0, 0.5])]
        >>> updates, state = clip.update(grads, clip.init(grads))
        >>> print(updates, state.clip_coef)
        [Array([-1. ,  0.5], dtype=float32)] 0.25

    Differs from ``optax.clip``: a negative ``clip_value`` is an error and does not
    set every element to it; leaves keep their dtype when it is an array.
    """
    return threshold_clip(
        "clip_by_value",
        "clip_value",
        clip_value,
        clip_leaves_by_value,
        check=check_real,
        axis_names=check_axis_name(axis_name),
    )


def threshold_clip(
    caller: str,
    name: str,
    threshold: Threshold,
    clip: Callable[..., Clipped],
    *,
    per_leaf: bool = False,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    """Make a transformation of a clip that is given its threshold.

    Args:
        caller: The public function's name, for errors.
        name: The name of its threshold.
        threshold: A number, a scalar array, or a schedule.
        clip: ``clip(leaves, threshold, **options) -> Clipped``, which takes
            ``per_leaf=True`` if this is given it.
        per_leaf: Keep each leaf's norm in the state.
        **options: Of `transformation`, or compile-time constants for ``clip``.
    """
    if per_leaf:
        options["per_leaf"] = True
    return transformation(
        caller,
        functools.partial(init_clip_state, per_leaf=per_leaf),
        _clip_and_record,
        checked_threshold(caller, name, threshold),
        clip=clip,
        **options,
    )


def _clip_and_record(
    leaves: list[jax.Array],
    threshold: Scalar,
    state: ClipState,
    *,
    clip: Callable[..., Clipped],
    **options: Any,
) -> tuple[Clipped, ClipState]:
    clipped = clip(leaves, threshold, **options)
    return clipped, record_clip(state, clipped)

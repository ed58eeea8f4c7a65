"""Clip each tensor by the root of the mean square of its elements."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxclip._clipping import threshold_clip
from jaxclip._core.arguments import Scalar
from jaxclip._core.exact_norms import TreeNorm
from jaxclip._core.leaves import accumulation_dtype
from jaxclip._core.mesh import AxisName, check_axis_name, mesh_axes_of
from jaxclip._core.nonfinite import Nonfinite
from jaxclip._core.paths import Where
from jaxclip._core.scaling import Clipped, scale_each_to
from jaxclip._core.transformation import Threshold
from jaxclip._norms import group_norms


def clip_by_block_rms(
    threshold: Threshold,
    *,
    where: Where | None = None,
    nonfinite: Nonfinite = "propagate",
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Scale each leaf so that its root mean square is at most ``threshold``.

    .. math:: u_k \leftarrow \frac{u_k}{\max(1, \text{RMS}(u_k) / \text{threshold})},
              \qquad \text{RMS}(u) = \sqrt{\textstyle\frac{1}{n} \sum_i |u_i|^2}

    Unlike a norm, this asks no more of a large tensor than of a small one.

    Args:
        threshold: The largest root mean square allowed to each leaf, ≥ 0: a number, a
            scalar array, or a schedule, ``count -> threshold``.
        where: The leaves to clip; see `clip_by_global_norm`.
        nonfinite: See `clip_by_global_norm`.
        axis_name: See `global_norm`.

    Returns:
        A transformation whose state is a `ClipState`. Its norms are those root mean
        squares, of the leaf with the largest one; its coefficient is the smallest,
        and a step counts as clipped when any leaf was.

    Raises:
        TypeError: ``threshold`` is no scalar; in ``update``: a leaf is no inexact
            array.
        ValueError: ``threshold`` is negative or NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> clip = clip_by_block_rms(1.0)
        >>> grads = {"w": jnp.array([4.0, 0.0, 0.0, 0.0]), "b": jnp.array([0.5])}
        >>> updates, state = clip.update(grads, clip.init(grads))
        >>> print(updates["w"], updates["b"], state.total_norm)
        [2. 0. 0. 0.] [0.5] 2.0

    Differs from ``optax.clip_by_block_rms``: means of squares are formed in at least
    float32 and neither overflow nor underflow; leaves keep their dtype when
    ``threshold`` is an array; leaves of zeros stay as they are with a ``threshold``
    of 0; inside ``shard_map`` the mean is that of the whole leaf.

    References:
        Shazeer and Stern, `Adafactor: Adaptive Learning Rates with Sublinear Memory
        Cost <https://arxiv.org/abs/1804.04235>`_, 2018.
    """
    return threshold_clip(
        "clip_by_block_rms",
        "threshold",
        threshold,
        clip_leaves_by_rms,
        where=where,
        nonfinite=nonfinite,
        axis_names=check_axis_name(axis_name),
    )


def clip_by_update_rms(
    d: Threshold = 1.0,
    *,
    where: Where | None = None,
    nonfinite: Nonfinite = "propagate",
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Scale each preconditioned update so that its root mean square is at most d.

    .. math:: \hat u_k = \frac{u_k}{\max(1, \text{RMS}(u_k) / d)}

    Adafactor's update clipping, for any optimizer that divides by the root of a second
    moment: such updates have a root mean square near 1, and one that exceeds it says
    that the second moment lags behind the gradients. It belongs after that division
    and before the learning rate, and so inside of what Optax's ready-made optimizers
    chain.

    Args:
        d: The largest root mean square allowed to each leaf, ≥ 0: a number, a scalar
            array, or a schedule. 1 is the paper's.
        where: The leaves to clip; see `clip_by_global_norm`.
        nonfinite: See `clip_by_global_norm`.
        axis_name: See `global_norm`.

    Returns:
        A transformation whose state is a `ClipState`, as that of `clip_by_block_rms`.

    Raises:
        TypeError: ``d`` is no scalar; in ``update``: a leaf is no inexact array.
        ValueError: ``d`` is negative or NaN.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> optimizer = optax.chain(
        ...     optax.scale_by_rms(decay=0.999),
        ...     clip_by_update_rms(),
        ...     optax.scale_by_learning_rate(1e-3),
        ... )
        >>> params = {"w": jnp.zeros(4)}
        >>> state = optimizer.init(params)
        >>> _, state = optimizer.update({"w": jnp.ones(4)}, state, params)
        >>> print(f"{state[1].total_norm:.2f} {state[1].clipped_norm:.2f}")
        31.62 1.00

    Differs from `clip_by_block_rms` in the default and in its place in the chain;
    from the clipping in ``torch.optim.Adafactor`` and ``optax.adafactor`` as
    `clip_by_block_rms` does from its namesake.

    References:
        Shazeer and Stern, `Adafactor: Adaptive Learning Rates with Sublinear Memory
        Cost <https://arxiv.org/abs/1804.04235>`_, 2018.
    """
    return threshold_clip(
        "clip_by_update_rms",
        "d",
        d,
        clip_leaves_by_rms,
        where=where,
        nonfinite=nonfinite,
        axis_names=check_axis_name(axis_name),
    )


def clip_leaves_by_rms(
    leaves: Sequence[jax.Array], threshold: Scalar, *, axis_names: tuple[str, ...]
) -> Clipped:
    """Clip each leaf by its root mean square; report the largest."""
    dtype = accumulation_dtype(leaves)
    # A root mean square is a norm over the root of the size, so that one this far
    # below the threshold belongs to a norm this far below it too.
    negligible = jnp.asarray(threshold, dtype) * float(jnp.finfo(dtype).eps)
    norms = group_norms(
        [[leaf] for leaf in leaves],
        norm_type=2.0,
        axis_names=axis_names,
        negligible=negligible,
    )
    roots = np.sqrt([max(_size(leaf, axis_names), 1) for leaf in leaves])
    rms = TreeNorm(norms.scale, norms.ratio * jnp.asarray(1.0 / roots, dtype))
    return scale_each_to(leaves, rms, threshold, 0.0)


def _size(leaf: jax.Array, axis_names: tuple[str, ...]) -> int:
    """Count a leaf's elements, on all shards."""
    shards = map(lax.axis_size, mesh_axes_of(leaf, axis_names))
    return leaf.size * math.prod(shards)

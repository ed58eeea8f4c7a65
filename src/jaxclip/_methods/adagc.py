"""AdaGC: clip each tensor by the norms that it has had."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip._core.arguments import Scalar, check_between, check_steps, check_threshold
from jaxclip._core.leaves import accumulation_dtype, has_norm, saturate
from jaxclip._core.mesh import AxisName, check_axis_name
from jaxclip._core.nonfinite import Nonfinite
from jaxclip._core.scaling import ClipFactors, Clipped, clip_factors, scale_each
from jaxclip._core.transformation import transformation
from jaxclip._methods._history import Leaves, in_dtype
from jaxclip._monitoring import ClipState, count_if, init_clip_state, record_clip
from jaxclip._norms import group_norms, joint_norm, tree_norm


class AdaGCState(NamedTuple):
    """What `adagc` remembers.

    Attributes:
        clip: What the clip did. Its norms are those of all leaves together, and its
            coefficient is the smallest of any leaf.
        observed: Steps learned from so far: those whose elements were all finite. An
            int32 scalar.
        gamma: The norm that each leaf is held against, in an array of (leaves,), in
            the order of the tree; 0 where none is known. Its dtype is that of
            ``clip.total_norm``.
    """

    clip: ClipState
    observed: jax.Array
    gamma: jax.Array


class _Settings(NamedTuple):
    lambda_rel: float | jax.Array
    lambda_abs: float | jax.Array
    weight: float | jax.Array
    warmup_steps: float | jax.Array


def adagc(
    lambda_rel: Scalar = 1.05,
    *,
    lambda_abs: Scalar = 1.0,
    beta: Scalar = 0.98,
    warmup_steps: Scalar = 100,
    nonfinite: Nonfinite = "propagate",
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Scale each leaf of the updates by a moving average of its own clipped norms.

    .. math::
        \hat g_{t,k} &= \begin{cases}
            \min\big(1, \lambda_\text{abs} / \|g_t\|\big)\, g_{t,k}
                & t < \text{warmup\_steps} \\
            \min\big(1, \lambda_\text{rel}\, \gamma_k / \|g_{t,k}\|\big)\, g_{t,k}
                & \text{otherwise}
        \end{cases} \\
        \gamma_k &\leftarrow \begin{cases}
            \min(\gamma_k, \|\hat g_{t,k}\|) & t < \text{warmup\_steps} \\
            \beta\,\gamma_k + (1 - \beta)\,\|\hat g_{t,k}\| & \text{otherwise}
        \end{cases}

    Steps :math:`t` count from 1, and leaves are :math:`k`. Before ``warmup_steps`` the
    joint norm is clipped, and each :math:`\gamma_k` is the least norm so far.

    Args:
        lambda_rel: How far a leaf's norm may exceed its average, as a factor, ≥ 0.
        lambda_abs: The largest joint norm allowed before ``warmup_steps``, ≥ 0.
        beta: How much of the average is kept at each step, from 0 to 1.
        warmup_steps: The first step on which leaves are clipped by their own norms,
            ≥ 1.
        nonfinite: See `jaxclip.clip_by_global_norm`. Such a step is not learned from,
            whatever becomes of it.
        axis_name: See `jaxclip.global_norm`.

    Returns:
        A transformation whose state is an `AdaGCState`.

    Raises:
        TypeError: A number is no scalar; in ``update``: a leaf is no inexact array.
        ValueError: An argument is out of range; in ``update``: there are not as many
            leaves as in ``init``.

    Example:
        >>> import jax.numpy as jnp
        >>> clip = adagc(lambda_abs=10.0, warmup_steps=2)
        >>> grads = {"w": jnp.array([3.0, 4.0]), "b": jnp.array([1.0])}
        >>> state = clip.init(grads)
        >>> _, state = clip.update(grads, state)
        >>> spike = {"w": jnp.array([3.0, 4.0]), "b": jnp.array([100.0])}
        >>> updates, state = clip.update(spike, state)
        >>> print(updates["w"], updates["b"])
        [3. 4.] [1.05]

    Differs from the paper where a leaf's norm is 0 before ``warmup_steps``, as that of
    a branch is that starts at zero: there :math:`\gamma_k` becomes 0 and the leaf is
    not moved again; here that step says nothing of the leaf, and a leaf of which
    nothing is known is clipped as before ``warmup_steps``. Differs from
    pytorch_optimizer's ``AdaGC``, which keeps :math:`\gamma_k` from falling below its
    ``eps``, from where it grows by a thousandth at each step. A step that is not
    finite is left out of all averages.

    References:
        Wang et al., `AdaGC: Enhancing LLM Pretraining Stability via Adaptive Gradient
        Clipping <https://arxiv.org/abs/2502.11034>`_, 2025.
    """
    return transformation(
        "adagc",
        _init,
        _step,
        _Settings(
            lambda_rel=check_threshold("adagc", "lambda_rel", lambda_rel),
            lambda_abs=check_threshold("adagc", "lambda_abs", lambda_abs),
            weight=1.0 - check_between("adagc", "beta", beta, 0, 1),
            warmup_steps=check_steps("adagc", "warmup_steps", warmup_steps),
        ),
        nonfinite=nonfinite,
        axis_names=check_axis_name(axis_name),
    )


def _init(params: optax.Params) -> AdaGCState:
    leaves = jax.tree.leaves(params)
    return AdaGCState(
        clip=init_clip_state(params),
        observed=jnp.zeros((), jnp.int32),
        gamma=jnp.zeros((sum(map(has_norm, leaves)),), accumulation_dtype(leaves)),
    )


def _step(
    leaves: Leaves,
    settings: _Settings,
    state: AdaGCState,
    *,
    axis_names: tuple[str, ...],
) -> tuple[Clipped, AdaGCState]:
    _check_count(leaves, state.gamma)
    dtype = state.gamma.dtype
    settings = in_dtype(settings, dtype)
    norms = group_norms(
        [[leaf] for leaf in leaves], norm_type=2.0, axis_names=axis_names
    )
    joint = joint_norm(norms)

    step = (state.observed + 1).astype(dtype)
    together = (step < settings.warmup_steps) | (state.gamma == 0)
    factors: ClipFactors = jax.tree.map(
        lambda jointly, alone: jnp.where(together, jointly, alone),
        clip_factors(joint, settings.lambda_abs, 0.0),
        clip_factors(norms, settings.lambda_rel * state.gamma, 0.0),
    )
    after = factors.norm_after(norms)

    finite = jnp.all(norms.finite)
    gamma = _learn(state.gamma, saturate(after, dtype), settings, together)
    clipped = Clipped(
        scale_each(leaves, factors, range(len(leaves))),
        joint.value,
        tree_norm([after], norm_type=2.0).value,
        jnp.min(factors.clip_coef, initial=1.0),
        finite,
    )
    return clipped, AdaGCState(
        clip=record_clip(state.clip, clipped),
        observed=count_if(finite, state.observed),
        gamma=jnp.where(finite, gamma, state.gamma),
    )


def _check_count(leaves: Leaves, gamma: jax.Array) -> None:
    if len(leaves) != gamma.size:
        raise ValueError(
            f"adagc: got updates with {len(leaves)} leaves, expected {gamma.size}, as "
            "many as the parameters had that init was given. Give init the same tree."
        )


def _learn(
    gamma: jax.Array, observed: jax.Array, settings: _Settings, together: jax.Array
) -> jax.Array:
    """Return each leaf's norm to be held against, after one more of its norms."""
    least = jnp.where(gamma == 0, observed, jnp.minimum(gamma, observed))
    least = jnp.where(observed == 0, gamma, least)
    average = gamma + settings.weight * (observed - gamma)
    return jnp.where(together, least, average)

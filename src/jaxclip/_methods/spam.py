"""SPAM's clip: elements that stand out from what they have been."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip._clip_grad import check_real
from jaxclip._core.arguments import Scalar, check_between, check_steps, check_threshold
from jaxclip._core.leaves import accumulation_dtype, has_norm, saturate, split_leaves
from jaxclip._core.mesh import AxisName, check_axis_name
from jaxclip._core.scaling import Clipped
from jaxclip._core.transformation import transformation
from jaxclip._methods._history import Leaves, in_dtype
from jaxclip._monitoring import ClipState, count_if, init_clip_state, record_clip
from jaxclip._norms import tree_norm


class SpamClipState(NamedTuple):
    """What `spam_clip` remembers.

    Attributes:
        clip: What the clip did. Its norms are those of all elements together, and its
            coefficient is the smallest that any element was multiplied by.
        observed: Steps learned from so far: those whose elements were all finite. An
            int32 scalar.
        rms: The square root of each element's second moment, in a tree like the
            parameters: float64 for a parameter that is, otherwise float32. Squares
            would leave the range of the dtype where the elements do not.
    """

    clip: ClipState
    observed: jax.Array
    rms: Any


class _Settings(NamedTuple):
    theta: float | jax.Array
    weight: float | jax.Array
    warmup_steps: float | jax.Array


def spam_clip(
    theta: Scalar = 5000.0,
    *,
    b2: Scalar = 0.999,
    warmup_steps: Scalar = 20,
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Limit elements of the updates whose square exceeds their second moment by far.

    .. math::
        \hat g_t &= \begin{cases}
            \operatorname{sign}(g_t) \sqrt{\theta\, v}
                & g_t^2 > \theta\, v \text{ and } t \ge \text{warmup\_steps} \\
            g_t & \text{otherwise}
        \end{cases} \\
        v &\leftarrow b_2\, v + (1 - b_2)\, \hat g_t^2

    for each element by itself; steps :math:`t` count from 1. This is the spike-aware
    clipping of SPAM alone: its resets of the moments, its warm-up after them and its
    sparse moments are matters of an optimizer. The moment :math:`v` starts from 0 and
    is not corrected for that, as published, so that ``warmup_steps`` matters: after
    one step, twice the first gradient is a spike.

    Args:
        theta: How far the square of an element may exceed its second moment, as a
            factor, ≥ 0; inf clips nothing.
        b2: How much of the second moment is kept at each step, from 0 to 1.
        warmup_steps: The first step on which elements are clipped, ≥ 1. Published as
            ``grad_accu_steps``, though no gradients are accumulated.
        axis_name: See `jaxclip.global_norm`; needed for the norms and for a decision
            alone: whether every element of a step is finite.

    Returns:
        A transformation whose state is a `SpamClipState`, of the size of the
        parameters.

    Raises:
        TypeError: A number is no scalar; in ``update``: a leaf is complex, or no
            inexact array.
        ValueError: An argument is out of range; in ``update``: the leaves are not
            those of ``init``.

    Example:
        >>> import jax.numpy as jnp
        >>> clip = spam_clip(theta=100.0, b2=0.75, warmup_steps=2)
        >>> state = clip.init(jnp.zeros(2))
        >>> _, state = clip.update(jnp.array([1.0, 1.0]), state)
        >>> clip.update(jnp.array([-9.0, 4.0]), state)[0]
        Array([-5.,  4.], dtype=float32)

    Differs from the published code, and from the formula read to the letter, where
    :math:`v` is 0: there whatever comes is a spike and becomes 0, and so :math:`v`
    stays 0; an embedding whose token is not among the first ``warmup_steps`` batches
    is not trained until the moments are reset, and with ``grad_accu_steps=1`` nothing
    is. Here an element of which nothing is known is not clipped. Differs further: a
    ``theta`` of 0 does not switch the clip off; a step that is not finite is left out
    of all moments.

    References:
        Huang et al., `SPAM: Spike-Aware Adam with Momentum Reset for Stable LLM
        Training <https://arxiv.org/abs/2501.06842>`_, 2025.
    """
    return transformation(
        "spam_clip",
        _init,
        _step,
        _Settings(
            theta=check_threshold("spam_clip", "theta", theta),
            # 1 - b2 in float32, of b2 in float32, would be off by 1e-5.
            weight=1.0 - check_between("spam_clip", "b2", b2, 0, 1),
            warmup_steps=check_steps("spam_clip", "warmup_steps", warmup_steps),
        ),
        check=check_real,
        axis_names=check_axis_name(axis_name),
    )


def _init(params: optax.Params) -> SpamClipState:
    def zeros(leaf: Any) -> jax.Array | None:
        if not has_norm(leaf):
            return None
        return jnp.zeros_like(leaf, dtype=accumulation_dtype([leaf]))

    return SpamClipState(
        clip=init_clip_state(params),
        observed=jnp.zeros((), jnp.int32),
        rms=jax.tree.map(zeros, params),
    )


def _step(
    leaves: Leaves,
    settings: _Settings,
    state: SpamClipState,
    *,
    axis_names: tuple[str, ...],
) -> tuple[Clipped, SpamClipState]:
    rms, rebuild = split_leaves(state.rms, "spam_clip")
    _check_shapes(leaves, rms)
    norm = tree_norm(leaves, norm_type=2.0, axis_names=axis_names)
    dtype = state.clip.total_norm.dtype
    step = (state.observed + 1).astype(dtype)
    clips = step >= in_dtype(settings.warmup_steps, dtype)

    steps = [
        _clip_elements(leaf, root, settings, clips)
        for leaf, root in zip(leaves, rms, strict=True)
    ]
    excess = tree_norm(
        [step.excess for step in steps], norm_type=float("inf"), axis_names=axis_names
    )
    after = [step.leaf for step in steps]
    clipped = Clipped(
        after,
        norm.value,
        tree_norm(after, norm_type=2.0, axis_names=axis_names).value,
        1.0 / jnp.maximum(excess.value, 1.0),
        norm.finite,
    )
    learned = [
        jnp.where(norm.finite, step.rms, root)
        for step, root in zip(steps, rms, strict=True)
    ]
    return clipped, SpamClipState(
        clip=record_clip(state.clip, clipped),
        observed=count_if(norm.finite, state.observed),
        rms=rebuild(learned),
    )


class _ClippedElements(NamedTuple):
    """A leaf after the clip, and the like-shaped arrays that go with it.

    Attributes:
        leaf: The clipped leaf.
        rms: Its new second moments' roots.
        excess: What its elements were divided by; 1 where they were not clipped.
    """

    leaf: jax.Array
    rms: jax.Array
    excess: jax.Array


def _clip_elements(
    leaf: jax.Array, rms: jax.Array, settings: _Settings, clips: jax.Array
) -> _ClippedElements:
    wide = accumulation_dtype([leaf, rms])
    settings = in_dtype(settings, wide)
    elements, root = leaf.astype(wide), rms.astype(wide)
    limit = jnp.sqrt(settings.theta) * root
    spikes = clips & (root > 0) & (jnp.abs(elements) > limit)
    clipped = jnp.where(spikes, jnp.sign(elements) * limit, elements)
    learned = jnp.hypot(
        jnp.sqrt(1.0 - settings.weight) * root, jnp.sqrt(settings.weight) * clipped
    )
    excess = jnp.abs(elements) / jnp.where(spikes, limit, 1.0)
    return _ClippedElements(
        leaf=clipped.astype(leaf.dtype),
        rms=saturate(learned, rms.dtype),
        excess=jnp.where(spikes, excess, 1.0),
    )


def _check_shapes(leaves: Sequence[jax.Array], rms: Sequence[jax.Array]) -> None:
    got, expected = ([leaf.shape for leaf in tree] for tree in (leaves, rms))
    if got != expected:
        raise ValueError(
            f"spam_clip: got updates whose leaves have the shapes {got}, expected "
            f"{expected}, those of the parameters that init was given. Give init the "
            "same tree."
        )

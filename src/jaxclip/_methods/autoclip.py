"""AutoClip: clip to a percentile of the norms so far."""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from jaxclip._core.arguments import (
    Scalar,
    check_between,
    check_choice,
    check_eps,
    check_steps,
)
from jaxclip._core.leaves import accumulation_dtype, saturate
from jaxclip._core.mesh import AxisName, check_axis_name
from jaxclip._core.nonfinite import Nonfinite
from jaxclip._core.scaling import Clipped, scale_to
from jaxclip._core.transformation import transformation
from jaxclip._methods._history import Leaves, in_dtype
from jaxclip._monitoring import ClipState, count_if, init_clip_state, record_clip
from jaxclip._norms import tree_norm

Rule = Literal["paper", "package"]


class AutoClipState(NamedTuple):
    """What `autoclip` remembers.

    Attributes:
        clip: What the clip did.
        observed: Norms learned from so far: steps whose elements were all finite. An
            int32 scalar.
        history: The last of these norms, in an array of (window,) that is written
            round and round; 0 where none has been written. Its dtype is that of
            ``clip.total_norm``, and norms too large for it count as its largest
            number.
    """

    clip: ClipState
    observed: jax.Array
    history: jax.Array


class _Settings(NamedTuple):
    percentile: float | jax.Array
    eps: float | jax.Array


def autoclip(
    percentile: Scalar = 10.0,
    *,
    window: int = 1000,
    rule: Rule = "paper",
    eps: Scalar = 0.0,
    nonfinite: Nonfinite = "propagate",
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Scale updates down to a percentile of the norms of the last steps.

    .. math:: g_t \leftarrow \min\Big(1, \frac{T_t}{\|g_t\| + \text{eps}}\Big)\, g_t,
              \qquad T_t = \text{percentile}\{\|g_1\|, \dots, \|g_t\|\}

    Norms enter the history as they are before clipping. With the default percentile
    nine steps in ten are clipped.

    Args:
        percentile: From 0 to 100; between two norms it is interpolated linearly.
        window: How many norms are remembered, ≥ 1. The paper remembers all; up to
            this many steps that is the same. With ``optax.inject_hyperparams`` under
            ``jit``, name it among the ``static_args``.
        rule: "paper": the history includes the norm of the step that is clipped by
            it. "package": it does not, and the first step is not clipped; so does
            the package ``autoclip``, whose defaults are
            ``autoclip(90.0, window=1000, rule="package")``.
        eps: Added to the norm, ≥ 0. The paper has none; the authors' code and the
            package clip with torch's 1e-6.
        nonfinite: See `jaxclip.clip_by_global_norm`. Such a step is not learned from,
            whatever becomes of it.
        axis_name: See `jaxclip.global_norm`.

    Returns:
        A transformation whose state is an `AutoClipState`.

    Raises:
        TypeError: A number is no scalar; in ``update``: a leaf is no inexact array.
        ValueError: An argument is out of range; in ``init``: ``window`` is traced.

    Example:
        >>> import jax.numpy as jnp
        >>> clip = autoclip(50.0)
        >>> state = clip.init(jnp.zeros(1))
        >>> for length in [1.0, 2.0, 6.0]:
        ...     updates, state = clip.update(jnp.array([length]), state)
        >>> print(f"{updates[0]:.4f}")
        2.0000

    Differs from the paper by its window. Differs from the package, version 0.2.1,
    which clips each parameter by its own history unless ``global_threshold`` is set.
    Differs from both: a step that is not finite is left out of the history, which in
    the package makes every step NaN until it leaves the window; updates of norm 0
    are not counted as clipped.

    References:
        Seetharaman et al., `AutoClip: Adaptive Gradient Clipping for Source
        Separation Networks <https://arxiv.org/abs/2007.14469>`_, 2020.
    """
    check_choice("autoclip", "rule", rule, get_args(Rule))
    check_steps("autoclip", "window", window)

    def init(params: optax.Params) -> AutoClipState:
        dtype = accumulation_dtype(jax.tree.leaves(params))
        return AutoClipState(
            clip=init_clip_state(params),
            observed=jnp.zeros((), jnp.int32),
            history=jnp.zeros((_known(window),), dtype),
        )

    return transformation(
        "autoclip",
        init,
        _step,
        _Settings(
            percentile=check_between("autoclip", "percentile", percentile, 0, 100),
            eps=check_eps("autoclip", eps),
        ),
        rule=rule,
        nonfinite=nonfinite,
        axis_names=check_axis_name(axis_name),
    )


def _known(window: Any) -> int:
    if isinstance(window, jax.core.Tracer):
        raise ValueError(
            "autoclip: window is the length of an array, and was traced; expected an "
            "int. Use optax.inject_hyperparams(autoclip, static_args=('window',))."
        )
    return int(window)


def _step(
    leaves: Leaves,
    settings: _Settings,
    state: AutoClipState,
    *,
    rule: Rule,
    axis_names: tuple[str, ...],
) -> tuple[Clipped, AutoClipState]:
    dtype = state.history.dtype
    settings = in_dtype(settings, dtype)
    norm = tree_norm(leaves, norm_type=2.0, axis_names=axis_names)

    slots = jnp.arange(state.history.size, dtype=jnp.int32)
    here = (slots == state.observed % state.history.size) & norm.finite
    history = jnp.where(here, saturate(norm.value, dtype), state.history)
    observed = count_if(norm.finite, state.observed)

    known = (history, observed) if rule == "paper" else (state.history, state.observed)
    threshold = _percentile(*known, settings.percentile)
    # A percentile of 0 would make a norm of 0 look clipped.
    threshold = jnp.where(norm.ratio == 0, jnp.inf, threshold)
    clipped = scale_to(leaves, norm, threshold, settings.eps)
    return clipped, AutoClipState(
        clip=record_clip(state.clip, clipped),
        observed=observed,
        history=history,
    )


def _percentile(
    history: jax.Array, observed: jax.Array, percentile: float | jax.Array
) -> jax.Array:
    """Return a percentile of the norms in a history; inf where it holds none."""
    filled = jnp.minimum(observed, history.size)
    slots = jnp.arange(history.size, dtype=jnp.int32)
    last = jnp.maximum(filled - 1, 0)
    unknown = float(jnp.finfo(history.dtype).max)
    ordered = jnp.sort(jnp.where(slots < filled, history, unknown))

    position = percentile / 100.0 * last.astype(history.dtype)
    below = jnp.floor(position).astype(jnp.int32)
    above = jnp.minimum(below + 1, last)
    part = position - below.astype(history.dtype)
    value = ordered[below] + part * (ordered[above] - ordered[below])
    return jnp.where(filled > 0, value, jnp.inf)

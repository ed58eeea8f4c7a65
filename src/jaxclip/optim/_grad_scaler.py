"""Loss scaling, which keeps the small gradients of float16 from vanishing."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip._core.arguments import check_steps
from jaxclip._core.dispatch import call_compiled
from jaxclip._core.leaves import accumulation_dtype, split_leaves
from jaxclip._core.mesh import AxisName
from jaxclip._guards import SkipNonfiniteState, skip_nonfinite
from jaxclip.optim import _arguments as check


class GradScalerState(NamedTuple):
    """The state of `grad_scaler`.

    Attributes:
        scale: float32 scalar: what the next loss is to be multiplied by.
        growth_tracker: int32 scalar: the steps since the scale changed, or one was
            skipped.
        inner_state: The state of `jaxclip.skip_nonfinite` around the inner optimizer,
            which counts the steps that were skipped.
    """

    scale: jax.Array
    growth_tracker: jax.Array
    inner_state: SkipNonfiniteState


def grad_scaler(
    inner: optax.GradientTransformation,
    init_scale: float = 2.0**16,
    growth_factor: float = 2.0,
    backoff_factor: float = 0.5,
    growth_interval: int = 2000,
    *,
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Divide gradients by the scale of the loss, and adapt it: ``amp.GradScaler``.

    What ``unscale_``, ``step`` and ``update`` do in a torch loop: gradients of the
    scaled loss are divided by the scale; a step on which one is not finite is skipped,
    and the scale falls; after ``growth_interval`` steps without, it rises. Wrap the
    clip together with the optimizer, so that it sees gradients of the loss itself.
    `scale_loss` multiplies the loss.

    Args:
        inner: The optimizer to wrap, clips included.
        init_scale: The first scale, above 0.
        growth_factor: Multiplies the scale as it rises, above 1.
        backoff_factor: Multiplies it as it falls, in (0, 1).
        growth_interval: Steps without a skipped one until it rises, at least 1.
        axis_name: See `jaxclip.global_norm`.

    Returns:
        A transformation whose state is a `GradScalerState`. It passes extra arguments
        on.

    Raises:
        TypeError: An argument is no number; in ``update``: a leaf is no inexact array.
        ValueError: An argument is out of range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxclip import optim
        >>> optimizer = grad_scaler(optim.sgd(1.0))
        >>> params = jnp.float32(1.0)
        >>> state = optimizer.init(params)
        >>> def loss(params):
        ...     output = params.astype(jnp.float16) * jnp.float16(1e-4)
        ...     return output.astype(jnp.float32) * 1e-4
        >>> scaled = jax.grad(lambda params: scale_loss(loss(params), state))(params)
        >>> updates, state = optimizer.update(scaled, state, params)
        >>> print(f"{jax.grad(loss)(params)}, {updates:.1e}")
        0.0, -1.0e-08

    Differs from ``torch.amp.GradScaler``: gradients in float16 are taken, and divided
    in float32; torch refuses them.

    References:
        Micikevicius et al., `Mixed Precision Training
        <https://arxiv.org/abs/1710.03740>`_, 2018. `torch.amp.GradScaler
        <https://docs.pytorch.org/docs/stable/amp.html#gradient-scaling>`_.
    """
    caller = "grad_scaler"
    check.inside(caller, "init_scale", init_scale, 0.0, float("inf"))
    check.inside(caller, "growth_factor", growth_factor, 1.0, float("inf"))
    check.inside(caller, "backoff_factor", backoff_factor, 0.0, 1.0)
    check_steps(caller, "growth_interval", growth_interval)
    guarded = skip_nonfinite(inner, axis_name=axis_name)

    def init(params: optax.Params) -> GradScalerState:
        return GradScalerState(
            jnp.asarray(init_scale, jnp.float32),
            jnp.zeros((), jnp.int32),
            guarded.init(params),
        )

    def update(
        updates: optax.Updates,
        state: GradScalerState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, GradScalerState]:
        leaves, rebuild = split_leaves(updates, caller)
        unscaled = rebuild(call_compiled(_unscale, leaves, state.scale))
        updates, inner_state = guarded.update(
            unscaled, state.inner_state, params, **extra_args
        )
        scale, tracker = call_compiled(
            _next_scale,
            state.scale,
            state.growth_tracker,
            inner_state.consecutive > 0,
            growth_factor=growth_factor,
            backoff_factor=backoff_factor,
            growth_interval=growth_interval,
        )
        return updates, GradScalerState(scale, tracker, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def scale_loss(loss: jax.Array, opt_state: optax.OptState) -> jax.Array:
    """Multiply a loss by the scale that `grad_scaler` keeps: ``GradScaler.scale``.

    Args:
        loss: A scalar, or several.
        opt_state: The state of an optimizer with one `grad_scaler` in it.

    Returns:
        The scaled loss, in at least float32. What comes before it in float16 is given
        the scale as a gradient, which is infinite there from 65536 on: let the loss
        itself be computed in float32.

    Raises:
        ValueError: The state holds no `GradScalerState`, or several.
    """
    nodes = jax.tree.leaves(opt_state, is_leaf=_is_scaler)
    found = [node for node in nodes if _is_scaler(node)]
    if len(found) != 1:
        raise ValueError(
            f"scale_loss: found {len(found)} GradScalerStates in the state, expected "
            "one. Pass the state of an optimizer that grad_scaler wraps."
        )
    dtype = accumulation_dtype([loss])
    scaled: jax.Array = loss.astype(dtype) * found[0].scale.astype(dtype)
    return scaled


def _is_scaler(node: Any) -> bool:
    return isinstance(node, GradScalerState)


def _unscale(leaves: list[jax.Array], scale: jax.Array) -> list[jax.Array]:
    # In torch's way: the reciprocal, by which gradients are multiplied.
    return [
        leaf.astype(dtype) * (1.0 / scale).astype(dtype)
        for leaf in leaves
        for dtype in [jnp.promote_types(leaf.dtype, jnp.float32)]
    ]


def _next_scale(
    scale: jax.Array,
    tracker: jax.Array,
    skipped: jax.Array,
    *,
    growth_factor: float,
    backoff_factor: float,
    growth_interval: int,
) -> tuple[jax.Array, jax.Array]:
    due = tracker + 1 >= growth_interval
    grown = scale * growth_factor
    grown = jnp.where(due & jnp.isfinite(grown), grown, scale)
    return (
        jnp.where(skipped, scale * backoff_factor, grown),
        jnp.where(skipped | due, 0, tracker + 1),
    )

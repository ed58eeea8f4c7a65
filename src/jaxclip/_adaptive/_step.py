"""What a step is made of, whatever its threshold is learned from."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxclip._clip_grad import Clipped, _clip_factors, _scale
from jaxclip._dispatch import call_compiled
from jaxclip._leaves import _is_inexact, split_leaves
from jaxclip._monitoring import ClipState, record_clip
from jaxclip._norms import TreeNorm
from jaxclip._thresholds import Scalar

Leaves = Sequence[jax.Array]


def transformation(
    caller: str,
    init: Callable[[optax.Params], Any],
    step: Callable[..., tuple[list[jax.Array], Any]],
    settings: Any,
    *,
    check: Callable[[Any, list[jax.Array], str], None] | None = None,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    """Make a transformation of a step, which runs as one compiled program.

    Args:
        caller: The public function's name, for errors.
        init: ``init(params) -> state``.
        step: ``step(leaves, settings, state, **options) -> (leaves, state)``, defined
            at module level.
        settings: A tree of numbers; each may be traced.
        check: Further refuses trees: ``check(updates, leaves, caller)``.
        **options: Compile-time constants, hashable.
    """

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        del params, extra_args
        leaves, rebuild = split_leaves(updates, caller)
        if check is not None:
            check(updates, leaves, caller)
        clipped, state = call_compiled(step, leaves, settings, state, **options)
        return rebuild(clipped), state

    return optax.GradientTransformationExtraArgs(init, update)


def clip_to(leaves: Leaves, norm: TreeNorm, max_norm: Scalar, eps: Scalar) -> Clipped:
    """Clip all the leaves by their joint norm, which is known already."""
    factors = _clip_factors(norm, max_norm, eps)
    return Clipped(
        [_scale(leaf, factors.unit, factors.length) for leaf in leaves],
        norm.value,
        factors.norm_after(norm),
        factors.clip_coef,
        norm.finite,
    )


def record(state: ClipState, clipped: Clipped) -> ClipState:
    """Return the state of a clip after one more step."""
    metrics = clipped._asdict()
    del metrics["leaves"]
    return record_clip(state, **metrics)


def has_norm(leaf: Any) -> bool:
    """Whether `split_leaves` takes a leaf out of its tree."""
    return _is_inexact(getattr(leaf, "dtype", None)) or isinstance(
        leaf, float | complex
    )


def saturate(values: jax.Array, dtype: Any) -> jax.Array:
    """Cast to a float dtype; what is too large for it, or was, becomes finite.

    A norm that overflows may be that of finite gradients, and a statistic that is
    infinite once stays so.
    """
    narrower = min(values.dtype, dtype, key=lambda either: jnp.finfo(either).bits)
    return jnp.minimum(values, float(jnp.finfo(narrower).max)).astype(dtype)


def count_if(happened: jax.Array, count: jax.Array) -> jax.Array:
    """Return the count, greater by 1 if something happened."""
    return jnp.where(happened, optax.safe_increment(count), count)

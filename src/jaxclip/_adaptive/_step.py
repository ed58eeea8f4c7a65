"""What a step is made of, whatever its threshold is learned from."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxclip._dispatch import call_compiled
from jaxclip._leaves import is_inexact, split_leaves

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


def has_norm(leaf: Any) -> bool:
    """Whether `split_leaves` takes a leaf out of its tree."""
    return is_inexact(getattr(leaf, "dtype", None)) or isinstance(leaf, float | complex)


def saturate(values: jax.Array, dtype: Any) -> jax.Array:
    """Cast to a float dtype; what is too large for it, or was, becomes finite.

    A norm that overflows may be that of finite gradients, and a statistic that is
    infinite once stays so.
    """
    narrower = min(values.dtype, dtype, key=lambda either: jnp.finfo(either).bits)
    return jnp.minimum(values, float(jnp.finfo(narrower).max)).astype(dtype)

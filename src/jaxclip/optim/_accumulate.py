"""One step for several micro-batches."""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from jaxclip._core.arguments import check_choice, check_steps
from jaxclip._core.dispatch import call_compiled
from jaxclip._core.leaves import accumulation_dtype, split_leaves
from jaxclip._guards import update_if

Reduction = Literal["sum", "mean"]

_CALLER = "accumulate"


class AccumulateState(NamedTuple):
    """The state of `accumulate`.

    Attributes:
        mini_step: int32 scalar: the micro-batches since the last step.
        grads: Their sum: a tree like the parameters, in at least float32.
        inner_state: The state of the inner optimizer.
    """

    mini_step: jax.Array
    grads: Any
    inner_state: optax.OptState


def accumulate(
    inner: optax.GradientTransformation, steps: int, *, reduction: Reduction = "sum"
) -> optax.GradientTransformationExtraArgs:
    """Add up the gradients of several micro-batches, and step once for all of them.

    It is the torch loop that calls ``backward`` ``steps`` times before it calls
    ``optimizer.step`` and ``zero_grad``. Wrap the clip together with the optimizer, so
    that it clips the sum, as it does in that loop; a clip in front of ``accumulate``
    clips each micro-batch.

    Args:
        inner: The optimizer to wrap, clips included.
        steps: The number of micro-batches, at least 1.
        reduction: ``"sum"``, which is what ``backward`` does by itself, or ``"mean"``,
            which is ``(loss / steps).backward()``.

    Returns:
        A transformation whose updates are 0 on all micro-batches but each last one. It
        passes extra arguments on, with those of the last one.

    Raises:
        TypeError: In ``update``: a leaf is no inexact array.
        ValueError: ``steps`` is not whole or less than 1, or ``reduction`` is neither.

    Example:
        >>> import jax.numpy as jnp, jaxclip, optax
        >>> from jaxclip import optim
        >>> clip = jaxclip.clip_by_global_norm(1.0, eps=0.0)
        >>> optimizer = accumulate(optax.chain(clip, optim.sgd(1.0)), 2)
        >>> state = optimizer.init(jnp.zeros(2))
        >>> for grads in jnp.array([[3.0, 0.0], [0.0, 4.0]]):
        ...     updates, state = optimizer.update(grads, state)
        >>> print(updates)
        [-0.6 -0.8]

    Differs from ``optax.MultiSteps``: adds up by default, as torch does, where Optax
    takes the mean; float64 gradients are added up in float64, and not in float32; a
    NaN is forgotten with its step, where Optax's sum keeps it for ever.
    """
    inner = optax.with_extra_args_support(inner)
    check_steps(_CALLER, "steps", steps)
    check_choice(_CALLER, "reduction", reduction, get_args(Reduction))

    def init(params: optax.Params) -> AccumulateState:
        leaves, rebuild = split_leaves(params, _CALLER)
        zeros = [jnp.zeros_like(leaf, _sum_dtype(leaf)) for leaf in leaves]
        return AccumulateState(
            jnp.zeros((), jnp.int32), rebuild(zeros), inner.init(params)
        )

    def update(
        updates: optax.Updates,
        state: AccumulateState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, AccumulateState]:
        leaves, rebuild = split_leaves(updates, _CALLER)
        sums, rebuild_sums = split_leaves(state.grads, _CALLER)
        last = state.mini_step == steps - 1
        share = 1.0 if reduction == "sum" else 1.0 / steps
        grads, sums = call_compiled(_add, leaves, sums, last, share=share)
        updates, inner_state = update_if(
            last, inner, rebuild(grads), state.inner_state, params, extra_args, _CALLER
        )
        mini_step = jnp.where(last, 0, state.mini_step + 1)
        return updates, AccumulateState(mini_step, rebuild_sums(sums), inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _sum_dtype(leaf: jax.Array) -> Any:
    return jnp.promote_types(leaf.dtype, accumulation_dtype([leaf]))


def _add(
    leaves: list[jax.Array], sums: list[jax.Array], last: jax.Array, *, share: float
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Return the gradients so far, and the sums to keep."""
    totals = [
        total + leaf.astype(total.dtype)
        for leaf, total in zip(leaves, sums, strict=True)
    ]
    grads = [
        (total * share).astype(leaf.dtype)
        for leaf, total in zip(leaves, totals, strict=True)
    ]
    return grads, [jnp.where(last, 0.0, total) for total in totals]

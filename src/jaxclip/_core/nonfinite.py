"""What becomes of NaN and infinite elements, and naming the leaves that hold them."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip._core.dispatch import call_compiled
from jaxclip._core.leaves import leaf_names, split_leaves

Nonfinite = Literal["propagate", "zero", "raise"]


def check_nonfinite(caller: str, nonfinite: Any) -> Nonfinite:
    """Refuse what is no policy for updates that are not finite."""
    if nonfinite not in get_args(Nonfinite):
        raise ValueError(
            f"{caller}(nonfinite={nonfinite!r}): expected 'propagate', which passes "
            "NaN on, 'zero', which makes the whole step 0, or 'raise'."
        )
    policy: Nonfinite = nonfinite
    return policy


def settle_nonfinite(
    updates: Any,
    leaves: Sequence[jax.Array],
    finite: jax.Array,
    *,
    nonfinite: Nonfinite,
    caller: str,
) -> Sequence[jax.Array]:
    """Apply a policy to what a clip made of updates that may not be finite.

    Args:
        updates: The tree before it was clipped, for the error.
        leaves: What the clip made of its leaves.
        finite: Whether every element of ``updates`` was finite; a boolean scalar.
        nonfinite: "propagate" returns the leaves as they are. "zero" returns zeros
            where a step is not finite. "raise" names the leaves that are not.
        caller: The public function that was called, for the error.

    Returns:
        The leaves to pass on.

    Raises:
        RuntimeError: ``nonfinite`` is "raise", and ``finite`` false. While ``finite``
            is traced, the error comes when the compiled program runs.
    """
    if nonfinite == "raise":
        raise_if_nonfinite(updates, finite, caller)
    elif nonfinite == "zero":
        zeroed: list[jax.Array] = call_compiled(zero_unless, finite, leaves)
        return zeroed
    return leaves


def zero_unless(condition: jax.Array, leaves: Sequence[jax.Array]) -> list[jax.Array]:
    """Return leaves, or zeros unless a condition holds."""
    return [jnp.where(condition, leaf, jnp.zeros_like(leaf)) for leaf in leaves]


def raise_if_nonfinite(grads: Any, finite: jax.Array, caller: str) -> None:
    """Raise an error that names the leaves with NaN or infinite elements.

    Args:
        grads: The tree that was found not to be finite.
        finite: Whether all its elements are finite; a boolean scalar. While it is
            traced, the error is raised when the compiled program runs.
        caller: The public function that was called, for the error.

    Raises:
        RuntimeError: ``finite`` is false.
    """
    leaves, _ = split_leaves(grads, caller)
    names = leaf_names(grads)
    if not names:
        return

    def report(counts: Any) -> None:
        # Under vmap both branches of a `cond` run: the counts decide.
        counts = np.reshape(np.asarray(counts), (-1, len(names), 2)).sum(axis=0)
        if counts.any():
            raise RuntimeError(_describe(names, counts, caller))

    if not isinstance(finite, jax.core.Tracer):
        if not finite:
            report(_count_nonfinite(leaves))
        return
    jax.lax.cond(
        finite,
        lambda: None,
        lambda: jax.debug.callback(report, _count_nonfinite(leaves)),
    )


def _count_nonfinite(leaves: Sequence[jax.Array]) -> jax.Array:
    """Count NaN and infinite elements: an integer array of (leaves, 2)."""
    return jnp.stack(
        [jnp.stack([jnp.isnan(leaf).sum(), jnp.isinf(leaf).sum()]) for leaf in leaves]
    )


def _describe(names: Sequence[str], counts: np.ndarray[Any, Any], caller: str) -> str:
    lines = [
        f"  {name}: {nan} NaN, {inf} infinite"
        for name, (nan, inf) in zip(names, counts.tolist(), strict=True)
        if nan or inf
    ]
    return (
        f"{caller}: gradients are not finite, in {len(lines)} of {len(names)} leaves:\n"
        + "\n".join(lines)
    )

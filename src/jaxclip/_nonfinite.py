"""Name the leaves that hold NaN or infinite elements."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip._leaves import leaf_names, split_leaves


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

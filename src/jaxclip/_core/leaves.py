"""The leaves of a gradient tree that have a norm, and the tree around them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Rebuild = Callable[[Sequence[jax.Array]], Any]


def split_leaves(tree: Any, caller: str) -> tuple[list[jax.Array], Rebuild]:
    """Take the inexact leaves out of a tree.

    ``None`` and ``optax.MaskedNode`` are not leaves to JAX. Leaves of dtype
    ``float0``, the gradient of an integer, hold nothing and stay where they are.

    Args:
        tree: A tree of real or complex arrays.
        caller: The public function that was called, for the error.

    Returns:
        The leaves in tree order, and a function that puts others in their places.

    Raises:
        TypeError: A leaf is an integer, a boolean or no array at all.
    """
    leaves, treedef = jax.tree.flatten(tree)
    dtypes = [getattr(leaf, "dtype", None) for leaf in leaves]
    # A model has thousands of leaves and a handful of dtypes.
    inexact = {dtype: is_inexact(dtype) for dtype in set(dtypes)}
    if all(inexact.values()):
        return leaves, partial(jax.tree.unflatten, treedef)

    kept: list[int] = []
    for index, (leaf, dtype) in enumerate(zip(leaves, dtypes, strict=True)):
        if has_norm(leaf):
            kept.append(index)
        elif dtype != jax.dtypes.float0:
            raise TypeError(_bad_leaf(tree, index, caller))

    def rebuild(clipped: Sequence[jax.Array]) -> Any:
        whole = list(leaves)
        for index, leaf in zip(kept, clipped, strict=True):
            whole[index] = leaf
        return jax.tree.unflatten(treedef, whole)

    return [jnp.asarray(leaves[index]) for index in kept], rebuild


def leaf_names(tree: Any) -> list[str]:
    """Name the leaves that `split_leaves` takes out of ``tree``, in its order."""
    return [
        jax.tree_util.keystr(path) or "the tree itself"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if getattr(leaf, "dtype", None) != jax.dtypes.float0
    ]


def accumulation_dtype(leaves: Sequence[Any]) -> np.dtype[Any]:
    """Return the dtype that norms are summed in: at least float32.

    Args:
        leaves: Arrays, or anything with a ``dtype``; what has no inexact one does
            not count.

    Returns:
        float64 where a leaf has 64 bits to the real number, and JAX is to keep them;
        float32 otherwise.
    """
    dtypes = {getattr(leaf, "dtype", None) for leaf in leaves}
    widest = max((jnp.finfo(d).bits for d in dtypes if is_inexact(d)), default=32)
    return jax.dtypes.canonicalize_dtype(np.float64 if widest == 64 else np.float32)


def saturate(values: jax.Array, dtype: Any) -> jax.Array:
    """Cast to a float dtype; what is too large for it, or was, becomes finite.

    A norm that overflows may be that of finite gradients, and a statistic that is
    infinite once stays so.
    """
    narrower = min(values.dtype, dtype, key=lambda either: jnp.finfo(either).bits)
    return jnp.minimum(values, float(jnp.finfo(narrower).max)).astype(dtype)


def has_norm(leaf: Any) -> bool:
    """Whether `split_leaves` takes a leaf out of its tree."""
    return is_inexact(getattr(leaf, "dtype", None)) or isinstance(leaf, float | complex)


def is_inexact(dtype: Any) -> bool:
    # Keys of random numbers, and the tensors of others, have dtypes of other types.
    return isinstance(dtype, np.dtype) and bool(jnp.issubdtype(dtype, jnp.inexact))


def _bad_leaf(tree: Any, index: int, caller: str) -> str:
    path, leaf = jax.tree_util.tree_leaves_with_path(tree)[index]
    given = getattr(leaf, "dtype", None) or type(leaf).__name__
    return (
        f"{caller}: the leaf {jax.tree_util.keystr(path) or 'given'} is of type "
        f"{given}; expected a real or complex array. Leave it out of the tree, or put "
        "None in its place; in an Optax chain, use optax.masked."
    )

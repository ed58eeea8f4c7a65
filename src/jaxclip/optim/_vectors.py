"""Vectors that lie in several arrays: what torch's L-BFGS lays out in a row."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip._core.leaves import accumulation_dtype, is_inexact
from jaxclip._core.paths import path_name
from jaxclip.optim._layout import refuse_shard

Vector = list[jax.Array]
"""Arrays of one dtype, of which there is at least one."""

Evaluate = Callable[[Vector], tuple[jax.Array, Vector]]
"""A function of a point that returns the value there, and the gradient."""


def dot(one: Vector, other: Vector) -> jax.Array:
    return _sum([jnp.sum(a * b) for a, b in zip(one, other, strict=True)])


def along(start: Vector, size: Any, direction: Vector) -> Vector:
    """Return ``start + size · direction``."""
    return [a + size * b for a, b in zip(start, direction, strict=True)]


def scaled(vector: Vector, size: Any) -> Vector:
    return [size * array for array in vector]


def minus(one: Vector, other: Vector) -> Vector:
    return [a - b for a, b in zip(one, other, strict=True)]


def sum_of_magnitudes(vector: Vector) -> jax.Array:
    return _sum([jnp.sum(jnp.abs(array)) for array in vector])


def largest_magnitude(vector: Vector) -> jax.Array:
    """Return the largest magnitude; NaN if one is."""
    largest = [jnp.max(jnp.abs(array), initial=0.0) for array in vector]
    return jnp.max(jnp.stack(largest))


def choose(condition: jax.Array, one: Any, other: Any) -> Any:
    """Return one tree of arrays or the other."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)


def _sum(scalars: list[jax.Array]) -> jax.Array:
    return jnp.sum(jnp.stack(scalars))


class TreeOfVector(NamedTuple):
    """The tree of the parameters, of which those that are trained make a vector."""

    treedef: Any
    names: list[str]
    is_trained: list[bool]
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, tree: Any) -> "TreeOfVector":
        leaves, treedef = jax.tree.flatten(tree, is_leaf=_is_none)
        paths = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_none)
        trained = [is_inexact(getattr(leaf, "dtype", None)) for leaf in leaves]
        names = [path_name(path) for path, _ in paths]
        return cls(treedef, names, trained, accumulation_dtype(leaves))

    def leaves(self, tree: Any, name: str) -> list[Any]:
        """Return what a tree holds in the places of all leaves."""
        try:
            return list(self.treedef.flatten_up_to(tree))
        except ValueError as error:
            raise ValueError(
                f"lbfgs: expected {name} of the structure of the parameters that init "
                f"was given, with None where one is absent. {error}"
            ) from None

    def vector(self, tree: Any, name: str) -> Vector:
        """Return those leaves of a tree that are trained."""
        chosen = zip(self.leaves(tree, name), self.is_trained, strict=True)
        return [jnp.asarray(leaf, self.dtype) for leaf, trained in chosen if trained]

    def gradient(self, tree: Any, like: Vector) -> Vector:
        """Return a gradient, with 0 where it is absent."""
        trained = [
            (name, leaf)
            for name, leaf, trained in zip(
                self.names, self.leaves(tree, "gradients"), self.is_trained, strict=True
            )
            if trained
        ]
        gradient = []
        for (name, leaf), old in zip(trained, like, strict=True):
            if leaf is None:
                leaf = jnp.zeros_like(old)
            refuse_shard("lbfgs", name, leaf)
            if np.shape(leaf) != old.shape:
                raise ValueError(
                    f"lbfgs: the gradient {name!r} has the shape {np.shape(leaf)}, and "
                    f"its parameter {old.shape}; expected the same shape."
                )
            gradient.append(jnp.asarray(leaf, self.dtype))
        return gradient

    def tree(self, vector: Vector, others: list[Any] | None = None) -> Any:
        """Put a vector into a tree, with other leaves, or None, where none is trained.

        Where another leaf stands for one that is trained, it has its dtype.
        """
        arrays = iter(vector)
        others = [None] * len(self.names) if others is None else others
        return self.treedef.unflatten(
            next(arrays).astype(getattr(other, "dtype", self.dtype))
            if trained
            else other
            for trained, other in zip(self.is_trained, others, strict=True)
        )


def _is_none(node: Any) -> bool:
    return node is None

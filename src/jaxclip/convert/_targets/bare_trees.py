"""Trees of parameters as conversion targets, those of no Flax module.

Nested dicts and lists, as functions of JAX take them, and whatever else JAX knows for a
tree, as a module of Equinox is. What is in it beside arrays stays as it is.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from jaxclip.convert._rules.registry import callee_of
from jaxclip.convert._targets.tree import Callee, Leaf, Node, Path, Target, tree_path

_OF_FLAX = (nn.Module, nnx.Pytree, nnx.GraphDef, nnx.State)
_ARRAYS = (jax.Array, np.ndarray, jax.ShapeDtypeStruct)


def is_bare(target: object) -> bool:
    """Say whether an object is a tree that holds arrays, and nothing of Flax."""
    parts = target if isinstance(target, list | tuple) else (target,)
    if any(isinstance(part, _OF_FLAX) for part in parts):
        return False
    leaves = jax.tree.leaves(target)
    return not (len(leaves) == 1 and leaves[0] is target) and any(
        _is_array(leaf) or _is_torchs(leaf) for leaf in leaves
    )


def _is_array(leaf: Any) -> bool:
    """Say whether torch has a counterpart for a leaf; it has none for a key."""
    return isinstance(leaf, _ARRAYS) and not jnp.issubdtype(
        leaf.dtype, jax.dtypes.extended
    )


def _is_torchs(leaf: object) -> bool:
    return type(leaf).__module__.partition(".")[0] == "torch"


def arrays_in(tree: Any) -> Any:
    """Return a tree that has nothing but its arrays, and None in place of the rest."""
    return jax.tree.map(lambda leaf: leaf if _is_array(leaf) else None, tree)


def callables_in(tree: Any) -> dict[Path, Any]:
    """Return the parts of a tree that can be called and hold others, as modules do.

    Those of Equinox are such, and whatever else is a class of its own that JAX knows
    for a tree, and has a ``__call__``.

    Returns:
        The parts by their paths, outer ones first.

    Example:
        >>> callables_in({"w": 1, "act": abs})
        {}
    """
    return dict(_callables(tree, ()))


def _callables(tree: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    children = children_of(tree)
    if callable(tree) and children and not isinstance(tree, functools.partial):
        yield path, tree
    for name, child in children.items():
        yield from _callables(child, (*path, name))


def children_of(tree: Any) -> dict[str, Any]:
    """Return the parts of a tree by their names; none of a leaf."""
    if jax.tree_util.all_leaves([tree]):
        return {}
    found, _ = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda part: part is not tree
    )
    return {".".join(tree_path(keys)): child for keys, child in found}


def bare_target(tree: Any) -> Target:
    """Read a tree of parameters.

    Raises:
        TypeError: If its arrays are torch's.
    """
    leaves: dict[Path, Leaf] = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        path = tree_path(keys)
        if _is_torchs(leaf):
            raise TypeError(
                f"target holds a tensor of torch's at {'.'.join(path)!r}; it must hold "
                "the parameters of the port. The source is the second argument."
            )
        if _is_array(leaf):
            leaves[path] = Leaf(path, leaf, trained=True)

    def filled(values: Mapping[Path, jax.Array]) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda keys, leaf: values.get(tree_path(keys), leaf), tree
        )

    called = {path: callee_of(part) for path, part in callables_in(tree).items()}
    return Target(_node((), leaves, called), leaves, filled)


def _node(
    path: Path, leaves: Mapping[Path, Leaf], called: Mapping[Path, Callee]
) -> Node:
    """Make a node of what lies beneath a path."""
    depth = len(path)
    own = {at[-1]: leaf for at, leaf in leaves.items() if len(at) == depth + 1}
    inner: dict[str, dict[Path, Leaf]] = {}
    for at, leaf in leaves.items():
        if len(at) > depth + 1:
            inner.setdefault(at[depth], {})[at] = leaf
    children = {
        name: _node((*path, name), held, called) for name, held in inner.items()
    }
    # What stands for a module that has nothing but its parameters.
    return Node(nnx.Dict(), path, path, own, children, callee=called.get(path))

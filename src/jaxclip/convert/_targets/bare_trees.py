"""Trees of parameters as conversion targets, those of no Flax module.

Nested dicts and lists, as functions of JAX take them, and whatever else JAX knows for a
tree, as a module of Equinox is. What is in it beside arrays stays as it is.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from jaxclip.convert._targets.tree import Leaf, Node, Path, Target, tree_path

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

    return Target(_node((), leaves), leaves, filled)


def _node(path: Path, leaves: Mapping[Path, Leaf]) -> Node:
    """Make a node of what lies beneath a path."""
    depth = len(path)
    own = {at[-1]: leaf for at, leaf in leaves.items() if len(at) == depth + 1}
    inner: dict[str, dict[Path, Leaf]] = {}
    for at, leaf in leaves.items():
        if len(at) > depth + 1:
            inner.setdefault(at[depth], {})[at] = leaf
    children = {name: _node((*path, name), held) for name, held in inner.items()}
    # What stands for a module that has nothing but its parameters.
    return Node(nnx.Dict(), path, path, own, children)

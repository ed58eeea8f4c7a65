"""Nested dicts of parameters as conversion targets: those of no Flax module."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from jaxclip.convert._targets.tree import Leaf, Node, Path, Target, tree_path


def bare_target(tree: Mapping[str, Any]) -> Target:
    """Read a nested dict of parameters, which may have lists in it.

    Raises:
        TypeError: If its arrays are torch's.
    """
    found, _ = jax.tree_util.tree_flatten_with_path(tree)
    leaves = {tree_path(path): leaf for path, leaf in found}
    for path, leaf in leaves.items():
        if type(leaf).__module__.partition(".")[0] == "torch":
            raise TypeError(
                f"target holds a tensor of torch's at {'.'.join(path)!r}; it must hold "
                "the parameters of the port. The source is the second argument."
            )
    named = {path: Leaf(path, leaf, trained=True) for path, leaf in leaves.items()}

    def filled(values: Mapping[Path, jax.Array]) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: values[tree_path(path)], tree
        )

    return Target(_node((), named), named, filled)


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

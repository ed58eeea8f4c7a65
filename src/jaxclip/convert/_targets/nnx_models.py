"""Flax NNX modules as conversion targets."""

from collections.abc import Iterator, Mapping

import jax
from flax import nnx

from jaxclip.convert._targets.tree import Leaf, Node, Path, Target, parts

_NOT_WEIGHTS = (nnx.RngState, nnx.Cache, nnx.Intermediate, nnx.Perturbation)
"""Variables that torch's state dict has no counterpart for; they stay as they are."""


def nnx_target(module: nnx.Module) -> Target:
    """Read an NNX module."""
    variables = dict(_weights(module))
    leaves = {
        id(v): Leaf(path, v.get_value(), trained=isinstance(v, nnx.Param))
        for path, v in variables.items()
    }

    def filled(values: Mapping[Path, jax.Array]) -> nnx.Module:
        copy = nnx.clone(module)
        for path, variable in _weights(copy):
            variable.set_value(values[path])
        return copy

    origins: dict[int, Path] = {}
    for path, part in nnx.iter_graph(module):
        if isinstance(part, nnx.Pytree):
            origins.setdefault(id(part), tuple(map(str, path)))
    root = _node(module, (), leaves, origins, frozenset())
    return Target(root, {leaf.path: leaf for leaf in leaves.values()}, filled)


def is_weight(value: object) -> bool:
    """Say whether a part of a module holds what torch's state dict holds."""
    return isinstance(value, nnx.Variable) and not is_no_weight(value)


def is_no_weight(value: object) -> bool:
    """Say whether a part of a module is a variable that torch's has no place for."""
    return isinstance(value, _NOT_WEIGHTS)


def _weights(module: nnx.Module) -> Iterator[tuple[Path, nnx.Variable[object]]]:
    """Yield each variable that holds a weight once, with the path that Flax gives."""
    for path, value in nnx.iter_graph(module):
        # nnx.Param(None) stands for a parameter that is left out.
        if is_weight(value) and value.get_value() is not None:
            yield tuple(map(str, path)), value


def _node(
    module: nnx.Pytree,
    path: Path,
    known: Mapping[int, Leaf],
    origins: Mapping[int, Path],
    ancestors: frozenset[int],
) -> Node:
    ancestors |= {id(module)}
    leaves: dict[str, Leaf] = {}
    children: dict[str, Node] = {}
    for attribute, value in vars(module).items():
        # What Flax keeps for itself.
        if attribute.startswith("_pytree__"):
            continue
        for name, part in parts(value, (nnx.Variable, nnx.Pytree), attribute):
            if isinstance(part, nnx.Pytree):
                # A module that points back at its parent is no part of itself.
                if id(part) not in ancestors:
                    place = (*path, *name.split("."))
                    children[name] = _node(part, place, known, origins, ancestors)
            elif id(part) in known:
                leaves[name] = known[id(part)]
    return Node(module, path, origins[id(module)], leaves, children)

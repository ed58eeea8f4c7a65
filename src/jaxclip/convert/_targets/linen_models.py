"""Flax Linen ``(module, variables)`` pairs as conversion targets."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
from flax import linen as nn
from flax.core import FrozenDict, freeze
from flax.errors import ScopeParamShapeError
from flax.traverse_util import empty_node, flatten_dict, unflatten_dict

from jaxclip.convert._targets.linen_calls import Seen
from jaxclip.convert._targets.tree import Leaf, Node, Path, Target, is_flax, parts

_NOT_WEIGHTS = ("cache", "intermediates", "perturbations")
"""Collections that torch's state dict has no counterpart for; they stay as they are."""


def linen_target(module: nn.Module, variables: Mapping[str, Any], seen: Seen) -> Target:
    """Read a Linen module and its variables.

    Args:
        module: The module.
        variables: All that its ``init`` returns.
        seen: The modules that a call has shown, where there was one.
    """
    if any(not isinstance(collection, Mapping) for collection in variables.values()):
        raise TypeError(
            f"target's variables have the keys {sorted(variables)}, of which some hold "
            "no collection. Pass all that module.init returns, "
            "{'params': {...}, ...}, not what lies in one collection."
        )
    flat = flatten_dict(variables, keep_empty_nodes=True)  # type: ignore[no-untyped-call]
    leaves = {
        path: Leaf(
            path,
            value.unbox() if _boxed(value) else value,
            trained=path[0] == "params",
        )
        for path, value in flat.items()
        if path[0] not in _NOT_WEIGHTS and value is not None and value is not empty_node
    }

    def filled(values: Mapping[Path, jax.Array]) -> Mapping[str, Any]:
        fresh = dict(flat)
        for path in leaves:
            array, box = values[path], flat[path]
            fresh[path] = box.replace_boxed(array) if _boxed(box) else array
        nested: dict[str, Any] = unflatten_dict(fresh)  # type: ignore[no-untyped-call]
        return freeze(nested) if isinstance(variables, FrozenDict) else nested

    # setup() names the dtypes of parameters, float64 perhaps.
    with jax.enable_x64(True):
        root = module.bind(variables)
        try:
            tree = _Tree(root, seen)
        except ScopeParamShapeError:
            # nn.scan and nn.vmap give parameters an axis that setup() knows nothing
            # of, so it is not shown any.
            root = module.bind(jax.tree.map(lambda _: None, variables))
            tree = _Tree(root, seen)
    scopes = tree.scopes
    owned: dict[Path, dict[str, Leaf]] = {scope: {} for scope in scopes}
    for path, leaf in leaves.items():
        # The owner is the innermost module that can be seen.
        depth = max(n for n in range(len(path) - 1) if path[1 : n + 1] in scopes)
        owned[path[1 : depth + 1]][".".join(path[depth + 1 :])] = leaf
    return Target(tree.node(owned), leaves, filled)


class _Tree:
    """The modules in a bound module: those in its attributes, and those of a call.

    Attributes:
        scopes: The paths of all of them.
    """

    def __init__(self, root: nn.Module, seen: Seen) -> None:
        """Look through it."""
        self._root = root
        inside = [*_beneath(root, _attributes, frozenset())]
        held = {child.path for each in inside for _, child in _attributes(each)}
        for each in seen.modules.values():
            held |= {child.path for _, child in _attributes(each)}
        # A compact method has no attributes for what it makes.
        self._made = {
            path: each
            for path, each in seen.modules.items()
            if path and path not in held
        }
        self.scopes = {
            each.path for each in _beneath(root, self._children, frozenset())
        }

    def node(self, owned: Mapping[Path, Mapping[str, Leaf]]) -> Node:
        """Return the tree.

        Args:
            owned: The variables of each module, by its path.
        """
        return self._node(self._root, (), owned, set(), frozenset())

    def _node(
        self,
        module: nn.Module,
        place: Path,
        owned: Mapping[Path, Mapping[str, Leaf]],
        seen: set[Path],
        ancestors: frozenset[int],
    ) -> Node:
        """Make the node of a module.

        Args:
            module: The module.
            place: Where it lies if Flax has it elsewhere, too.
            owned: The variables of each module, by its path.
            seen: The paths that have nodes already, to which this one is added.
            ancestors: The modules around it.
        """
        path = place if module.path in seen else module.path
        seen.add(module.path)
        ancestors |= {id(module)}
        children = {
            name: self._node(child, (*path, *name.split(".")), owned, seen, ancestors)
            for name, child in self._children(module)
            if id(child) not in ancestors
        }
        own = owned[module.path]
        return Node(
            module,
            path,
            module.path,
            leaves={name: leaf for name, leaf in own.items() if "." not in name},
            children=children,
            unseen={name: leaf for name, leaf in own.items() if "." in name},
        )

    def _children(self, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        """Yield the modules in a module, by attribute or by their own name."""
        yield from _attributes(module)
        if is_flax(type(module)):  # a rule speaks for what it makes
            return
        for path, child in self._made.items():
            if path[:-1] == module.path:
                yield path[-1], child


def _beneath(
    module: nn.Module,
    children: Callable[[nn.Module], Iterable[tuple[str, nn.Module]]],
    ancestors: frozenset[int],
) -> Iterator[nn.Module]:
    yield module
    ancestors |= {id(module)}
    for _, child in children(module):
        if id(child) not in ancestors:
            yield from _beneath(child, children, ancestors)


def _attributes(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules in a bound module, by attribute."""
    dir(module)  # Listing the attributes makes Flax call setup().
    for attribute, value in vars(module).items():
        # "parent" and what Flax keeps for itself.
        if attribute != "parent" and not attribute.startswith("_"):
            yield from parts(value, (nn.Module,), attribute)


def _boxed(value: object) -> bool:
    return isinstance(value, nn.meta.AxisMetadata)

"""A Flax model as the conversion sees it, whichever of Flax's two APIs made it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax

from jaxclip.convert._rules.layouts import Layout
from jaxclip.convert._rules.links import Rule

Path = tuple[str, ...]
"""Where a variable lies, from the outermost name to the innermost."""


@dataclass(frozen=True)
class Leaf:
    """One variable that holds a weight.

    Attributes:
        path: Where it lies.
        value: What it holds: an array, or the shape and dtype of one.
        trained: Whether it is a parameter, which torch's ``parameters()`` would give.
    """

    path: Path
    value: Any = field(compare=False)
    trained: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        """Show the path as users write it."""
        return repr(".".join(self.path))


class Callee(NamedTuple):
    """What a node of a tree is, if it can be called.

    Attributes:
        part: What is called.
        rule: How it corresponds to a torch module.
        layout: How what it returns lies, if that is known.
    """

    part: object
    rule: Rule
    layout: Layout | None


@dataclass(frozen=True)
class Node:
    """A Flax module, the variables that it holds itself, and the modules in it.

    A module that is reached by several names is a node under each of them, with the
    same leaves: torch's state dict has all those names, too.

    Attributes:
        module: The module.
        path: Where it lies.
        origin: Where Flax lists it: another place if it is reached by several names.
        leaves: Its own variables by attribute, where an index into a list or a key
            of a dict follows after a dot: ``"blocks.0"``.
        children: The modules in it, named in the same way.
        unseen: The variables of submodules in it that cannot be seen (in Linen, those
            made in a compact method), by dotted name.
        callee: What it is, where it is no module of Flax and can be called.
    """

    module: object
    path: Path
    origin: Path
    leaves: Mapping[str, Leaf]
    children: Mapping[str, "Node"]
    unseen: Mapping[str, Leaf] = field(default_factory=dict)
    callee: Callee | None = None

    @property
    def part(self) -> object:
        """What the node is: a module of Flax, or what else can be called."""
        return self.module if self.callee is None else self.callee.part

    def beneath(self) -> dict[str, Leaf]:
        """Return every leaf in this module, by its name as seen from here."""
        inner = {
            f"{name}.{leaf_name}": leaf
            for name, child in self.children.items()
            for leaf_name, leaf in child.beneath().items()
        }
        return {**self.leaves, **self.unseen, **inner}


@dataclass(frozen=True)
class Target:
    """A model to convert, and how to make another one like it.

    Attributes:
        root: The outermost module.
        leaves: Every weight in the model, as Flax itself lists them.
        filled: Makes a new model in which each leaf, by path, has a new value.
    """

    root: Node
    leaves: Mapping[Path, Leaf]
    filled: Callable[[Mapping[Path, jax.Array]], Any]


def is_flax(module_type: type) -> bool:
    """Say whether a type comes with Flax."""
    # nn.scan, nn.remat and the like derive classes from users' own in there.
    if module_type.__module__ == "flax.linen.transforms":
        return False
    return module_type.__module__.partition(".")[0] == "flax"


def parts(
    value: object, kinds: tuple[type, ...], name: str = ""
) -> Iterator[tuple[str, Any]]:
    """Find the objects of some kinds in nested dicts, lists and tuples.

    Yields:
        A name, in which keys and indices follow after dots, and the object.
    """
    if isinstance(value, kinds):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from parts(item, kinds, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from parts(item, kinds, f"{name}.{index}")


_BOXED = jax.tree_util.GetAttrKey("value")


def tree_path(keys: Sequence[Any]) -> Path:
    """Return the path of a leaf from the keys that JAX gives for it."""
    # A variable or a box around an array is no part of the path.
    if keys and keys[-1] == _BOXED:
        keys = keys[:-1]
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in keys)


def nested(values: Mapping[Path, Any]) -> dict[str, Any]:
    """Put values where their paths say, in nested dicts."""
    tree: dict[str, Any] = {}
    for path, value in values.items():
        inner = tree
        for name in path[:-1]:
            inner = inner.setdefault(name, {})
        inner[path[-1]] = value
    return tree

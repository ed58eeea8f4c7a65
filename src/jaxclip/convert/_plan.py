"""Which torch tensors go to which Flax variables, for a whole model."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import jax
import numpy as np

from jaxclip.convert._errors import ConversionError
from jaxclip.convert._modules import ModulePair, in_layers, joined
from jaxclip.convert._rules.links import Arrays, Link, Rule, same
from jaxclip.convert._rules.pieces import Piece, pieces
from jaxclip.convert._rules.registry import (
    call_of,
    find_rule,
    no_rule,
    output_layout,
)
from jaxclip.convert._stacked import layer_count, one_layer, stack
from jaxclip.convert._targets.tree import Leaf, Node, Target, is_flax


@dataclass(frozen=True)
class Entry:
    """A link at its place in a model.

    Attributes:
        link: The link.
        names: The full names of its torch tensors.
        leaves: Its Flax variables.
    """

    link: Link
    names: tuple[str, ...]
    leaves: tuple[Leaf, ...]

    @cached_property
    def expected(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The shape and the dtype of each tensor."""
        empty = (
            np.broadcast_to(np.zeros((), leaf.value.dtype), leaf.value.shape)
            for leaf in self.leaves
        )
        tensors = self.to_torch(*empty)
        shapes = (jax.ShapeDtypeStruct(t.shape, t.dtype) for t in tensors)
        return dict(zip(self.names, shapes, strict=True))

    @cached_property
    def pieces(self) -> list[Piece] | None:
        """What the link does in pieces; None if it computes one from the other."""
        torch = [spec.shape for spec in self.expected.values()]
        return pieces(self.link, torch, [leaf.value.shape for leaf in self.leaves])

    def to_flax(self, *tensors: np.ndarray) -> Arrays:
        """Make the variables' values from the tensors'."""
        values = self.link.to_flax(*tensors)
        self._check_rule("to_flax", values, len(self.leaves))
        given = {tensor.dtype for tensor in tensors}
        for leaf, value in zip(self.leaves, values, strict=True):
            needed = leaf.value
            # Other tensors than weights may have another dtype, which is kept.
            right = value.dtype in given | {needed.dtype}
            if value.shape != needed.shape or not right:
                raise TypeError(
                    f"to_flax of the link for {self} made {value.dtype} {value.shape} "
                    f"for {leaf}, which is {needed.dtype} {needed.shape}."
                )
        return values

    def to_torch(self, *values: np.ndarray) -> Arrays:
        """Make the tensors' values from the variables'."""
        tensors = self.link.to_torch(*values)
        self._check_rule("to_torch", tensors, len(self.names))
        return tensors

    def _check_rule(self, function: str, made: object, count: int) -> None:
        if not isinstance(made, tuple) or len(made) != count:
            given = f"{len(made)}" if isinstance(made, tuple) else type(made).__name__
            raise TypeError(
                f"{function} of the link for {self} returned {given}; it must return "
                f"a tuple of as many arrays as it has names, which is {count}."
            )

    def __str__(self) -> str:
        """Name the variables and their shapes."""
        return ", ".join(f"{leaf} {leaf.value.shape}" for leaf in self.leaves)


class Plan(NamedTuple):
    """How a whole model corresponds to torch's.

    Attributes:
        entries: The links of its weights, of which several are for the same variables
            where those are reached by several names.
        modules: Its modules that hold weights and return something, outer ones first.
        problems: All that is wrong, in words.
    """

    entries: list[Entry]
    modules: list[ModulePair]
    problems: list[str]


def plan(target: Target, stacked: Collection[str] = ()) -> Plan:
    """Link every weight of a model.

    Args:
        target: The model.
        stacked: The paths of modules that hold several layers as one.
    """
    problems = [
        f"{leaf} holds a {type(leaf.value).__name__}, not an array."
        for leaf in target.leaves.values()
        if not (hasattr(leaf.value, "shape") and hasattr(leaf.value, "dtype"))
    ]
    if not target.leaves:
        problems.append("target has no parameter to fill.")
    if problems:
        return Plan([], [], problems)
    remaining = set(stacked)
    modules: list[ModulePair] = []
    entries = list(_entries(target.root, "", "", remaining, modules, problems))
    problems += [
        f"stacked has {path!r}, which is no module in the target that holds variables."
        for path in stacked
        if path in remaining
    ]
    seen = {leaf.path for leaf in target.root.beneath().values()}
    problems += [
        f"{leaf} lies where no module is seen to hold it; keep modules and variables "
        "in attributes, or in lists, tuples and dicts in attributes."
        for path, leaf in target.leaves.items()
        if path not in seen
    ]
    return Plan(entries, modules, [*problems, *_clashes(entries)])


def remedies(target: Target) -> dict[str, str]:
    """Return what to do about tensors that a model has no place for, by name."""
    return dict(_remedies(target.root, ""))


def _remedies(node: Node, prefix: str) -> Iterator[tuple[str, str]]:
    rule = _rule_of(node)
    if rule is None:
        return
    for name, remedy in rule.remedies.items():
        yield joined(prefix, name), remedy
    for name, child in node.children.items():
        yield from _remedies(child, joined(prefix, _visible(name, rule.hidden)))


def _clashes(entries: list[Entry]) -> Iterator[str]:
    """Find names that stand for several variables, as a key with a dot in it may."""
    first: dict[str, Entry] = {}
    for entry in entries:
        for name in entry.names:
            other = first.setdefault(name, entry)
            if other.leaves != entry.leaves:
                yield f"{other} and {entry} would both be {name!r} in torch."


def _entries(
    node: Node,
    prefix: str,
    path: str,
    stacked: set[str],
    modules: list[ModulePair],
    problems: list[str],
) -> Iterator[Entry]:
    """Link what is in a module.

    Args:
        node: The module.
        prefix: What its names start with in torch.
        path: The same without the numbers of stacked layers.
        stacked: The paths of modules to take for several; each is removed when met.
        modules: Where pairs of modules are added.
        problems: Where problems are added.
    """
    leaves = node.beneath()
    if not leaves:
        return
    if path in stacked:
        stacked.remove(path)
        yield from _stacked_entries(node, prefix, path, stacked, modules, problems)
        return
    rule = _rule_of(node)
    if rule is None:
        problems.append(f"{_listed(leaves)}: {no_rule(type(node.module))}")
        return
    try:
        links = _links(node, rule)
    except ConversionError as error:
        problems += [f"{_kind(node)} at {prefix!r}: {why}" for why in error.problems]
        return
    linked = {name for link in links for name in link.flax}
    modules += _pair(node, prefix)
    problems += _unlinked(node, linked)
    for link in links:
        absent = [name for name in link.flax if name not in leaves]
        if absent:
            problems.append(f"{_kind(node)} at {prefix!r} has no {absent[0]!r}.")
            continue
        entry = Entry(
            link,
            names=tuple(joined(prefix, name) for name in link.torch),
            leaves=tuple(leaves[name] for name in link.flax),
        )
        try:
            _ = entry.expected
        except ValueError as error:
            problems.append(
                f"{entry} has no shape of a {_kind(node)}'s ({error}). If the first "
                "axis is one of layers, name the module that has them in stacked=."
            )
            continue
        yield entry
    for name, child in node.children.items():
        # A rule may speak for all that is in a module, submodules included.
        if not any(inner.startswith(f"{name}.") for inner in linked):
            seen = _visible(name, rule.hidden)
            inside = joined(prefix, seen), joined(path, seen)
            yield from _entries(child, *inside, stacked, modules, problems)


def _stacked_entries(
    node: Node,
    prefix: str,
    path: str,
    stacked: set[str],
    modules: list[ModulePair],
    problems: list[str],
) -> Iterator[Entry]:
    leaves = node.beneath()
    layers = layer_count(node)
    if layers is None:
        shapes = (f"{leaf} {leaf.value.shape}" for leaf in leaves.values())
        problems.append(
            f"stacked has {path!r}, whose variables differ in the length of their "
            f"first axis, that of layers: {', '.join(shapes)}."
        )
        return
    whole = {leaf.path: leaf for leaf in leaves.values()}
    own: list[ModulePair] = []
    for entry in _entries(one_layer(node), "", path, stacked, own, problems):
        link = stack(replace(entry.link, torch=entry.names), layers)
        yield Entry(
            link,
            names=tuple(joined(prefix, name) for name in link.torch),
            leaves=tuple(whole[leaf.path] for leaf in entry.leaves),
        )
    stack_path = ".".join(node.path)
    for layer in range(layers):
        number = {stack_path: layer}
        for pair in own:
            origin = pair.alias_of
            modules.append(
                replace(
                    pair,
                    torch=joined(joined(prefix, str(layer)), pair.torch),
                    flax=in_layers(pair.flax, number),
                    alias_of=None if origin is None else in_layers(origin, number),
                )
            )


def _pair(node: Node, prefix: str) -> Iterator[ModulePair]:
    """Pair a module with torch's of that name, if it returns something."""
    if call_of(type(node.part)) is None:
        return
    path, origin = ".".join(node.path), ".".join(node.origin)
    callee = node.callee
    layout = output_layout(node.module) if callee is None else callee.layout
    yield ModulePair(
        torch=prefix,
        flax=path,
        kind=_kind(node),
        layout=layout,
        alias_of=None if path == origin else origin,
    )


def _rule_of(node: Node) -> Rule | None:
    return find_rule(type(node.module)) if node.callee is None else node.callee.rule


def _links(node: Node, rule: Rule) -> list[Link]:
    # What is in a module of a tree is no other's to see.
    seen = node.leaves if node.callee is None else node.beneath()
    variables = {name: leaf.value for name, leaf in seen.items()}
    links = list(rule.links(node.part, variables))
    for link in links:
        if not isinstance(link, Link):
            raise TypeError(f"the rule for {_kind(node)} yields {link!r}, not a Link.")
    if is_flax(type(node.module)):
        return links
    # What a user's class adds to the class that the rule is for.
    linked = {name for link in links for name in link.flax}
    return links + [same(name, name) for name in node.leaves if name not in linked]


def _unlinked(node: Node, linked: Collection[str]) -> Iterator[str]:
    for name, leaf in node.leaves.items():
        if name not in linked:
            yield f"{leaf} is a variable that the rule for {_kind(node)} lacks."
    for name, leaf in node.unseen.items():
        if name not in linked:
            yield (
                f"{leaf} lies in a submodule of {_kind(node)} that cannot be seen, "
                "because it is made in an @nn.compact method. Show how it is called: "
                "target=(module, variables, inputs)."
            )


def _kind(node: Node) -> str:
    return type(node.part).__qualname__


def _listed(leaves: Mapping[str, Leaf]) -> str:
    shown = [str(leaf) for leaf in leaves.values()]
    more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
    return f"{', '.join(shown[:3])}{more}"


def _visible(name: str, hidden: str | None) -> str:
    first, _, rest = name.partition(".")
    return rest if first == hidden else name

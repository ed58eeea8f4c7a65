"""Words with the inside of transformations, as the body of ``lax.scan`` is.

A value in there is none that could be kept while the model is called, and nobody knows
there which layer or which call it is. So what modules return is marked, and what torch
drew is asked for, by operations of their own, which do nothing but stand in the traced
function. Who evaluates that finds the one and answers the other.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxclip.convert._rules.layouts import SAME, Layout
from jaxclip.convert._targets.tree import Path


def trace() -> Any:
    """Return what differs inside of a transformation from what it is outside."""
    return jax.extend.core.get_opaque_trace_state(convention="flax")


Maps = tuple[int, ...]
"""Over how many each `jax.vmap` maps, the outermost first."""


class Anchor(NamedTuple):
    """What is known of the path of a module that does not know it.

    Attributes:
        parameter: The path of a parameter in it, or in a module that it is in, as seen
            from there. Its value is the last operand.
        module: The path of the module, as seen from there.
    """

    parameter: Path
    module: Path


Name = str | Anchor
"""The path of a module, or what it follows from."""


def _primitive(name: str) -> Primitive:
    """Return an operation that leaves its inputs as they are.

    Its derivative is theirs, and says nothing; mapped, it says over how many.
    """
    made = Primitive(name)
    made.multiple_results = True
    made.def_impl(lambda *leaves, **said: [*leaves])
    made.def_abstract_eval(lambda *leaves, **said: [*leaves])
    mlir.register_lowering(made, lambda context, *leaves, **said: [*leaves])

    def jvp(primals: Any, tangents: Any, **said: Any) -> Any:
        return made.bind(*primals, **said), [*tangents]

    def batched(leaves: Any, axes: Any, *, mapped: Maps, **said: Any) -> Any:
        each = [*zip(leaves, axes, strict=True)]
        size = next(leaf.shape[axis] for leaf, axis in each if axis is not None)
        # All of a module's outputs are marked for all that is mapped; a parameter that
        # is not is to be known as what it is.
        first = [_first(leaf, axis, size) for leaf, axis in each]
        if said["anchored"] and axes[-1] is None:
            first[-1] = leaves[-1]
        found = made.bind(*first, mapped=(size, *mapped), **said)
        # What is the same for all is handed on as such.
        same = [axis is None for axis in axes]
        handed = [
            leaf if whole else own
            for leaf, own, whole in zip(leaves, found, same, strict=True)
        ]
        return handed, [None if whole else 0 for whole in same]

    ad.primitive_jvps[made] = jvp
    batching.primitive_batchers[made] = batched
    return made


def _first(leaf: Any, axis: int | None, size: int) -> Any:
    """Put the axis that is mapped over in front, or add it."""
    if axis is None:
        return jnp.broadcast_to(leaf, (size, *leaf.shape))
    return jnp.moveaxis(leaf, axis, 0)


MARK = _primitive("jaxclip_mark")
"""Says which module returned its inputs."""

ASK = _primitive("jaxclip_ask")
"""Asks for what torch drew in the place of its input."""


def marked(name: Name, output: Any, *anchor: Any) -> Any:
    """Return what a module returned, marked; as it is, if it is no arrays.

    Args:
        name: The path of the module.
        output: What it returned.
        *anchor: The parameter from which the path follows, if it does.
    """
    leaves, tree = jax.tree.flatten(output)
    if not leaves or not all(map(_is_array, leaves)):
        return output
    said = {"name": name, "tree": tree, "anchored": bool(anchor)}
    made = MARK.bind(*leaves, *anchor, mapped=(), **said)
    return jax.tree.unflatten(tree, made[: len(leaves)])


def _is_array(leaf: Any) -> bool:
    """Say whether it is an array of numbers, traced or not, and not of keys."""
    return isinstance(leaf, jax.Array) and isinstance(leaf.dtype, np.dtype)


Kind = Literal["dropout", "replayed_mask", "replayed_draw"]


@dataclass(frozen=True)
class Question:
    """What a port asks for.

    Attributes:
        kind: Who asks: a dropout of Flax's, or the handle of that name.
        path: That of the dropout; for a handle that of torch's module.
        shape: The shape of what is asked for.
        layout: How it is to lie; for a dropout nothing is said.
        alone: Whether torch drew once, so that it is known what is asked for.
        number: What no other question has.
    """

    kind: Kind
    path: Name
    shape: tuple[int, ...]
    layout: Layout = SAME
    alone: bool = False
    number: int = field(default_factory=itertools.count().__next__)

    def __str__(self) -> str:
        """Name who asks."""
        named = (
            ".".join(self.path.module) if isinstance(self.path, Anchor) else self.path
        )
        return repr(named) if self.kind == "dropout" else f"{self.kind}({named!r})"


def asked(question: Question, drawn: Any, *anchor: Any) -> Any:
    """Return what torch drew in the place of what a port did, where that is found out.

    Args:
        question: What is asked for.
        drawn: What the port drew, which stays if there is no answer. It must depend on
            something that is not the same in all iterations, or for all that are mapped
            over, as it is computed once for all of them otherwise, and so is the
            answer.
        *anchor: The parameter from which the path follows, if it does.
    """
    said = {"question": question, "anchored": bool(anchor)}
    return ASK.bind(drawn, *anchor, mapped=(), **said)[0]


class Turns(NamedTuple):
    """The iterations of a scan: how many, and whether the last comes first."""

    length: int
    reverse: bool


class Axes(NamedTuple):
    """The transformations that a value is in, each of which gives it an axis in front.

    Attributes:
        scans: The scans, the outermost first.
        maps: Over how many each `jax.vmap` maps, likewise; their axes come after those
            of the scans.
    """

    scans: tuple[Turns, ...] = ()
    maps: Maps = ()

    @property
    def lengths(self) -> tuple[int, ...]:
        """How long the axes are."""
        return (*(turns.length for turns in self.scans), *self.maps)


Place = tuple[int | None, ...]
"""Where a layer is called: along each axis which element it is, or None for all."""


def places(axes: Axes, counts: Sequence[int]) -> dict[tuple[int, ...], list[Place]]:
    """Say where stacked layers are called.

    Args:
        axes: The transformations that they are called in.
        counts: How many layers each stack has, the outer stack first. Its scan is the
            innermost that fits; where none does it is mapped over.

    Returns:
        By the numbers of the layers the places in which that layer is called, in order:
        iterations of the other scans, and all of what else is mapped over. Nothing if
        neither scans nor maps are over the stacks.

    Example:
        >>> scans = Turns(3, reverse=True), Turns(2, reverse=False)
        >>> places(Axes(scans), [2])
        {(0,): [(2, 0), (1, 0), (0, 0)], (1,): [(2, 1), (1, 1), (0, 1)]}
        >>> places(Axes(scans[:1], maps=(8,)), [])
        {(): [(2, None), (1, None), (0, None)]}
        >>> places(Axes(maps=(8, 2)), [2])
        {(0,): [(None, 0)], (1,): [(None, 1)]}
        >>> places(Axes(scans), [4])
        {}
    """
    first = len(axes.scans)
    # From the outside in, as far as is known: a batch is mapped around all of it.
    lengths = axes.lengths
    candidates = [*range(first, len(lengths)), *range(first)]
    chosen: list[int] = []
    for count in reversed(counts):
        while candidates and lengths[candidates[-1]] != count:
            candidates.pop()
        if not candidates:
            return {}
        chosen.insert(0, candidates.pop())
    within: list[Iterable[int | None]] = [*map(_in_order, axes.scans)]
    for axis in range(first, len(lengths)):
        within.append(range(lengths[axis]) if axis in chosen else [None])
    found: dict[tuple[Any, ...], list[Place]] = {}
    for place in itertools.product(*within):
        found.setdefault(tuple(place[axis] for axis in chosen), []).append(place)
    return dict(sorted(found.items()))


def _in_order(turns: Turns) -> range:
    return range(turns.length)[:: -1 if turns.reverse else 1]

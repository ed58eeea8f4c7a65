"""Words with the inside of transformations, as the body of ``lax.scan`` is.

A value in there is none that could be kept while the model is called, and nobody knows
there which layer or which call it is. So what modules return is marked, and what torch
drew is asked for, by operations of their own, which do nothing but stand in the traced
function. Who evaluates that finds the one and answers the other.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import jax.extend
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxclip.convert._rules.layouts import Layout


def trace() -> Any:
    """Return what differs inside of a transformation from what it is outside."""
    return jax.extend.core.get_opaque_trace_state(convention="flax")


def _primitive(name: str) -> Primitive:
    """Return an operation that leaves its inputs as they are.

    Its derivative is theirs, and says nothing; where it is batched it says so.
    """
    made = Primitive(name)
    made.multiple_results = True
    made.def_impl(lambda *leaves, **said: [*leaves])
    made.def_abstract_eval(lambda *leaves, **said: [*leaves])
    mlir.register_lowering(made, lambda context, *leaves, **said: [*leaves])

    def jvp(primals: Any, tangents: Any, **said: Any) -> Any:
        return made.bind(*primals, **said), [*tangents]

    def batched(leaves: Any, axes: Any, **said: Any) -> Any:
        return made.bind(*leaves, **{**said, "batched": True}), [*axes]

    ad.primitive_jvps[made] = jvp
    batching.primitive_batchers[made] = batched
    return made


MARK = _primitive("jaxclip_mark")
"""Says which module returned its inputs."""

ASK = _primitive("jaxclip_ask")
"""Asks for what torch drew in the place of its input."""


def marked(path: str, output: Any) -> Any:
    """Return what a module returned, marked; as it is, if it is no arrays.

    Args:
        path: The path of the module.
        output: What it returned.
    """
    leaves, tree = jax.tree.flatten(output)
    if not leaves or not all(map(_is_array, leaves)):
        return output
    made = MARK.bind(*leaves, path=path, tree=tree, batched=False)
    return jax.tree.unflatten(tree, made)


def _is_array(leaf: Any) -> bool:
    """Say whether it is an array of numbers, traced or not, and not of keys."""
    return isinstance(leaf, jax.Array) and isinstance(leaf.dtype, np.dtype)


@dataclass(frozen=True)
class Question:
    """What a port asks for.

    Attributes:
        kind: Who asks: a dropout of Flax's, or the handle of that name.
        path: The path of the dropout; for a handle that of torch's module.
        shape: The shape of what is asked for.
        layout: How it is to lie; for a dropout nothing is said.
        number: What no other question has.
    """

    kind: Literal["dropout", "replayed_mask", "replayed_draw"]
    path: str
    shape: tuple[int, ...]
    layout: Layout
    number: int = field(default_factory=itertools.count().__next__)

    def __str__(self) -> str:
        """Name who asks."""
        return (
            repr(self.path) if self.kind == "dropout" else f"{self.kind}({self.path!r})"
        )


def asked(question: Question, drawn: Any) -> Any:
    """Return what torch drew in the place of what a port did, where that is found out.

    Args:
        question: What is asked for.
        drawn: What the port drew, which stays if there is no answer. It must depend on
            something that is not the same in all iterations, as it is computed outside
            of them otherwise, and so is the answer.
    """
    return ASK.bind(drawn, question=question, batched=False)[0]


class Turns(NamedTuple):
    """The iterations of a scan: how many, and whether the last comes first."""

    length: int
    reverse: bool


Place = tuple[int, ...]
"""An iteration of each of several scans, the outermost first."""


def places(turns: Sequence[Turns], counts: Sequence[int]) -> dict[Place, list[Place]]:
    """Say in which iterations stacked layers are called.

    Args:
        turns: The iterations of each scan, the outermost first.
        counts: How many layers each stack has, the outer stack first. Its scan is the
            innermost that fits.

    Returns:
        By the numbers of the layers the iterations in which that layer is called, in
        order; nothing if the scans are not over the stacks.

    Example:
        >>> places([Turns(3, reverse=True), Turns(2, reverse=False)], [2])
        {(0,): [(2, 0), (1, 0), (0, 0)], (1,): [(2, 1), (1, 1), (0, 1)]}
        >>> places([Turns(3, reverse=False)], [])
        {(): [(0,), (1,), (2,)]}
        >>> places([Turns(3, reverse=False)], [2])
        {}
    """
    axes: list[int] = []
    end = len(turns)
    for count in reversed(counts):
        fitting = (n for n in reversed(range(end)) if turns[n].length == count)
        end = next(fitting, -1)
        if end < 0:
            return {}
        axes.insert(0, end)
    found: dict[Place, list[Place]] = {}
    for place in itertools.product(*map(_in_order, turns)):
        found.setdefault(tuple(place[axis] for axis in axes), []).append(place)
    return dict(sorted(found.items()))


def _in_order(turns: Turns) -> range:
    return range(turns.length)[:: -1 if turns.reverse else 1]

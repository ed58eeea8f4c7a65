"""What is in a traced function: those in it, where they are from, what they ask."""

from collections.abc import Iterator
from typing import Any

import jax
from jax.extend import core

from jaxclip.parity._verify._tracing._inside import ASK, Axes, Question, Turns

INLINED = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr",
}
"""Primitives that do nothing but what is in them, and the parameter that has it."""

HIDING = ("cond", "while")
"""Primitives of which nobody knows how often they do what is in them."""


def asked_in(
    jaxpr: core.Jaxpr, scans: tuple[Turns, ...] = (), *, hidden: bool = False
) -> Iterator[tuple[Question, Axes]]:
    """Yield what is asked for in a traced function, and in which scans and maps.

    Nobody knows how often something is asked for in a branch or a loop: that is left
    out, if torch did not draw just once. So is what a checkpoint asks for anew for its
    derivative.

    Args:
        jaxpr: The function.
        scans: The scans that it is in, the outermost first.
        hidden: Whether it is in a branch or a loop.
    """
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if eqn.primitive is ASK:
            question = eqn.params["question"]
            if not hidden or (question.alone and not scans):
                yield question, Axes(scans, eqn.params["mapped"])
        elif name == "scan":
            own = Turns(eqn.params["length"], eqn.params["reverse"])
            inner = eqn.params["jaxpr"].jaxpr
            yield from asked_in(inner, (*scans, own), hidden=hidden)
        elif name in HIDING:
            for inner in jaxprs_of(eqn):
                yield from asked_in(inner, scans, hidden=True)
        elif name in INLINED and not eqn.params.get("differentiated", False):
            inner = eqn.params.get(INLINED[name])
            if inner is not None:
                own_jaxpr = getattr(inner, "jaxpr", inner)
                yield from asked_in(own_jaxpr, scans, hidden=hidden)


def jaxprs_in(jaxpr: core.Jaxpr) -> list[core.Jaxpr]:
    """Return a traced function, and those in it."""
    inner = [each for eqn in jaxpr.eqns for each in jaxprs_of(eqn)]
    return [jaxpr, *(found for each in inner for found in jaxprs_in(each))]


def jaxprs_of(eqn: Any) -> list[core.Jaxpr]:
    """Return the functions that an equation has for parameters."""
    kinds = core.Jaxpr, core.ClosedJaxpr
    given: list[Any] = jax.tree.leaves(
        [*eqn.params.values()], is_leaf=lambda leaf: isinstance(leaf, kinds)
    )
    found = (one for one in given if isinstance(one, kinds))
    return [one.jaxpr if isinstance(one, core.ClosedJaxpr) else one for one in found]


def source_of(eqn: Any) -> str:
    """Return the file and line of an equation, where its author wrote them."""
    traceback = eqn.source_info.traceback
    for frame in () if traceback is None else traceback.frames:
        path = frame.file_name.replace("\\", "/")
        if not any(f"/{package}/" in path for package in _PACKAGES):
            return f"{path.rpartition('/')[2]}:{frame.line_num}"
    return ""


_PACKAGES = ("jax", "jaxlib", "flax", "optax", "jaxclip/parity")

"""What is in a traced function: those in it, where they are from, what they ask."""

from collections.abc import Iterator
from typing import Any

import jax
from jax.extend import core

from jaxclip.parity._verify._tracing._inside import ASK, Question, Turns

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


def asked_in(
    jaxpr: core.Jaxpr, turns: tuple[Turns, ...] = ()
) -> Iterator[tuple[Question, tuple[Turns, ...]]]:
    """Yield what is asked for in a traced function, and in which scans.

    What is in a branch, a loop, or batched is left out, as nobody knows how often it
    is asked there; so is what a checkpoint asks anew for its derivative.
    """
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if eqn.primitive is ASK and not eqn.params["batched"]:
            yield eqn.params["question"], turns
        elif name == "scan":
            own = Turns(eqn.params["length"], eqn.params["reverse"])
            yield from asked_in(eqn.params["jaxpr"].jaxpr, (*turns, own))
        elif name in INLINED and not eqn.params.get("differentiated", False):
            inner = eqn.params.get(INLINED[name])
            if inner is not None:
                yield from asked_in(getattr(inner, "jaxpr", inner), turns)


def jaxprs_in(jaxpr: core.Jaxpr) -> list[core.Jaxpr]:
    """Return a traced function, and those in it."""
    found = [jaxpr]
    for eqn in jaxpr.eqns:
        for leaf in jax.tree.leaves(
            [*eqn.params.values()],
            is_leaf=lambda x: isinstance(x, core.Jaxpr | core.ClosedJaxpr),
        ):
            if isinstance(leaf, core.Jaxpr | core.ClosedJaxpr):
                inner: Any = leaf
                found += jaxprs_in(getattr(inner, "jaxpr", inner))
    return found


def source_of(eqn: Any) -> str:
    """Return the file and line of an equation, where its author wrote them."""
    traceback = eqn.source_info.traceback
    for frame in () if traceback is None else traceback.frames:
        path = frame.file_name.replace("\\", "/")
        if not any(f"/{package}/" in path for package in _PACKAGES):
            return f"{path.rpartition('/')[2]}:{frame.line_num}"
    return ""


_PACKAGES = ("jax", "jaxlib", "flax", "optax", "jaxclip/parity")

"""What is in a traced function: those in it, and where they are from."""

from typing import Any

import jax
from jax.extend import core

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

"""How the variables of each type of Flax module lie in torch: one rule for each type.

A rule is chosen by the type of a module alone, never by the name or the number of
axes of an array: a square kernel looks the same either way round. A type that Flax
defines and that has no rule here is refused.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax import linen as nn
from flax import nnx

from jaxclip.models import linen as models_linen

Arrays = tuple[np.ndarray, ...]


def _unchanged(*arrays: np.ndarray) -> Arrays:
    return arrays


@dataclass(frozen=True)
class Link:
    """Torch tensors and Flax variables that hold the same numbers.

    Attributes:
        torch: The names of the tensors, as seen from the torch module.
        flax: The names of the variables, as seen from the Flax module; one in a
            submodule is dotted, ``"query.kernel"``.
        to_flax: Makes the variables' values, all of them, from the tensors'.
        to_torch: Makes the tensors' values, all of them, from the variables'.
    """

    torch: tuple[str, ...]
    flax: tuple[str, ...]
    to_flax: Callable[..., Arrays] = _unchanged
    to_torch: Callable[..., Arrays] = _unchanged


@dataclass(frozen=True)
class Rule:
    """How a type of Flax module corresponds to a torch module.

    Attributes:
        links: Takes a module and the names of its own variables, and yields the
            links that hold its numbers.
        hidden: An attribute that torch's names leave out: ``nnx.Sequential`` calls
            ``layers.0`` what torch calls ``0``.
    """

    links: Callable[[Any, Collection[str]], Iterable[Link]]
    hidden: str | None = None


def same(torch: str, flax: str) -> Link:
    """Link one tensor and one variable that lie alike."""
    return Link((torch,), (flax,))


def transposed(torch: str, flax: str) -> Link:
    """Link one matrix and its transpose."""

    def transpose(array: np.ndarray) -> Arrays:
        return (array.T,)

    return Link((torch,), (flax,), to_flax=transpose, to_torch=transpose)


def raw(module: object, names: Collection[str]) -> Iterator[Link]:
    """Link each variable to the tensor of its name: a module of the user's own."""
    return (same(name, name) for name in names)


def _linear(layer: object, names: Collection[str]) -> Iterator[Link]:
    yield transposed("weight", "kernel")
    if "bias" in names:
        yield same("bias", "bias")


def _embed(layer: object, names: Collection[str]) -> Iterator[Link]:
    yield same("weight", "embedding")


RULES: dict[type, Rule] = {
    nnx.Linear: Rule(_linear),
    nn.Dense: Rule(_linear),
    nnx.Embed: Rule(_embed),
    nn.Embed: Rule(_embed),
    # What users derive their own modules from.
    nnx.Module: Rule(raw),
    nnx.Pytree: Rule(raw),
    nn.Module: Rule(raw),
    # What only holds other modules.
    nnx.List: Rule(raw),
    nnx.Dict: Rule(raw),
    nnx.Sequential: Rule(raw, hidden="layers"),
    nn.Sequential: Rule(raw, hidden="layers"),
    models_linen.Sequential: Rule(raw, hidden="layers"),
}
"""The rule for each type, and for the types that users derive from it."""

_RECURRENT = (
    *(nnx.nn.recurrent.RNNCellBase, nnx.RNN, nnx.Bidirectional),
    *(nn.RNNCellBase, nn.RNN, nn.Bidirectional),
)


def find_rule(module_type: type) -> Rule | None:
    """Return the rule of the nearest ancestor that has one or that is Flax's own.

    A class that a user derives from ``nnx.Linear`` is laid out as that is; a class
    that Flax derives from it may not be.
    """
    for ancestor in module_type.__mro__:
        if ancestor in RULES or is_flax(ancestor):
            return RULES.get(ancestor)
    return None


def is_flax(module_type: type) -> bool:
    """Say whether a type comes with Flax."""
    return module_type.__module__.partition(".")[0] == "flax"


def no_rule(module_type: type) -> str:
    """Say that there is no rule for a type, and what to use in its place."""
    hint = (
        "jaxclip.models has RNN, GRU and LSTM, in NNX and in Linen, which hold "
        "exactly what torch's hold."
        if issubclass(module_type, _RECURRENT)
        else "Which way round its arrays lie in torch is not known here, and is not "
        "guessed."
    )
    return f"{module_type.__module__}.{module_type.__qualname__} has no rule. {hint}"

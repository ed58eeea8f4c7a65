"""What a rule says: which torch tensors and Flax variables hold the same numbers."""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

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

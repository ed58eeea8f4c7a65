"""What a rule says: which torch tensors and Flax variables hold the same numbers."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from jaxclip.convert._errors import ConversionError
from jaxclip.convert._rules.layouts import Layout

Arrays = tuple[np.ndarray, ...]

Variables = Mapping[str, Any]
"""A module's own variables by name; of each the shape and the dtype are known."""


def _unchanged(*arrays: np.ndarray) -> Arrays:
    return arrays


@dataclass(frozen=True)
class Link:
    """Torch tensors and Flax variables that hold the same numbers.

    The two functions are each other's inverse, to the bit, and make new arrays or
    views: what they are given is never written to.

    Attributes:
        torch: The names of the tensors, as seen from the torch module.
        flax: The names of the variables, as seen from the Flax module; one in a
            submodule is dotted, ``"query.kernel"``.
        to_flax: Makes the variables' values, a tuple of all of them, from the
            tensors'.
        to_torch: Makes the tensors' values, a tuple of all of them, from the
            variables'.

    Example:
        >>> link = Link(("weight",), ("kernel",), lambda w: (w.T,), lambda k: (k.T,))
        >>> link.to_torch(np.zeros((3, 2)))[0].shape
        (2, 3)
    """

    torch: tuple[str, ...]
    flax: tuple[str, ...]
    to_flax: Callable[..., Arrays] = _unchanged
    to_torch: Callable[..., Arrays] = _unchanged


Links = Callable[[Any, Variables], Iterable[Link]]
"""Takes a module and its own variables, and yields the links of its numbers."""


Output = Layout | Callable[[Any], Any] | None
"""How a module's output lies: a layout, or a function that takes the module and
returns one, or the module inside it whose output it returns, or None."""


@dataclass(frozen=True)
class Rule:
    """How a type of Flax module corresponds to a torch module.

    Attributes:
        links: Takes a module and its own variables, by name, and yields the links
            that hold its numbers. It raises a ``ConversionError`` where the module is
            one that no torch module corresponds to.
        hidden: An attribute that torch's names leave out: ``nnx.Sequential`` calls
            ``layers.0`` what torch calls ``0``.
        layout: How its output lies; None where its type does not say.
        torch: What the table of layers calls the torch modules.
        note: What the table says is to be minded.
        remedies: What to do about a tensor, by torch's name for it, that this type
            has nowhere to put, or not in that shape.
    """

    links: Links
    hidden: str | None = None
    layout: Output = None
    torch: tuple[str, ...] = ()
    note: str = ""
    remedies: Mapping[str, str] = field(default_factory=dict)


def same(torch: str, flax: str) -> Link:
    """Link one tensor and one variable that lie alike.

    Args:
        torch: The name of the tensor.
        flax: The name of the variable.

    Example:
        >>> same("weight", "scale").flax
        ('scale',)
    """
    return Link((torch,), (flax,))


def is_same(link: Link) -> bool:
    """Say whether a link leaves its tensors as they are."""
    return link.to_flax is _unchanged


def transposed(torch: str, flax: str) -> Link:
    """Link one matrix and its transpose.

    Args:
        torch: The name of the tensor.
        flax: The name of the variable.

    Example:
        >>> transposed("weight", "kernel").to_flax(np.zeros((2, 3)))[0].shape
        (3, 2)
    """
    return permuted(torch, flax, (1, 0))


def permuted(torch: str, flax: str, axes: Sequence[int]) -> Link:
    """Link one tensor and one variable with its axes in another order.

    Args:
        torch: The name of the tensor.
        flax: The name of the variable.
        axes: For each axis of the variable, which axis of the tensor it is.

    Example:
        >>> link = permuted("weight", "kernel", (2, 1, 0))
        >>> link.to_flax(np.zeros((8, 3, 5)))[0].shape
        (5, 3, 8)
    """
    back = np.argsort(axes)
    return Link(
        (torch,),
        (flax,),
        to_flax=lambda array: (np.transpose(array, axes),),
        to_torch=lambda array: (np.transpose(array, back),),
    )


def reshaped(torch: str, flax: str, shape: Sequence[int], like: Sequence[int]) -> Link:
    """Link one tensor and one variable of the same numbers in another shape.

    Args:
        torch: The name of the tensor.
        flax: The name of the variable.
        shape: The shape of the tensor.
        like: The shape of the variable.
    """
    return Link(
        (torch,),
        (flax,),
        to_flax=lambda array: (array.reshape(like),),
        to_torch=lambda array: (array.reshape(shape),),
    )


def narrowed(link: Link) -> Link:
    """Give a link variables of int32, which JAX has where torch has int64.

    A number that 32 bits do not hold is a ``ConversionError``.

    Args:
        link: The link, which keeps dtypes.
    """

    def to_flax(*tensors: np.ndarray) -> Arrays:
        wide = link.to_flax(*tensors)
        narrow = tuple(array.astype(np.int32) for array in wide)
        if not all(map(np.array_equal, narrow, wide)):
            given = f"{', '.join(link.torch)} is {', '.join(map(str, tensors))}"
            raise ConversionError(
                [f"{given}, more than int32 holds; set it to 0 in the source."]
            )
        return narrow

    def to_torch(*variables: np.ndarray) -> Arrays:
        return tuple(array.astype(np.int64) for array in link.to_torch(*variables))

    return replace(link, to_flax=to_flax, to_torch=to_torch)


def named(pairs: Mapping[str, str]) -> Links:
    """Make a rule's links: the same arrays, whichever of them there are.

    Args:
        pairs: The name of the tensor by the name of the variable.
    """

    def links(module: object, variables: Variables) -> Iterator[Link]:
        return (same(pairs[name], name) for name in variables if name in pairs)

    return links


def raw(module: object, variables: Variables) -> Iterator[Link]:
    """Link each variable to the tensor of its name: a module of the user's own."""
    return (same(name, name) for name in variables)

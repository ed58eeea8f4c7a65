"""How a module's output lies on either side: its axes in torch, and in Flax.

Where torch has channels first and Flax has them last, a word says which axis of torch's
is Flax's last; a permutation says it of any axes. Of images that were flattened, with
channels first or last, the word has their shape.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

Layout = str | tuple[Any, ...]
"""One of the words below, a permutation as in ``permuted``, or a layout for each part
of a tuple."""

_CHANNELS = {
    "channels_last": 1,
    "channels_last_1d": -2,
    "channels_last_2d": -3,
    "channels_last_3d": -4,
}
"""Which axis of torch's the channels are: the second, or the one before the spatial."""

CHANNELS_LAST = "channels_last"
SAME = "same"

_FLATTENED = re.compile(r"flattened\((\d+(?:, ?\d+)+)\)")
"""What has flattened images along its last axis: their shape, channels first."""


def channels_last(spatial: int) -> Layout | None:
    """Return the layout of images of so many axes, with or without one of a batch."""
    word = f"{CHANNELS_LAST}_{spatial}d"
    return word if word in _CHANNELS else None


def checked(layout: object, where: str) -> Layout:
    """Return a layout, in tuples where lists were given.

    Args:
        layout: What is to be one.
        where: What an error starts with.

    Raises:
        ValueError: If it is none.
    """
    if layout == SAME or (isinstance(layout, str) and layout in _CHANNELS):
        return layout
    if isinstance(layout, str) and _FLATTENED.fullmatch(layout):
        return layout
    if isinstance(layout, list | tuple) and layout:
        if not any(type(part) is int for part in layout):
            return tuple(checked(part, where) for part in layout)
        if all(type(part) is int for part in layout):
            axes = tuple(layout)
            if sorted(axes) == [*range(len(axes))]:
                return axes
    words = ", ".join(map(repr, (SAME, *_CHANNELS)))
    raise ValueError(
        f"{where} is {layout!r}; it must be one of {words}, the shape of flattened "
        "images such as 'flattened(64, 7, 7)', a permutation such as (1, 0, 2), or a "
        "tuple of these for a module that returns a tuple."
    )


def to_flax(array: np.ndarray, layout: Layout) -> np.ndarray:
    """Put the axes of an array in Flax's order.

    Raises:
        ValueError: If it has not the axes that the layout speaks of.
    """
    if isinstance(layout, tuple):
        return np.transpose(array, _axes(array, layout))
    if layout == SAME:
        return array
    if shape := _shape_of_images(array, layout):
        images = array.reshape(*array.shape[:-1], *shape)
        return np.moveaxis(images, -len(shape), -1).reshape(array.shape)
    return np.moveaxis(array, _channels(array, layout), -1)


def to_torch(array: np.ndarray, layout: Layout) -> np.ndarray:
    """Put the axes of an array in torch's order, the inverse of ``to_flax``.

    Raises:
        ValueError: If it has not the axes that the layout speaks of.
    """
    if isinstance(layout, tuple):
        return np.transpose(array, np.argsort(_axes(array, layout)))
    if layout == SAME:
        return array
    if shape := _shape_of_images(array, layout):
        channels, *spatial = shape
        images = array.reshape(*array.shape[:-1], *spatial, channels)
        return np.moveaxis(images, -1, -len(shape)).reshape(array.shape)
    return np.moveaxis(array, -1, _channels(array, layout))


def apply(function: Callable[[Any, Layout], Any], output: Any, layout: Layout) -> Any:
    """Call a function with each array of an output, and with the layout of that.

    Args:
        function: Takes an array and a layout that is no tuple of layouts.
        output: An array, or arrays in tuples, lists and dicts.
        layout: The layout. One for each part of a tuple is for an output that is such
            a tuple, or for each of a list of them, as of several calls.

    Raises:
        ValueError: If the output is not a tuple of as many parts.
    """
    if first(layout) == layout:
        return jax.tree.map(lambda array: function(array, layout), output)
    if isinstance(output, list):
        return [apply(function, one, layout) for one in output]
    if not isinstance(output, tuple) or len(output) != len(layout):
        given = f"{len(output)}" if isinstance(output, tuple) else type(output).__name__
        raise ValueError(f"is no tuple of {len(layout)}, as its layout, but {given}")
    return tuple(
        apply(function, part, its) for part, its in zip(output, layout, strict=True)
    )


def first(layout: Layout) -> Layout:
    """Return the layout of the first part, if it is one for each part of a tuple."""
    if isinstance(layout, str) or type(layout[0]) is int:
        return layout
    part: Layout = layout[0]
    return part


def _axes(array: np.ndarray, layout: tuple[int, ...]) -> tuple[int, ...]:
    if array.ndim != len(layout):
        raise ValueError(f"has shape {array.shape}, and not {len(layout)} axes")
    return layout


def _shape_of_images(array: np.ndarray, layout: str) -> tuple[int, ...]:
    """Return the shape of images that are flattened; nothing if they are not."""
    found = _FLATTENED.fullmatch(layout)
    if not found:
        return ()
    shape = tuple(map(int, found[1].split(",")))
    if array.shape[-1:] != (math.prod(shape),):
        raise ValueError(
            f"has shape {array.shape}, and its last axis is not of {math.prod(shape)}, "
            f"as {layout!r} says"
        )
    return shape


def _channels(array: np.ndarray, layout: str) -> int:
    axis = _CHANNELS[layout]
    if not -array.ndim <= axis < array.ndim:
        raise ValueError(f"has shape {array.shape}, too few axes for {layout!r}")
    return axis

"""The operations in which a value decides: comparisons, maxima, roundings."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

Array = np.ndarray[Any, Any]

_AGAINST = ("gt", "ge", "lt", "le", "max", "min")
_AT_ZERO = ("abs", "sign")
_REDUCED = {"reduce_max": 1.0, "argmax": 1.0, "reduce_min": -1.0, "argmin": -1.0}


@dataclass(frozen=True)
class Decision:
    """An operation whose result, or whose derivative, jumps where its input passes.

    Attributes:
        primitive: JAX's name of it.
        axes: Over which axes the greatest element is taken, if one is.
        sign: -1 where it is the least.
        most: How many of the greatest are taken.
        window: Window, strides and padding, if there is a window.
    """

    primitive: str
    axes: tuple[int, ...] = ()
    sign: float = 1.0
    most: int = 1
    window: tuple[Any, ...] = ()

    @property
    def among(self) -> bool:
        """Whether elements are held against one another."""
        return bool(self.axes or self.window)

    def repeated(self) -> "Decision":
        """Return it for a value that has one more axis, in front."""
        axes = tuple(axis + 1 for axis in self.axes)
        window = self.window
        if window:
            sizes, strides, padding = window
            window = (1, *sizes), (1, *strides), ((0, 0), *padding)
        return dataclasses.replace(self, axes=axes, window=window)

    def distance(self, value: Array, bound: Array | None) -> Array:
        """Return by what each element would have to move to where it decides otherwise.

        NaN where it never does.
        """
        if self.window:
            return self._in_windows(value)
        if self.axes:
            return self._among(value)
        if bound is None:
            return -value
        with np.errstate(invalid="ignore"):
            distance: Array = np.broadcast_to(bound, value.shape) - value
        return np.where(np.isfinite(distance), distance, np.nan)

    def _among(self, value: Array) -> Array:
        """Return how far below the last of the greatest the others are."""
        signed = self.sign * value
        size = int(np.prod([value.shape[axis] for axis in self.axes]))
        if self.most >= size or not value.size:
            return np.full(value.shape, np.nan)
        moved = np.moveaxis(signed, self.axes, range(-len(self.axes), 0))
        rows = moved.reshape(*moved.shape[: -len(self.axes)], size)
        order = np.argsort(-rows, axis=-1, kind="stable")
        last = np.take_along_axis(rows, order[..., self.most - 1 : self.most], -1)
        with np.errstate(invalid="ignore"):
            distance = self.sign * (last - rows)
        np.put_along_axis(distance, order[..., : self.most], np.nan, -1)
        distance = np.where(np.isfinite(distance), distance, np.nan)
        return np.moveaxis(
            distance.reshape(moved.shape), range(-len(self.axes), 0), self.axes
        )

    def _in_windows(self, value: Array) -> Array:
        """Return how far below the greatest of a window the others are."""
        sizes, strides, padding = self.window
        padded = np.pad(value, padding, constant_values=-np.inf)
        found = np.full(padded.shape, np.inf)
        counts = [
            (n - size) // stride + 1
            for n, size, stride in zip(padded.shape, sizes, strides, strict=True)
        ]
        places = [
            tuple(
                slice(o, o + stride * (count - 1) + 1, stride)
                for o, stride, count in zip(offset, strides, counts, strict=True)
            )
            for offset in np.ndindex(*sizes)
        ]
        parts = np.stack([padded[place] for place in places])
        winner = np.argmax(parts, axis=0)
        greatest = np.max(parts, axis=0)
        for n, place in enumerate(places):
            with np.errstate(invalid="ignore"):
                below = np.where(winner == n, np.inf, greatest - parts[n])
            found[place] = np.fmin(found[place], below)
        inside = tuple(
            slice(low, low + n)
            for (low, _), n in zip(padding, value.shape, strict=True)
        )
        found = found[inside]
        return np.where(np.isfinite(found), found, np.nan)


def decision_of(eqn: Any) -> Iterator[tuple[Decision, int, int | None]]:
    """Yield the decisions of an equation: which input decides, and against which.

    ``eq`` is none of them: JAX has it in derivatives, after a maximum that is one.
    """
    name, given = eqn.primitive.name, eqn.params
    if not eqn.invars or not jnp.issubdtype(eqn.invars[0].aval.dtype, jnp.floating):
        return
    plain = Decision(name)
    if name in _AGAINST:
        for place, other in ((0, 1), (1, 0)):
            if eqn.invars[place].aval.shape == eqn.outvars[0].aval.shape:
                yield plain, place, other
    elif name == "clamp":
        yield plain, 1, 0
        yield plain, 1, 2
    elif name in _AT_ZERO:
        yield plain, 0, None
    elif name in _REDUCED:
        axes = tuple(given["axes"])
        if axes:
            yield Decision(name, axes, _REDUCED[name]), 0, None
    elif name == "top_k":
        axis = given.get("axis", len(eqn.invars[0].aval.shape) - 1)
        yield Decision(name, (axis,), most=given["k"]), 0, None
    elif name == "reduce_window_max":
        dilations = (*given["base_dilation"], *given["window_dilation"])
        if all(dilation == 1 for dilation in dilations):
            window = tuple(
                given[key] for key in ("window_dimensions", "window_strides", "padding")
            )
            yield Decision(name, window=window), 0, None

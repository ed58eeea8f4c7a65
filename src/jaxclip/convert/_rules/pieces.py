"""Layouts as data: which elements of a tensor are which elements of a variable.

A rule gives functions. Most of them only move elements about (transpose, permute,
reshape, slice, stack), and then what they do can be said in NumPy's own words for a
view: an offset, a shape and strides, on either side.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.lib.stride_tricks import as_strided

from jaxclip.convert._errors import Shape
from jaxclip.convert._rules.links import Arrays, Link


@dataclass(frozen=True)
class View:
    """Some elements of an array: the one at ``offset``, and those ``strides`` apart.

    Attributes:
        array: Which of several arrays.
        offset: In elements, as if the array were flat.
        strides: In elements, for each axis of the piece.
    """

    array: int
    offset: int
    strides: tuple[int, ...]

    def of(self, array: np.ndarray, shape: Shape) -> np.ndarray:
        """Return the view of an array, which must be contiguous."""
        flat = array.reshape(-1)[self.offset :]
        strides = [stride * flat.itemsize for stride in self.strides]
        return as_strided(flat, shape, strides)

    def fits(self, shape: Shape, size: int) -> bool:
        """Say whether the view lies within an array of some size."""
        steps = [(n - 1) * s for n, s in zip(shape, self.strides, strict=True)]
        first = self.offset + sum(min(step, 0) for step in steps)
        last = self.offset + sum(max(step, 0) for step in steps)
        return 0 <= first and last < size and 0 <= self.offset < size


@dataclass(frozen=True)
class Piece:
    """Elements that a tensor and a variable have in common, in the same order."""

    shape: Shape
    torch: View
    flax: View

    @property
    def in_torchs_order(self) -> "Piece":
        """The same elements, in the order in which they lie in the tensor."""
        shape, torch, flax = _reordered(self.shape, self.torch, self.flax)
        return Piece(shape, torch, flax)


def pieces(
    link: Link, torch: Sequence[Shape], flax: Sequence[Shape]
) -> list[Piece] | None:
    """Say what a link does in pieces, if it only moves elements about.

    The link is called with arrays of zeros, which take no memory as long as nobody
    writes into them, and what it returns is looked at: a view says by its strides
    where its elements come from. A link that copies is called with the numbers of
    the elements.

    Args:
        link: The link.
        torch: The shapes of its tensors.
        flax: Those of its variables.
    """
    if found := _of_views(link.to_torch, flax):
        made = [Piece(shape, torch=own, flax=other) for shape, own, other in found]
    elif found := _of_views(link.to_flax, torch):
        made = [Piece(shape, torch=other, flax=own) for shape, own, other in found]
    elif found := _of_numbers(link.to_flax, torch):
        made = [Piece(shape, torch=other, flax=own) for shape, own, other in found]
        if not _agree(made, link, torch, flax):
            return None
    else:
        return [] if _empty(torch) and _empty(flax) else None
    return None if uncovered_by(made, torch, flax) else made


def link_of(
    pieces: Sequence[Piece], torch: Sequence[Shape], flax: Sequence[Shape]
) -> Link:
    """Return the link that pieces describe, between arrays of these shapes."""

    def to_flax(*tensors: np.ndarray) -> Arrays:
        return _moved(tensors, flax, [(p.shape, p.flax, p.torch) for p in pieces])

    def to_torch(*variables: np.ndarray) -> Arrays:
        return _moved(variables, torch, [(p.shape, p.torch, p.flax) for p in pieces])

    return Link(
        tuple(map(str, range(len(torch)))),
        tuple(map(str, range(len(flax)))),
        to_flax,
        to_torch,
    )


def uncovered_by(
    pieces: Sequence[Piece], torch: Sequence[Shape], flax: Sequence[Shape]
) -> bool:
    """Say whether an element of any array is in no piece, or in several."""
    return not (
        _once([(p.shape, p.torch) for p in pieces], torch)
        and _once([(p.shape, p.flax) for p in pieces], flax)
    )


def _once(views: Sequence[tuple[Shape, View]], shapes: Sequence[Shape]) -> bool:
    """Say whether views show each element of some arrays once."""
    for index, shape in enumerate(shapes):
        size = math.prod(shape)
        own = [(part, view) for part, view in views if view.array == index]
        if sum(math.prod(part) for part, _ in own) != size:
            return False
        if not all(view.fits(part, size) for part, view in own):
            return False
        seen = np.zeros(size, bool)
        for part, view in own:
            view.of(seen, part)[...] = True
        # As many as there are, and each of them: none is shown twice.
        if not seen.all():
            return False
    return all(0 <= view.array < len(shapes) for _, view in views)


def _empty(shapes: Sequence[Shape]) -> bool:
    return bool(shapes) and not any(map(math.prod, shapes))


_Function = Callable[..., Arrays]

_Found = tuple[Shape, View, View]
"""The shape of a piece, the view of what a function returned, and of what it took."""


def _of_views(function: _Function, shapes: Sequence[Shape]) -> list[_Found] | None:
    """Describe what a function returns, if that is views."""
    given = [np.zeros(shape, np.uint8) for shape in shapes]
    found = []
    for index, made in enumerate(function(*given)):
        if made.size == 0:
            continue
        owner = next(
            (n for n, a in enumerate(given) if np.may_share_memory(a, made)), None
        )
        if owner is None:
            return None
        offset = made.ctypes.data - given[owner].ctypes.data
        own = View(index, 0, contiguous(made.shape))
        found.append((made.shape, own, View(owner, offset, made.strides)))
    return found


def _of_numbers(function: _Function, shapes: Sequence[Shape]) -> list[_Found] | None:
    """Describe what a function returns by where it puts numbered elements."""
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    given = [
        np.arange(end - math.prod(shape), end).reshape(shape)
        for end, shape in zip(ends, shapes, strict=True)
    ]
    found = []
    for index, made in enumerate(function(*given)):
        if made.size == 0:
            continue
        if made.dtype.kind != "i" or not 0 <= made.min() <= made.max() < ends[-1]:
            return None
        first = int(made.flat[0])
        owner = int(np.searchsorted(ends, first, side="right"))
        start = int(ends[owner]) - math.prod(shapes[owner])
        shape, strides = _digits(made)
        own = View(index, 0, contiguous(shape))
        found.append((shape, own, View(owner, first - start, strides)))
    return found


def _digits(numbers: np.ndarray) -> tuple[Shape, Shape]:
    """Split each axis until the numbers along it are evenly spaced."""
    shape: list[int] = []
    strides: list[int] = []
    for axis, length in enumerate(numbers.shape):
        along = np.moveaxis(numbers, axis, 0).reshape(length, -1)[:, 0]
        inner: list[tuple[int, int]] = []
        step = 1
        while step < length:
            stride = int(along[step] - along[0])
            run = 1
            while run * step < length and along[run * step] - along[0] == run * stride:
                run += 1
            inner.append((run, stride))
            step *= run
        for run, stride in reversed(inner):
            shape.append(run)
            strides.append(stride)
    return tuple(shape), tuple(strides)


def _agree(
    pieces: list[Piece], link: Link, torch: Sequence[Shape], flax: Sequence[Shape]
) -> bool:
    """Try the pieces on other numbers, in both directions."""
    rng = np.random.default_rng(0)
    said = link_of(pieces, torch, flax)
    for function, same, shapes in (
        (link.to_flax, said.to_flax, torch),
        (link.to_torch, said.to_torch, flax),
    ):
        # Of 32 bits, as a link may refuse what a variable of int32 cannot hold.
        given = [rng.integers(-(1 << 31), 1 << 31, size=shape) for shape in shapes]
        results = zip(function(*given), same(*given), strict=True)
        if not all(np.array_equal(one, other) for one, other in results):
            return False
    return True


def _moved(
    given: Sequence[np.ndarray], shapes: Sequence[Shape], parts: Sequence[_Found]
) -> Arrays:
    """Make arrays of some shapes: views if each is one piece, which is in order."""
    given = [np.ascontiguousarray(array) for array in given]
    made = []
    for index, shape in enumerate(shapes):
        own = [_reordered(*part) for part in parts if part[1].array == index]
        if len(own) == 1 and own[0][1].strides == contiguous(own[0][0]):
            ((n, _, source),) = own
            made.append(source.of(given[source.array], n).reshape(shape))
            continue
        array = np.empty(shape, given[0].dtype)
        for n, to, source in own:
            to.of(array, n)[...] = source.of(given[source.array], n)
        made.append(array)
    return tuple(made)


def _reordered(shape: Shape, one: View, other: View) -> _Found:
    """Order the axes of two views as they lie in the array of the first."""
    order = sorted(range(len(shape)), key=lambda axis: -abs(one.strides[axis]))

    def along(view: View) -> View:
        return replace(view, strides=tuple(view.strides[axis] for axis in order))

    return tuple(shape[axis] for axis in order), along(one), along(other)


def contiguous(shape: Shape) -> tuple[int, ...]:
    """Return the strides, in elements, of an array that lies in order."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))

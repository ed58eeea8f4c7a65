"""The order of the axes of arrays whose layer does not say it."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np

from jaxclip.convert._plan import Entry, Plan
from jaxclip.convert._rules.links import Arrays, Link, is_same, permuted

Order = tuple[int | None, ...]
"""For each axis, which of torch's it is; None for one of length 1 that torch lacks."""

Axes = Mapping[str, Sequence[int | None]]


def with_axes(planned: Plan, axes: Axes | None) -> Plan:
    """Permute the axes of what is taken as it is otherwise.

    Args:
        planned: The links and the modules of a model.
        axes: As ``from_torch`` takes it.

    Raises:
        TypeError: If ``axes`` is no mapping from names to permutations.
    """
    said = _checked({} if axes is None else axes)
    entries, problems = [], [*planned.problems]
    used: set[str] = set()
    for entry in planned.entries:
        fits = [each for each in said if _fits(entry, each)]
        if not fits or not is_same(entry.link):
            entries.append(entry)
            continue
        pattern = fits[0]
        used |= {*fits}
        if _is_order(said[pattern], entry.leaves[0].value.shape):
            entries.append(_permuted(entry, said[pattern]))
        else:
            entries.append(entry)
            problems.append(
                f"axes has {pattern!r}: {said[pattern]}, which is no order of the axes "
                f"of {entry}."
            )
    problems += [_unused(pattern, planned) for pattern in said if pattern not in used]
    return Plan(entries, planned.modules, problems)


def likely_order(torch: Sequence[int], port: Sequence[int]) -> Order | None:
    """Return how the axes of an array may lie, as its shape and torch's have it.

    Of several orders it is the usual one: inputs before outputs, and both last.

    Example:
        >>> likely_order((8, 3, 5, 5), (5, 5, 3, 8)), likely_order((2, 3), (2, 4))
        ((2, 3, 1, 0), None)
        >>> likely_order((8,), (8, 1, 1))
        (0, None, None)
    """
    if len(torch) < len(port) and tuple(torch) == tuple(n for n in port if n > 1):
        places = iter(range(len(torch)))
        return tuple(next(places) if size > 1 else None for size in port)
    if len(torch) != len(port) or len(torch) < 2 or sorted(torch) != sorted(port):
        return None
    usual = (*range(2, len(torch)), 1, 0)
    if tuple(torch[axis] for axis in usual) == tuple(port):
        return usual
    order: list[int | None] = []
    for size in port:
        order.append(
            next(n for n, s in enumerate(torch) if s == size and n not in order)
        )
    return tuple(order)


def _checked(axes: Axes) -> dict[str, Order]:
    message = (
        f"axes is {axes!r}; it must be a mapping from names in torch, or patterns of "
        "them, to which axis of torch's each axis is: {'*.w': (1, 0)}; None is for an "
        "axis of length 1 that torch lacks."
    )
    if not isinstance(axes, Mapping):
        raise TypeError(message)
    for name, order in axes.items():
        if (
            not isinstance(name, str)
            or not isinstance(order, Sequence)
            or not all(axis is None or type(axis) is int for axis in order)
            or sorted(_torchs(order)) != [*range(len(_torchs(order)))]
        ):
            raise TypeError(message)
    return {name: tuple(order) for name, order in axes.items()}


def _fits(entry: Entry, pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in entry.names)


def _is_order(order: Order, shape: tuple[int, ...]) -> bool:
    return len(order) == len(shape) and all(
        size == 1 for size, axis in zip(shape, order, strict=True) if axis is None
    )


def _torchs(order: Iterable[int | None]) -> list[int]:
    return [axis for axis in order if axis is not None]


def _permuted(entry: Entry, order: Order) -> Entry:
    torch, flax = entry.link.torch[0], entry.link.flax[0]
    link = permuted(torch, flax, _torchs(order))
    added = tuple(place for place, axis in enumerate(order) if axis is None)
    if not added:
        return replace(entry, link=link)

    def to_flax(array: np.ndarray) -> Arrays:
        (turned,) = link.to_flax(array)
        return (np.expand_dims(turned, added),)

    def to_torch(array: np.ndarray) -> Arrays:
        return link.to_torch(np.squeeze(array, added))

    return replace(entry, link=Link((torch,), (flax,), to_flax, to_torch))


def _unused(pattern: str, planned: Plan) -> str:
    """Say why something that ``axes`` has says nothing."""
    for entry in planned.entries:
        if _fits(entry, pattern):
            return f"axes has {pattern!r}; how {entry} lies follows from its layer."
    names = {name for entry in planned.entries for name in entry.names}
    near = difflib.get_close_matches(pattern, sorted(names), n=3)
    hint = f" Nearest: {', '.join(map(repr, near))}." if near else ""
    return (
        f"axes has {pattern!r}; the target has no tensor of that name in torch.{hint}"
    )

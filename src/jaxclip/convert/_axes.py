"""The order of the axes of arrays whose layer does not say it."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from jaxclip.convert._plan import Entry, Plan
from jaxclip.convert._rules.links import is_same, permuted

Axes = Mapping[str, Sequence[int]]


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
        shape = entry.leaves[0].value.shape
        if len(said[pattern]) == len(shape):
            entries.append(_permuted(entry, said[pattern]))
        else:
            entries.append(entry)
            problems.append(
                f"axes has {pattern!r}: {said[pattern]}, and {entry} has "
                f"{len(shape)} {'axis' if len(shape) == 1 else 'axes'}."
            )
    problems += [_unused(pattern, planned) for pattern in said if pattern not in used]
    return Plan(entries, planned.modules, problems)


def likely_order(torch: Sequence[int], port: Sequence[int]) -> tuple[int, ...] | None:
    """Return how the axes of an array may lie, as its shape and torch's have it.

    Of several orders it is the usual one: inputs before outputs, and both last.

    Example:
        >>> likely_order((8, 3, 5, 5), (5, 5, 3, 8)), likely_order((2, 3), (2, 4))
        ((2, 3, 1, 0), None)
    """
    if len(torch) != len(port) or len(torch) < 2 or sorted(torch) != sorted(port):
        return None
    usual = (*range(2, len(torch)), 1, 0)
    if tuple(torch[axis] for axis in usual) == tuple(port):
        return usual
    order: list[int] = []
    for size in port:
        order.append(
            next(n for n, s in enumerate(torch) if s == size and n not in order)
        )
    return tuple(order)


def _checked(axes: Axes) -> dict[str, tuple[int, ...]]:
    message = (
        f"axes is {axes!r}; it must be a mapping from names in torch, or patterns of "
        "them, to which axis of torch's each axis is: {'*.w': (1, 0)}."
    )
    if not isinstance(axes, Mapping):
        raise TypeError(message)
    for name, order in axes.items():
        if (
            not isinstance(name, str)
            or not isinstance(order, Sequence)
            or not all(type(axis) is int for axis in order)
            or sorted(order) != [*range(len(order))]
        ):
            raise TypeError(message)
    return {name: tuple(order) for name, order in axes.items()}


def _fits(entry: Entry, pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in entry.names)


def _permuted(entry: Entry, order: tuple[int, ...]) -> Entry:
    link = permuted(entry.link.torch[0], entry.link.flax[0], order)
    return replace(entry, link=link)


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

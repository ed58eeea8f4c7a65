"""Reading the values of a model's variables out of a source, one after another."""

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import numpy as np

from jaxclip._arrays import to_numpy
from jaxclip.convert._errors import ConversionError
from jaxclip.convert._plan import Entry
from jaxclip.convert._targets.tree import Leaf, Path

A = TypeVar("A")

_CHUNK = 1 << 20
"""How many elements are compared at a time, so that comparing takes little memory."""


def read(
    entries: Iterable[Entry],
    tensors: Mapping[str, object],
    place: Callable[[Leaf, np.ndarray], A],
    *,
    finite: bool = False,
    on_read: Callable[[int], None] | None = None,
) -> tuple[dict[Path, A], list[str]]:
    """Read the variables of entries of which all tensors fit.

    Args:
        entries: The entries; those for the same variables stand side by side.
        tensors: The tensors by the names in ``entries``.
        place: Makes a variable's array from what may be a view of a tensor.
        finite: Whether a NaN or an infinity is a problem.
        on_read: Is called after each entry with the bytes that it took.

    Returns:
        The arrays, and the problems.
    """
    arrays: dict[Path, A] = {}
    first: dict[Path, Entry] = {}
    problems: list[str] = []
    last: dict[Path, np.ndarray] = {}
    for entry in entries:
        given = [to_numpy(tensors[name]) for name in entry.names]
        if finite:
            problems += _nonfinite(entry.names, given)
        try:
            made = entry.to_flax(*given)
        except ConversionError as error:
            problems += error.problems
            continue
        values = dict(zip((leaf.path for leaf in entry.leaves), made, strict=True))
        for leaf in entry.leaves:
            value = values[leaf.path]
            other = first.setdefault(leaf.path, entry)
            if other is entry:
                arrays[leaf.path] = place(leaf, value)
            elif not _same_memory(last.get(leaf.path), value) and not _same_bits(
                np.asarray(arrays[leaf.path]), np.asarray(place(leaf, value))
            ):
                problems.append(
                    f"{leaf} is one variable with several names, and the source has "
                    f"other values under {', '.join(map(repr, entry.names))} than "
                    f"under {', '.join(map(repr, other.names))}."
                )
        last = values
        if on_read is not None:
            on_read(sum(array.nbytes for array in given))
    return arrays, problems


def _nonfinite(names: Iterable[str], arrays: Iterable[np.ndarray]) -> list[str]:
    problems = []
    for name, array in zip(names, arrays, strict=True):
        flat = array.reshape(-1)
        chunks = (flat[i : i + _CHUNK] for i in range(0, flat.size, _CHUNK))
        count = sum(int(np.count_nonzero(~np.isfinite(chunk))) for chunk in chunks)
        if count:
            problems.append(
                f"{name!r} has {count} elements of {array.size} that are NaN or "
                "infinite, and finite=True."
            )
    return problems


def _same_memory(one: np.ndarray | None, other: np.ndarray) -> bool:
    """Say whether two live arrays are the same elements of the same memory."""
    return one is not None and all(
        one.__array_interface__[key] == other.__array_interface__[key]
        for key in ("data", "shape", "strides", "typestr")
    )


def _same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    ones, others = (a.reshape(-1).view(f"V{a.itemsize}") for a in (one, other))
    parts = (slice(start, start + _CHUNK) for start in range(0, ones.size, _CHUNK))
    return all(ones[part].tobytes() == others[part].tobytes() for part in parts)

"""Taking each variable's values out of the source, and saying what does not fit."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from jaxclip._arrays import to_numpy
from jaxclip.convert._errors import Shape, nearest
from jaxclip.convert._plan import Entry
from jaxclip.convert._tree import Path

_HINTS = 20
"""How many names get a hint: the search for one goes through all the others."""


class Tensor(NamedTuple):
    """A tensor of the source, and what the source calls it."""

    name: str
    value: object

    @property
    def shape(self) -> Shape:
        """The shape; empty where the value is no array."""
        return tuple(getattr(self.value, "shape", ()))


class _MisfitError(Exception):
    """A tensor is not what a variable needs; the message says why."""


def fill(
    entries: Iterable[Entry],
    tensors: Mapping[str, Tensor],
    remedies: Mapping[str, str],
) -> tuple[dict[Path, np.ndarray], list[str]]:
    """Find the values for a model's variables.

    Args:
        entries: The links between torch's names and the model's variables.
        tensors: The tensors of the source, by the names that ``entries`` use.
        remedies: What to do about a tensor that does not fit, by those names.

    Returns:
        The value for each variable, in Flax's layout, and the problems.
    """
    entries = list(entries)
    known = {name for entry in entries for name in entry.names}
    unused = {name: t.shape for name, t in tensors.items() if name not in known}
    entries = _without_spare_aliases(entries, tensors)

    filled: dict[Path, tuple[Entry, np.ndarray]] = {}
    missing: dict[str, Entry] = {}
    problems: list[str] = []
    for entry in entries:
        arrays = []
        for name in entry.names:
            if name not in tensors:
                missing[name] = entry
                continue
            try:
                arrays.append(_checked(name, entry, tensors, remedies))
            except _MisfitError as misfit:
                problems.append(str(misfit))
        if len(arrays) == len(entry.names):
            problems += _store(entry, arrays, filled)
    wanted = {name: entry.expected[name].shape for name, entry in missing.items()}
    values = {path: value for path, (_, value) in filled.items()}
    return values, [
        *_describe_missing(missing, unused),
        *_describe_unused(unused, wanted, tensors, remedies),
        *problems,
    ]


def _without_spare_aliases(
    entries: Iterable[Entry], tensors: Mapping[str, Tensor]
) -> list[Entry]:
    """Leave out the names of tied weights that a source has under another name.

    torch's state dict repeats a tied weight under each of its names; a file holds it
    under one of them.
    """
    by_variables: dict[tuple[object, ...], list[Entry]] = {}
    for entry in entries:
        variables = tuple(leaf.path for leaf in entry.leaves) or entry.names
        by_variables.setdefault(variables, []).append(entry)
    return [
        entry
        for aliases in by_variables.values()
        for entry in (
            [e for e in aliases if any(name in tensors for name in e.names)]
            or aliases[:1]
        )
    ]


def _checked(
    name: str,
    entry: Entry,
    tensors: Mapping[str, Tensor],
    remedies: Mapping[str, str],
) -> np.ndarray:
    """Return a tensor's values if shape and dtype are as they must be."""
    label, expected = _label(name, tensors), entry.expected[name]
    try:
        array = to_numpy(tensors[name].value)
    except TypeError as error:
        raise _MisfitError(f"{label} {error}") from None
    if array.shape != expected.shape:
        alike = {n: t.shape for n, t in tensors.items() if t.shape == expected.shape}
        hint = nearest(name, [expected.shape], alike) + _remedy(name, remedies)
        raise _MisfitError(
            f"{label} has shape {array.shape}; {entry} needs {expected.shape} in "
            f"torch's layout.{hint}"
        )
    if array.dtype != expected.dtype:
        x64 = ", under jax.enable_x64(True)" if array.dtype.itemsize == 8 else ""
        raise _MisfitError(
            f"{label} is {array.dtype}; {entry} needs {expected.dtype}. Nothing is "
            f"cast on the way: cast the source to {expected.dtype} first, or build "
            f"the target with {array.dtype} parameters{x64}."
        )
    return array


def _store(
    entry: Entry,
    arrays: list[np.ndarray],
    filled: dict[Path, tuple[Entry, np.ndarray]],
) -> list[str]:
    """Keep the values of an entry, unless tied weights turn out not to be tied."""
    problems = []
    for leaf, value in zip(entry.leaves, entry.to_flax(*arrays), strict=True):
        other, kept = filled.setdefault(leaf.path, (entry, value))
        if other is not entry and kept.tobytes() != value.tobytes():
            problems.append(
                f"{leaf} is one variable with several names, and the source has other "
                f"values under {', '.join(map(repr, entry.names))} than under "
                f"{', '.join(map(repr, other.names))}."
            )
    return problems


def _describe_missing(
    missing: Mapping[str, Entry], unused: Mapping[str, Shape]
) -> list[str]:
    problems = []
    for index, (name, entry) in enumerate(missing.items()):
        shape = entry.expected[name].shape
        hint = nearest(name, [shape], unused) if index < _HINTS else ""
        problems.append(
            f"{entry} is not filled: the source has no {name!r} {shape}.{hint}"
        )
    return problems


def _describe_unused(
    unused: Mapping[str, Shape],
    wanted: Mapping[str, Shape],
    tensors: Mapping[str, Tensor],
    remedies: Mapping[str, str],
) -> list[str]:
    problems = []
    for index, (name, shape) in enumerate(unused.items()):
        label, value = _label(name, tensors), tensors[name].value
        if isinstance(value, Mapping):
            problems.append(
                f"{label} is a mapping, not a tensor; if it is the state dict, pass it "
                "alone."
            )
        else:
            hint = _remedy(name, remedies)
            if not hint and index < _HINTS:
                hint = nearest(name, [shape], wanted)
            problems.append(f"{label} {shape} is not used.{hint}")
    return problems


def _remedy(name: str, remedies: Mapping[str, str]) -> str:
    return f" {remedies[name]}" if name in remedies else ""


def _label(name: str, tensors: Mapping[str, Tensor]) -> str:
    source = tensors[name].name
    return repr(name) if source == name else f"{name!r} (in the source {source!r})"

"""Whether the tensors of a source are those that a model's variables need."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxclip._arrays import to_numpy
from jaxclip.convert._axes import likely_order
from jaxclip.convert._errors import Shape, nearest
from jaxclip.convert._plan import Entry
from jaxclip.convert._rules.links import is_same

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


class Dtypes(NamedTuple):
    """Which dtypes a tensor may have.

    Attributes:
        checked: Whether it must be that of the variable.
        cast: Whether any float is as good as another, because it is cast.
    """

    checked: bool = True
    cast: bool = False

    def agree(self, given: np.dtype[Any], needed: np.dtype[Any]) -> bool:
        """Say whether a dtype will do."""
        if not self.checked or given == needed:
            return True
        return self.cast and is_float(given) and is_float(needed)


class Match(NamedTuple):
    """What fits, and what does not.

    Attributes:
        entries: Those of which the source has the tensors.
        missing: The shapes of the tensors that it lacks.
        unused: The shapes of its tensors that no entry uses.
        problems: All that is wrong, in words.
    """

    entries: list[Entry]
    missing: dict[str, Shape]
    unused: dict[str, Shape]
    problems: list[str]


def match(
    entries: Iterable[Entry],
    tensors: Mapping[str, Tensor],
    dtypes: Dtypes,
    remedies: Mapping[str, str] | None = None,
) -> Match:
    """Compare names, shapes and dtypes; no values are read.

    Args:
        entries: The links between torch's names and the model's variables.
        tensors: The tensors of the source, by the names that ``entries`` use.
        dtypes: Which dtypes they may have.
        remedies: What to do about a tensor that does not fit, by those names.
    """
    entries, remedies = list(entries), remedies or {}
    known = {name for entry in entries for name in entry.names}
    unused = {name: t.shape for name, t in tensors.items() if name not in known}
    entries = _without_spare_aliases(entries, tensors)

    missing: dict[str, Entry] = {}
    problems: list[str] = []
    for entry in entries:
        for name in entry.names:
            if name not in tensors:
                missing[name] = entry
            elif misfit := _misfit(name, entry, tensors, dtypes, remedies):
                problems.append(misfit)
    wanted = {name: entry.expected[name].shape for name, entry in missing.items()}
    return Match(
        entries,
        wanted,
        unused,
        [
            *_describe_missing(missing, unused),
            *_describe_unused(unused, wanted, tensors, remedies),
            *problems,
        ],
    )


def is_float(dtype: np.dtype[Any]) -> bool:
    """Say whether a dtype is a real floating one, those of ml_dtypes among them."""
    return bool(jnp.issubdtype(dtype, jnp.floating))


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


def _misfit(
    name: str,
    entry: Entry,
    tensors: Mapping[str, Tensor],
    dtypes: Dtypes,
    remedies: Mapping[str, str],
) -> str | None:
    """Say what is wrong with a tensor, if anything is."""
    label, expected = _label(name, tensors), entry.expected[name]
    try:
        array = to_numpy(tensors[name].value)
    except TypeError as error:
        return f"{label} {error}"
    if array.shape != expected.shape:
        alike = {n: t.shape for n, t in tensors.items() if t.shape == expected.shape}
        hint = nearest(name, [expected.shape], alike) + _remedy(name, remedies)
        order = likely_order(array.shape, expected.shape)
        if order is not None and is_same(entry.link):
            hint += f" If its axes lie in another order: axes={{{name!r}: {order}}}."
        return (
            f"{label} has shape {array.shape}; {entry} needs {expected.shape} in "
            f"torch's layout.{hint}"
        )
    if not dtypes.agree(array.dtype, expected.dtype):
        hint = _cast_hint(array.dtype, expected.dtype)
        return f"{label} is {array.dtype}; {entry} needs {expected.dtype}. {hint}"
    return None


def _cast_hint(given: np.dtype[Any], needed: np.dtype[Any]) -> str:
    x64 = ", under jax.enable_x64(True)" if given.itemsize == 8 else ""
    build = f"build the target with {given} parameters{x64}"
    if is_float(given) and is_float(needed):
        return f"Nothing is cast unless dtype={str(needed)!r} says so; or {build}."
    return f"Only floats are cast, to floats: cast the source first, or {build}."


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
                f"{label} is a mapping, not a tensor; if it is the state dict, say so "
                f"with key={tensors[name].name!r}."
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

"""Maps in JSON files: names, shapes, and which elements go where, and no code."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip._files import write_whole
from jaxclip.convert._errors import ConversionError, Shape
from jaxclip.convert._modules import ModulePair
from jaxclip.convert._plan import Entry
from jaxclip.convert._rules.layouts import Layout, checked
from jaxclip.convert._rules.links import Link, narrowed
from jaxclip.convert._rules.pieces import Piece, View, link_of, uncovered_by
from jaxclip.convert._targets.tree import Leaf

_FORMAT = "jaxclip.convert map, version 2"

_WITHOUT_MODULES = "jaxclip.convert map, version 1"

_BAD = (
    *(ValueError, KeyError, TypeError, AttributeError, IndexError),
    *(OverflowError, MemoryError, RecursionError),
)
"""What reading raises where the parts of a file are not as they should be."""


def save(
    path: Path,
    entries: Sequence[Entry],
    notes: Sequence[str],
    modules: Sequence[ModulePair],
) -> None:
    """Write a map."""
    links = []
    problems: list[str] = []
    for entry in entries:
        try:
            links.append(_said(entry))
        except ConversionError as error:
            problems += error.problems
    if problems:
        raise ConversionError(problems)
    whole = {
        "format": _FORMAT,
        "notes": [*notes],
        "links": links,
        "modules": [asdict(pair) for pair in modules],
    }
    text = json.dumps(whole, indent=1)
    write_whole(path, lambda file: file.write(text.encode()))


def load(
    path: Path,
) -> tuple[tuple[Entry, ...], tuple[str, ...], tuple[ModulePair, ...]]:
    """Read a map, and check that it moves each element once."""
    try:
        whole = json.loads(path.read_bytes())
        if whole["format"] not in (_FORMAT, _WITHOUT_MODULES):
            raise ValueError(f"its format is {whole['format']!r}, not {_FORMAT!r}")
        entries = tuple(map(_entry, whole["links"]))
        notes = tuple(map(str, whole["notes"]))
        modules = _modules(whole["modules"]) if whole["format"] == _FORMAT else ()
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no map at {str(path)!r}.") from None
    except _BAD as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{str(path)!r} is damaged or no map: {reason}.") from None
    return entries, notes, modules


def _modules(said: list[dict[str, Any]]) -> tuple[ModulePair, ...]:
    modules = tuple(
        ModulePair(
            str(pair["torch"]),
            str(pair["flax"]),
            str(pair["kind"]),
            _layout(pair["layout"]),
            None if pair["alias_of"] is None else str(pair["alias_of"]),
        )
        for pair in said
    )
    for paths in ([pair.torch for pair in modules], [pair.flax for pair in modules]):
        if len(set(paths)) < len(paths):
            raise ValueError("it has several modules at one path")
    return modules


def _layout(said: Any) -> Layout | None:
    return None if said is None else checked(said, "a layout")


def _said(entry: Entry) -> dict[str, Any]:
    """Describe a link.

    Raises:
        ConversionError: If it cannot be described.
    """
    tensors = [
        {"name": name, "shape": [*spec.shape], "dtype": str(spec.dtype)}
        for name, spec in entry.expected.items()
    ]
    said: dict[str, Any] = {"torch": tensors}
    if not entry.leaves:
        values = entry.link.to_torch()
        if any(value.size != 1 for value in values):
            raise ConversionError([_unsayable(entry)])
        return {**said, "values": [value.item() for value in values]}
    found = entry.pieces
    if found is None:
        raise ConversionError([_unsayable(entry)])
    said["flax"] = [
        {
            "path": [*leaf.path],
            "shape": [*leaf.value.shape],
            "dtype": str(leaf.value.dtype),
            "trained": leaf.trained,
        }
        for leaf in entry.leaves
    ]
    said["pieces"] = [
        {
            "shape": [*map(int, piece.shape)],
            "torch": _said_view(piece.torch),
            "flax": _said_view(piece.flax),
        }
        for piece in found
    ]
    return said


def _unsayable(entry: Entry) -> str:
    names = ", ".join(map(repr, entry.names))
    return (
        f"{entry or 'no variable'} and {names}: their layouts differ by more than the "
        "places of their elements, which a file cannot say. Make the mapping from the "
        "model instead."
    )


def _said_view(view: View) -> dict[str, Any]:
    strides = [*map(int, view.strides)]
    return {"array": view.array, "offset": int(view.offset), "strides": strides}


def _entry(said: dict[str, Any]) -> Entry:
    names = tuple(str(tensor["name"]) for tensor in said["torch"])
    shapes = [_ints(tensor["shape"], least=0) for tensor in said["torch"]]
    if "values" in said:
        return _constant(names, shapes, said)
    leaves = tuple(
        Leaf(
            tuple(map(str, variable["path"])),
            jax.ShapeDtypeStruct(
                _ints(variable["shape"], least=0), jnp.dtype(variable["dtype"])
            ),
            trained=bool(variable["trained"]),
        )
        for variable in said["flax"]
    )
    found = [
        Piece(
            _ints(piece["shape"], least=1), _view(piece["torch"]), _view(piece["flax"])
        )
        for piece in said["pieces"]
    ]
    into = [leaf.value.shape for leaf in leaves]
    if uncovered_by(found, shapes, into):
        raise ValueError(
            f"it does not say of each element of {', '.join(map(repr, names))}, once, "
            "where it goes"
        )
    link = link_of(found, shapes, into)
    if _dtypes(said["torch"]) == {"int64"} and _dtypes(said["flax"]) == {"int32"}:
        link = narrowed(replace(link, torch=names))
    return Entry(link, names, leaves)


def _dtypes(said: list[dict[str, Any]]) -> set[str]:
    return {array["dtype"] for array in said}


def _constant(
    names: tuple[str, ...], shapes: list[Shape], said: dict[str, Any]
) -> Entry:
    dtypes = [jnp.dtype(tensor["dtype"]) for tensor in said["torch"]]
    arrays = tuple(
        np.full(shape, value, dtype)
        for shape, value, dtype in zip(shapes, said["values"], dtypes, strict=True)
        if shape in ((), (1,))
    )
    if len(arrays) != len(names):
        raise ValueError(f"{', '.join(map(repr, names))} are not single numbers")
    return Entry(Link(names, (), lambda *tensors: (), lambda: arrays), names, ())


def _view(said: dict[str, Any]) -> View:
    array, offset = _ints([said["array"], said["offset"]], least=0)
    return View(array, offset, _ints(said["strides"], least=None))


def _ints(said: list[Any], *, least: int | None) -> tuple[int, ...]:
    """Read integers, which nothing else in the file may pass for."""
    for value in said:
        if type(value) is not int or (least is not None and value < least):
            raise ValueError(f"{value!r} is no size, offset or stride")
    return tuple(said)

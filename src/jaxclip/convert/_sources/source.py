"""Where weights come from: modules, state dicts, and files of several kinds."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxclip._safetensors import read_safetensors
from jaxclip.convert._sources.torch_files import read_torch

_READERS: dict[str, Callable[[Path], Mapping[Any, Any]]] = {
    ".safetensors": read_safetensors,
    **dict.fromkeys((".pt", ".pth", ".bin"), read_torch),
}

_INDEX = ".index.json"
"""How the names of files end that say which tensor lies in which of several files."""

_KINDS = f"{', '.join(_READERS)} or {_INDEX}"


class Source(NamedTuple):
    """The tensors of a source by name, as they are, and where in it they were."""

    tensors: dict[str, Any]
    notes: tuple[str, ...] = ()


def read_source(source: object, key: str | None = None) -> Source:
    """Find the tensors of a source.

    Args:
        source: A module or whatever else has a ``state_dict()``, a mapping, or the
            path of a file.
        key: Under which key of the mapping or the file the state dict lies; ``""`` if
            it is the whole. By default that is found out.

    Raises:
        TypeError: If it is none of these, or a name is no string.
        FileNotFoundError: If there is no such file.
        ValueError: If the file has another suffix, is damaged, or holds no state
            dict; if there is no such key, or without one several state dicts.
        ImportError: If what reads such a file is not installed.
    """
    what = "source"
    if isinstance(source, str | os.PathLike):
        what = f"source is {str(source)!r}, which"
        source = _read_file(Path(source))
    elif callable(getattr(source, "state_dict", None)):
        source = source.state_dict()  # type: ignore[attr-defined]
    if not isinstance(source, Mapping):
        raise TypeError(
            f"source is a {type(source).__name__}; it must be a torch module or "
            "whatever else has a state_dict(), a state dict, or the path of a "
            f"{_KINDS} file."
        )
    tensors, notes = _at(source, key, what)
    for name in tensors:
        if not isinstance(name, str):
            raise TypeError(f"{what} has the name {name!r}; a name must be a string.")
    return Source(dict(tensors), notes)


def _at(
    source: Mapping[Any, Any], key: str | None, what: str
) -> tuple[Mapping[Any, Any], tuple[str, ...]]:
    """Find the state dict in a checkpoint."""
    if key == "":
        return source, ()
    if key is not None:
        found = source.get(key)
        if not isinstance(found, Mapping):
            raise ValueError(
                f"{what} has no state dict under key={key!r}. {_choices(source)}"
            )
        return found, (f"the state dict lay under {key!r}",)
    nested = [name for name, value in source.items() if _is_state_dict(value)]
    if not nested:
        return source, ()
    if len(nested) > 1 or any(map(_is_array, source.values())):
        raise ValueError(f"{what} holds more than one state dict. {_choices(source)}")
    return source[nested[0]], (f"the state dict lay under {nested[0]!r}",)


def _choices(source: Mapping[Any, Any]) -> str:
    here = sum(map(_is_array, source.values()))
    counts = {"": here} if here else {}
    counts |= {
        name: len(value) for name, value in source.items() if _is_state_dict(value)
    }
    if not counts:
        return f"It has the keys {', '.join(map(repr, source))}."
    choices = (
        f"key={name!r} ({count} tensor{'s' * (count != 1)})"
        for name, count in counts.items()
    )
    return f"Say which it is: {', '.join(choices)}."


def _is_state_dict(value: object) -> bool:
    return isinstance(value, Mapping) and any(map(_is_array, value.values()))


def _is_array(value: object) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _read_file(path: Path) -> Mapping[Any, Any]:
    reader = _read_index if path.name.endswith(_INDEX) else _READERS.get(path.suffix)
    if reader is None:
        raise ValueError(
            f"source is {str(path)!r}, a file with the suffix {path.suffix!r}; it must "
            f"be one of {_KINDS}."
        )
    if not path.is_file():
        raise FileNotFoundError(f"source is {str(path)!r}; there is no such file.")
    return reader(path)


def _read_index(path: Path) -> dict[str, Any]:
    """Read the files that an index names, each of which must hold what it says."""
    where = f"source is {str(path)!r}"
    try:
        files = json.loads(path.read_bytes())["weight_map"]
        folder = {str(name): str(file) for name, file in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(
            f"{where}; it is damaged or no index: it must be a JSON object with a "
            "'weight_map' from names to files."
        ) from None
    tensors: dict[str, Any] = {}
    for file in sorted(set(folder.values())):
        # An index from somewhere must not reach out of its folder.
        if Path(file).name != file or Path(file).suffix not in _READERS:
            raise ValueError(
                f"{where}; it names the file {file!r}, which is not the name of a "
                f"{', '.join(_READERS)} file beside it."
            )
        held = _read_file(path.with_name(file))
        listed = {name for name, other in folder.items() if other == file}
        for name in sorted(listed ^ held.keys()):
            what = "lacks" if name in listed else "has, unlike the index,"
            raise ValueError(f"{where}; {file!r} {what} the tensor {name!r}.")
        tensors |= held
    return {name: tensors[name] for name in folder}

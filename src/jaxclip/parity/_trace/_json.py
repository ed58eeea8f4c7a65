"""JSON that carries its own checksum, read into dataclasses by their type hints."""

import dataclasses
import functools
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

FORMAT = "jaxclip.trace"
VERSION = 1
"""Counts up when a reader of the format before cannot read what is written."""

LARGEST = 1 << 28
"""In bytes; so much JSON is written to a file and read from it at most."""


class TraceError(ValueError):
    """A recording cannot be read, or not be written; the message names the file.

    Example:
        >>> issubclass(TraceError, ValueError)
        True
    """

    # Where users import it from, which is what tracebacks should show.
    __module__ = "jaxclip.parity"


def seal(record: Any) -> bytes:
    """Write a dataclass as one line of JSON, with the version and a checksum.

    Example:
        >>> line = seal({"answer": 42, "norm": float("inf")})
        >>> unseal(line, "line 1")
        {'answer': 42, 'norm': inf}
    """
    plain = _strict(record)
    sealed = {
        "format": FORMAT,
        "version": VERSION,
        "sha256": _checksum(plain),
        "record": plain,
    }
    return json.dumps(sealed, allow_nan=False).encode() + b"\n"


def unseal(line: bytes, where: str) -> Any:
    """Read the record of a line that ``seal`` wrote.

    Args:
        line: The line.
        where: The file, and the line in it, for errors.

    Raises:
        TraceError: If it is damaged, of a newer version, or nothing of the kind.
    """
    try:
        sealed = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        # Bytes that are no UTF-8, no JSON, or a number of thousands of digits.
        raise TraceError(f"{where} is damaged: it is not JSON ({error}).") from None
    if not isinstance(sealed, dict) or sealed.get("format") != FORMAT:
        raise TraceError(f"{where} is not part of a recording by jaxclip.parity.")
    version = sealed.get("version")
    if type(version) is int and version > VERSION:
        raise TraceError(
            f"{where} has version {version} of the format, and this jaxclip reads up "
            f"to version {VERSION}: upgrade jaxclip."
        )
    record = sealed.get("record")
    try:
        intact = version == VERSION and sealed.get("sha256") == _checksum(record)
    except ValueError:  # an infinity, which `seal` never writes
        intact = False
    if not intact:
        raise TraceError(f"{where} is damaged: its checksum is another.")
    return _loose(record)


def _checksum(plain: Any) -> str:
    text = json.dumps(plain, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _strict(value: Any) -> Any:
    """Put what JSON lacks into what it has: infinity is ``{"float": "inf"}``."""
    match value:
        case float() if not math.isfinite(value):
            return {"float": str(value)}
        case Mapping():
            return {str(key): _strict(item) for key, item in value.items()}
        case list() | tuple():
            return [*map(_strict, value)]
        case None | bool() | int() | float() | str():
            return value
        case _ if dataclasses.is_dataclass(value):
            fields = dataclasses.fields(value)
            return {f.name: _strict(getattr(value, f.name)) for f in fields}
        case _:
            return str(value)


def _loose(value: Any) -> Any:
    match value:
        case {"float": "inf" | "-inf" | "nan" as text, **rest} if not rest:
            return float(text)
        case dict():
            return {key: _loose(item) for key, item in value.items()}
        case list():
            return [*map(_loose, value)]
        case _:
            return value


_hints = functools.cache(typing.get_type_hints)


def structured(kind: Any, value: Any, where: str) -> Any:
    """Make a dataclass, or what its hints name, of what JSON says.

    Args:
        kind: A dataclass, ``tuple[X, ...]``, ``Mapping[str, X]``, ``X | None``, `int`
            for a size or a number of something, `str`, `bool` or `Any`.
        value: What was read.
        where: The file, and the place in it, for errors.

    Raises:
        TraceError: If the value is of another kind, or lacks a field.

    Example:
        >>> structured(tuple[int, ...], [1, 2], "sizes")
        (1, 2)
        >>> structured(int, "two", "manifest.json: size")
        Traceback (most recent call last):
        jaxclip.parity.TraceError: manifest.json: size is 'two', which is no int.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin is types.UnionType:
        (other,) = (each for each in arguments if each is not type(None))
        return None if value is None else structured(other, value, where)
    if origin is tuple and isinstance(value, list):
        items = enumerate(value)
        return tuple(structured(arguments[0], v, f"{where}[{i}]") for i, v in items)
    if origin is Mapping and isinstance(value, dict):
        return {
            k: structured(arguments[1], v, f"{where}.{k}") for k, v in value.items()
        }
    if (
        isinstance(kind, type)
        and dataclasses.is_dataclass(kind)
        and isinstance(value, dict)
    ):
        hints = _hints(kind)
        if value.keys() != hints.keys():
            wrong = min(value.keys() ^ hints.keys())
            what = "lacks" if wrong in hints else "has an unknown"
            raise TraceError(f"{where} {what} {wrong!r}.")
        return kind(
            **{k: structured(hints[k], v, f"{where}: {k}") for k, v in value.items()}
        )
    if kind in (str, bool) and type(value) is kind:
        return value
    if kind is int and type(value) is int and 0 <= value < 2**63:
        return value
    name = kind.__name__ if origin is None else str(kind)
    said = repr(value)
    said = said if len(said) < 60 else f"{said[:60]}..."
    raise TraceError(f"{where} is {said}, which is no {name}.")

"""Safetensors files: the header checked whole, the tensors mapped one by one.

The safetensors library copies what it reads, keeps the last of two tensors of one name,
and does not name the tensor in each of its errors. Nothing here takes memory for what
a header says before the file has been seen to hold it.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from jaxclip._files import write_whole

_LARGEST_HEADER = 100_000_000
"""In bytes; the format's own limit."""

_DTYPES = {
    **{"BOOL": "bool", "C64": "complex64"},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{"BF16": "bfloat16", "F8_E8M0": "float8_e8m0fnu"},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"},
    **{"F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz"},
}
"""NumPy's names of the format's types; the format also has floats of 4 and 6 bits."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, which is read anew each time that it is asked for.

    Attributes:
        file: The file.
        offset: Where in the file it starts, in bytes.
        shape: Its shape.
        dtype: Its dtype.
    """

    file: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """How many bytes of the file it takes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Map the tensor's part of the file: read-only, and no memory of its own."""
        if self.nbytes == 0:
            array = np.empty(self.shape, self.dtype)
        else:
            # A map for each tensor, so that its pages go when the array does.
            mapped = np.memmap(self.file, np.uint8, "r", self.offset, (self.nbytes,))
            array = mapped.view(np.ndarray).view(self.dtype).reshape(self.shape)
        return np.array(array, dtype=dtype, copy=copy)


class _DamageError(Exception):
    """A file is not as the format wants it; the message says how."""


def read_safetensors(path: Path, what: str = "source") -> dict[str, StoredTensor]:
    """Read the header of a safetensors file.

    Args:
        path: The file.
        what: What the file is to the user; an error starts with it.

    Returns:
        The tensors by name, in the order in which they lie in the file.

    Raises:
        ValueError: If the file is not as the format wants it, or holds a dtype that
            NumPy lacks.
    """
    try:
        return _tensors(path)
    except _DamageError as error:
        raise ValueError(
            f"{what} is {str(path)!r}; it is damaged or no safetensors file: {error}."
        ) from None


def _tensors(path: Path) -> dict[str, StoredTensor]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8:
            raise _DamageError(f"it ends after {size} bytes, within its first number")
        if length > min(size - 8, _LARGEST_HEADER):
            raise _DamageError(f"a header of {length} bytes, in a file of {size}")
        header = _parsed(file.read(length))
    header.pop("__metadata__", None)
    start, data = 8 + length, size - 8 - length
    spans = {name: _span(name, entry, data) for name, entry in header.items()}
    end = 0
    for name, (first, last) in sorted(spans.items(), key=lambda item: item[1]):
        if first != end:
            what = "overlaps the" if first < end else "leaves a gap after the"
            raise _DamageError(f"tensor {name!r} {what} one before it")
        end = last
    if end != data:
        raise _DamageError(f"{data - end} bytes at its end belong to no tensor")
    return {
        name: StoredTensor(
            path,
            offset=start + spans[name][0],
            shape=tuple(entry["shape"]),
            dtype=jnp.dtype(_DTYPES[entry["dtype"]]),
        )
        for name, entry in sorted(header.items(), key=lambda item: spans[item[0]])
    }


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text.decode(), object_pairs_hook=_without_twins)
    except (ValueError, RecursionError) as error:
        # Bytes that are no UTF-8, no JSON, or a number of thousands of digits.
        raise _DamageError(f"its header is not JSON ({error})") from None
    if not isinstance(header, dict):
        raise _DamageError("its header is not a JSON object")
    return header


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    once = dict(pairs)
    if len(once) < len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise _DamageError(f"its header has the name {twice!r} twice")
    return once


def _span(name: str, entry: object, data: int) -> tuple[int, int]:
    """Return where a tensor starts and ends, if what the header says of it agrees."""
    match entry:
        case {
            "dtype": str() as dtype,
            "shape": list() as shape,
            "data_offsets": [start, end],
        } if len(shape) <= 64 and all(map(_is_size, [*shape, start, end])):
            pass
        case _:
            raise _DamageError(
                f"tensor {name!r} has no dtype, no shape that an array can have, or no "
                "two data_offsets"
            )
    if dtype not in _DTYPES:
        raise _DamageError(f"tensor {name!r} is {dtype!r}, which NumPy lacks")
    if not start <= end <= data:
        raise _DamageError(
            f"tensor {name!r} lies at bytes {start} to {end} of {data} of data"
        )
    # Python's integers do not overflow.
    needed = math.prod(shape) * jnp.dtype(_DTYPES[dtype]).itemsize
    if needed != end - start:
        raise _DamageError(
            f"tensor {name!r} has {end - start} bytes, and its shape {tuple(shape)} "
            f"in {dtype} takes {needed}"
        )
    return start, end


def _is_size(value: object) -> bool:
    # A bool is an int, too.
    return type(value) is int and 0 <= value < 2**63


def write_safetensors(
    path: Path,
    arrays: Mapping[str, Any],
    on_bytes: Callable[[bytes | memoryview], object] | None = None,
) -> None:
    """Write arrays of NumPy's or JAX's, one after another, without a copy of all.

    Args:
        path: The file, which is written whole or not at all.
        arrays: The arrays by name.
        on_bytes: Is called with each part of the file, in order, as it is written.

    Raises:
        ValueError: If the format has no such dtype.
        OSError: If the file cannot be written.
    """
    names = {dtype: name for name, dtype in _DTYPES.items()}
    header, end = {}, 0
    for name, array in arrays.items():
        if str(array.dtype) not in names:
            raise ValueError(f"{name!r} is {array.dtype}, which safetensors lacks.")
        start, end = end, end + array.nbytes
        header[name] = {
            "dtype": names[str(array.dtype)],
            "shape": array.shape,
            "data_offsets": (start, end),
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)

    def write(file: BinaryIO) -> None:
        parts = (_bytes(array) for array in arrays.values())
        for part in chain[Any]((len(text).to_bytes(8, "little"), text), parts):
            file.write(part)
            if on_bytes is not None:
                on_bytes(part)

    write_whole(path, write)


def _bytes(array: Any) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data

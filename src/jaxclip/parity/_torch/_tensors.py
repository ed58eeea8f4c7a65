"""Tensors, and what holds them, as arrays that are copies."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jaxclip._arrays import to_numpy

Array = np.ndarray[Any, Any]


def viewed(leaf: Any) -> Array:
    """Read a tensor, an array or a number as an array, which may share its memory.

    A sparse tensor is made dense.

    Raises:
        TypeError: If it is nothing of the kind; the message is the rest of a sentence.
    """
    if not is_array(leaf):
        kind = f"{leaf.dtype} array" if hasattr(leaf, "dtype") else type(leaf).__name__
        raise TypeError(f"is a {kind}, not a tensor, an array or a number.")
    if isinstance(leaf, Tensor) and leaf.layout != torch.strided:
        leaf = leaf.detach().to_dense()
    return to_numpy(leaf) if isinstance(leaf, Tensor) else np.asarray(leaf)


def copied(leaf: Any) -> Array:
    """Copy a tensor, an array or a number, whatever ``viewed`` reads.

    Example:
        >>> copied(torch.ones(2, dtype=torch.float64))
        array([1., 1.])
    """
    array = viewed(leaf)
    elsewhere = isinstance(leaf, Tensor) and leaf.device.type != "cpu"
    return array if elsewhere else np.array(array, order="C")


def is_array(leaf: Any) -> bool:
    """Say whether ``viewed`` reads it."""
    if isinstance(leaf, np.ndarray | np.generic):
        return leaf.dtype.kind not in "OSUMm"
    return isinstance(leaf, Tensor | bool | int | float | complex)


def flattened(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what lies in nested tuples, lists, mappings and dataclasses, with its path.

    None is left out.

    Example:
        >>> dict(flattened({"x": (1, [2, None]), "y": 3}))
        {'x.0': 1, 'x.1.0': 2, 'y': 3}
        >>> dict(flattened(1))
        {'': 1}
    """
    items: Any
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, tuple | list):
        items = enumerate(value)
    elif dataclasses.is_dataclass(value):
        items = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
    else:
        if value is not None:
            yield path, value
        return
    for key, item in items:
        yield from flattened(item, f"{path}.{key}" if path else str(key))


def same_bits(one: Array, other: Array) -> bool:
    """Say whether two arrays have the same shape, dtype and bits, those of NaN too."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    if np.iscomplexobj(one):
        return same_bits(one.real, other.real) and same_bits(one.imag, other.imag)
    integer = f"u{one.itemsize}"
    return np.array_equal(one.view(integer), other.view(integer))

"""Where weights come from: modules, state dicts and files."""

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxclip.convert._optional import need


def read_source(source: object) -> dict[str, Any]:
    """Return the tensors of a source by name, as they are.

    Args:
        source: A module or whatever else has a ``state_dict()``, a mapping, or the
            path of a ``.safetensors``, ``.pt`` or ``.pth`` file.

    Raises:
        TypeError: If it is none of these, or a name is no string.
        FileNotFoundError: If there is no such file.
        ValueError: If the file has another suffix, is damaged, or holds no state
            dict.
        ImportError: If what reads such a file is not installed.
    """
    if isinstance(source, str | os.PathLike):
        source = _read_file(Path(source))
    elif callable(getattr(source, "state_dict", None)):
        source = source.state_dict()  # type: ignore[attr-defined]
    if not isinstance(source, Mapping):
        raise TypeError(
            f"source is a {type(source).__name__}; it must be a torch module or "
            "whatever else has a state_dict(), a state dict, or the path of a "
            ".safetensors, .pt or .pth file."
        )
    for name in source:
        if not isinstance(name, str):
            raise TypeError(f"source has the name {name!r}; a name must be a string.")
    return dict(source)


def _read_file(path: Path) -> object:
    readers = {
        ".safetensors": _read_safetensors,
        ".pt": _read_torch,
        ".pth": _read_torch,
    }
    if path.suffix not in readers:
        raise ValueError(
            f"source is {str(path)!r}, a file with the suffix {path.suffix!r}; it must "
            f"be one of {', '.join(readers)}."
        )
    if not path.is_file():
        raise FileNotFoundError(f"source is {str(path)!r}; there is no such file.")
    return readers[path.suffix](path)


def _read_safetensors(path: Path) -> object:
    reason = f"the safetensors file {str(path)!r}"
    safetensors = need("safetensors", extra="flax", reason=reason)
    reader = need("safetensors.numpy", extra="flax", reason=reason)
    try:
        return reader.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"source is {str(path)!r}; it is damaged or no safetensors file: {error}"
        ) from None
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"source is {str(path)!r}; it holds a dtype that NumPy lacks: {error}"
        ) from None


def _read_torch(path: Path) -> object:
    torch = need("torch", extra="torch", reason=f"the torch file {str(path)!r}")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        # torch's own message says how to run the code in the file.
        raise ValueError(
            f"source is {str(path)!r}; it is damaged, or holds other Python objects "
            "than tensors, which are never unpickled. Save model.state_dict(), not "
            "the model."
        ) from None
    except Exception as error:
        # A damaged file makes torch.load raise whatever its parts happen to raise.
        reason = str(error).partition(". ")[0] or type(error).__name__
        raise ValueError(
            f"source is {str(path)!r}; it is damaged or no torch file: {reason}"
        ) from None
    if not isinstance(loaded, Mapping):
        raise ValueError(
            f"source is {str(path)!r}, which holds a {type(loaded).__name__}; it must "
            "hold a state dict."
        )
    return loaded

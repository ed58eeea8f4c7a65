"""Reading torch's own files, of which nothing is ever unpickled but tensors."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxclip.convert._optional import need


def read_torch(path: Path) -> Mapping[Any, Any]:
    """Read what a ``.pt``, ``.pth`` or ``.bin`` file holds, its tensors memory-mapped.

    Raises:
        ValueError: If the file is damaged, holds other objects than tensors, or
            holds no dict.
        ImportError: If torch is missing.
    """
    torch = need("torch", extra="torch", reason=f"the torch file {str(path)!r}")
    try:
        loaded = torch.load(
            path,
            map_location="cpu",
            weights_only=True,
            # Files of torch before 1.6 are no zip archives, and cannot be mapped.
            mmap=zipfile.is_zipfile(path),
        )
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

"""Packages that only some conversions need."""

import importlib
from types import ModuleType


def need(name: str, *, extra: str, reason: str) -> ModuleType:
    """Import a package, or say who needs it and how to install it.

    Args:
        name: The module to import.
        extra: The extra of this project that brings the package.
        reason: What needs it, as the start of a sentence.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        package = name.partition(".")[0]
        raise ImportError(
            f"{reason} needs {package}, which is not installed: "
            f"pip install 'jaxclip[{extra}]'"
        ) from None

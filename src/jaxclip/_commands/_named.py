"""What a user names on the command line, as `module:name`."""

import importlib
import os
import re
import sys
from typing import TYPE_CHECKING, Any

from jaxclip._commands._arguments import CommandError

if TYPE_CHECKING:
    from jaxclip.convert._names import Rename


def named(name: str) -> Any:
    """Import what a ``module:name`` stands for."""
    from flax import nnx

    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise CommandError(f"{name} is not of the form MODULE:NAME")
    # As `python -m` does, so that a file beside the user is found.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        target: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and module_name.split(".")[0] == error.name.split(".")[0]:
            raise CommandError(
                f"there is no module {module_name!r}, neither here nor installed"
            ) from None
        raise CommandError(f"{module_name} cannot be imported: {error}") from None
    except Exception as error:
        kind = type(error).__name__
        raise CommandError(
            f"{module_name} cannot be imported: {kind}: {error}"
        ) from None
    for part in attribute.split("."):
        if not hasattr(target, part):
            raise CommandError(f"{module_name} has no {attribute!r}")
        target = getattr(target, part)
    if not callable(target) or isinstance(target, nnx.Module):
        return target

    def make() -> Any:
        try:
            return target()
        except Exception as error:
            kind = type(error).__name__
            raise CommandError(f"{name} raised {kind}: {error}") from None

    return make


def renaming(pairs: list[str]) -> "Rename | None":
    """Read what ``--rename`` was given: prefixes, and patterns after ``re:``."""
    rules: dict[str | re.Pattern[str], str] = {}
    for pair in pairs:
        old, equals, new = pair.partition("=")
        if not equals:
            raise CommandError(f"--rename {pair} is not of the form OLD=NEW")
        pattern = old.removeprefix("re:")
        try:
            rules[old if pattern == old else re.compile(pattern)] = new
        except re.error as error:
            raise CommandError(f"--rename {pair}: {error}") from None
    return rules or None

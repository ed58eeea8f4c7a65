"""What the subcommands share: their errors, their needs, and kinds of arguments."""

import argparse
import importlib.util
import math
from collections.abc import Callable


class CommandError(Exception):
    """What the user can put right: said in one line, with the exit status 2."""


def need(*packages: str, command: str) -> None:
    """Raise a CommandError that names those of ``packages`` that are missing."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise CommandError(
            f"`jaxclip {command}` needs packages that are not installed "
            f"({', '.join(missing)}): pip install 'jaxclip[all]'"
        )


def integer(least: int, greatest: int) -> Callable[[str], int]:
    """Return a function that reads an integer in a range."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= greatest:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not an integer from {least} to {greatest}"
            )
        return value

    return parse


def positive(text: str) -> float:
    """Read a positive finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive finite number")
    return value

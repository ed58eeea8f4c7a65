"""The `jaxclip` command.

Exit status: 0 if all is well, 1 if a comparison found a difference, 2 if the command
could not do what was asked, 130 if it was interrupted.
"""

import argparse
import io
import sys
from collections.abc import Sequence

from jaxclip import __version__
from jaxclip._commands import compare, convert, demo, inspect, verify
from jaxclip._commands._arguments import CommandError

_SUBCOMMANDS = (demo, inspect, convert, verify, compare)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments after the name of the command; by default the process's.

    Returns:
        The exit status.

    Raises:
        SystemExit: After ``--help`` and ``--version``, with 0; after an argument that
            makes no sense, with 2.

    Example:
        >>> main(["--version"])
        Traceback (most recent call last):
        SystemExit: 0
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A character that the terminal lacks, in a path for one, must not end a run.
        sys.stdout.reconfigure(errors="backslashreplace")
    args = _parser().parse_args(argv)
    try:
        status: int = args.run(args)
    except CommandError as error:
        print(f"jaxclip {args.command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"jaxclip {args.command}: interrupted", file=sys.stderr)
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jaxclip",
        description="Port PyTorch training to JAX, and prove that it trains the same.",
    )
    parser.add_argument(
        "--version", action="version", version=f"%(prog)s {__version__}"
    )
    commands = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", required=True
    )
    for subcommand in _SUBCOMMANDS:
        subcommand.add(commands)
    return parser

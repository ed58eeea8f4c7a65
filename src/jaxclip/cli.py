"""The `jaxclip` command.

A subcommand is a function in `_SUBCOMMANDS`: it adds its parser, and sets as its
``run`` a function from the parsed arguments to the exit status. Whatever it needs
beyond the root package it imports when it runs, so that the other subcommands work
without it.

Exit status: 0 if all is well, 1 if a comparison found a difference, 2 if the command
could not do what was asked, 130 if it was interrupted.
"""

import argparse
import importlib.util
import io
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxclip import __version__
from jaxclip.demo._settings import CELLS, DemoError, Settings


class CommandError(Exception):
    """What the user can put right: said in one line, with the exit status 2."""


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
    for add in _SUBCOMMANDS:
        add(commands)
    return parser


def _add_demo(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    default = Settings()
    parser = commands.add_parser(
        "demo",
        help="train the same net in torch and in JAX, and compare",
        description=(
            "Show that torch and JAX clip alike. First a net of two layers: its "
            "gradients, clipped by every way there is. Then a recurrent language "
            "model, which learns to continue a text character by character: trained "
            "in torch and in JAX from the same weights on the same batches with "
            "clipping, and in torch without. Ends with a verdict and a picture, "
            "clipping.png; the numbers are in metrics.json beside it."
        ),
        epilog=(
            "exit status: 0 if torch and JAX are equal up to rounding, 1 if they are "
            "not, 2 if the demo could not run"
        ),
    )
    option = parser.add_argument
    option(
        "--steps",
        type=_integer(1, 1_000_000),
        default=default.steps,
        metavar="N",
        help="training steps of each run (default: %(default)s)",
    )
    option(
        "--hidden",
        type=_integer(1, 8192),
        default=default.hidden,
        metavar="N",
        help="hidden units of the recurrent layer (default: %(default)s)",
    )
    option(
        "--cell",
        choices=CELLS,
        default=default.cell,
        help="the recurrent cell (default: %(default)s)",
    )
    option(
        "--max-norm",
        type=_positive,
        default=default.max_norm,
        metavar="X",
        help="the norm to which gradients are clipped (default: %(default)s)",
    )
    option(
        "--lr",
        type=_positive,
        default=default.lr,
        metavar="X",
        help="the learning rate, of SGD (default: %(default)s)",
    )
    option(
        "--seed",
        type=_integer(0, 2**63 - 1),
        default=default.seed,
        metavar="N",
        help="draws the weights and the start of the text (default: %(default)s)",
    )
    option(
        "--text",
        type=Path,
        metavar="FILE",
        help="a UTF-8 text to learn (default: the text of Python's help())",
    )
    option(
        "--out",
        type=Path,
        default=default.out,
        metavar="DIR",
        help="where the picture and the numbers go (default: %(default)s)",
    )
    parser.set_defaults(run=_run_demo)


def _run_demo(args: argparse.Namespace) -> int:
    _need("torch", "flax", "safetensors", "rich", "matplotlib", command="demo")
    from jaxclip.demo._run import run

    settings = Settings(
        steps=args.steps,
        hidden=args.hidden,
        cell=args.cell,
        max_norm=args.max_norm,
        lr=args.lr,
        seed=args.seed,
        text=args.text,
        out=args.out,
    )
    try:
        return run(settings)
    except DemoError as error:
        raise CommandError(str(error)) from None


_SUBCOMMANDS = (_add_demo,)


def _need(*packages: str, command: str) -> None:
    """Raise a CommandError that names those of ``packages`` that are missing."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise CommandError(
            f"`jaxclip {command}` needs packages that are not installed "
            f"({', '.join(missing)}): pip install 'jaxclip[all]'"
        )


def _integer(least: int, greatest: int) -> Callable[[str], int]:
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


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive finite number")
    return value

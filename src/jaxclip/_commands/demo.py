"""`jaxclip demo`: the same training in torch and in JAX, compared."""

import argparse
from pathlib import Path

from jaxclip._commands._arguments import CommandError, integer, need, positive
from jaxclip.demo._settings import CELLS, DemoError, Settings


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
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
        type=integer(1, 1_000_000),
        default=default.steps,
        metavar="N",
        help="training steps of each run (default: %(default)s)",
    )
    option(
        "--hidden",
        type=integer(1, 8192),
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
        type=positive,
        default=default.max_norm,
        metavar="X",
        help="the norm to which gradients are clipped (default: %(default)s)",
    )
    option(
        "--lr",
        type=positive,
        default=default.lr,
        metavar="X",
        help="the learning rate, of SGD (default: %(default)s)",
    )
    option(
        "--seed",
        type=integer(0, 2**63 - 1),
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
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    need("torch", "flax", "safetensors", "rich", "matplotlib", command="demo")
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

"""`jaxclip verify`: a port against the recording of a run."""

import argparse
from pathlib import Path
from typing import Any

from jaxclip._commands._arguments import CommandError, need
from jaxclip._commands._named import named
from jaxclip._commands._reports import EPILOG, add_options, finish, options, refusals


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "verify",
        help="verify a port against the recording of a run",
        description=(
            "Compute every recorded step in JAX from the recorded state, hold each of "
            "its stages against the recording, and say where the two part first."
        ),
        epilog=EPILOG,
    )
    parser.add_argument("trace", type=Path, metavar="TRACE", help="the recording")
    parser.add_argument(
        "port",
        metavar="MODULE:NAME",
        help="a jaxclip.parity.Port, or a function that returns one",
    )
    parser.add_argument(
        "--no-free-run",
        action="store_true",
        help="do not let the port train by itself, too",
    )
    add_options(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    need("flax", "rich", command="verify")
    from jaxclip._commands._progress import steps_compared
    from jaxclip.parity import Port, verify

    found = named(args.port)
    port: Any = found if isinstance(found, Port) or not callable(found) else found()
    if not isinstance(port, Port):
        raise CommandError(
            f"{args.port} is a {type(port).__name__}; it must be a jaxclip.parity.Port "
            "or a function that returns one"
        )
    with refusals(), steps_compared(str(args.trace)) as on_step:
        report = verify(
            args.trace,
            port,
            free_run=not args.no_free_run,
            on_step=on_step,
            **options(args),
        )
    return finish(report, args)

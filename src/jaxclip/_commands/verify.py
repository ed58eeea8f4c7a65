"""`jaxclip verify`: a port against the recording of a run."""

import argparse
from pathlib import Path
from typing import Any

from jaxclip._commands._arguments import CommandError, integer, need, positive
from jaxclip._commands._named import named


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "verify",
        help="verify a port against the recording of a torch run",
        description=(
            "Compute every recorded step in JAX from torch's own state, hold each of "
            "its stages against the recording, and say where the two part first."
        ),
        epilog=(
            "exit status: 0 if all that was compared is the same, 1 if anything "
            "differs, 2 if the two could not be compared"
        ),
    )
    parser.add_argument("trace", type=Path, metavar="TRACE", help="the recording")
    parser.add_argument(
        "port",
        metavar="MODULE:NAME",
        help="a jaxclip.parity.Port, or a function that returns one",
    )
    parser.add_argument(
        "--steps",
        type=integer(1, 10**9),
        metavar="N",
        help="compare the first N recorded steps; by default all",
    )
    parser.add_argument(
        "--factor",
        type=positive,
        default=4.0,
        metavar="F",
        help="how many times the rounding noise is allowed; by default 4",
    )
    parser.add_argument(
        "--rtol", type=float, metavar="R", help="a relative tolerance instead"
    )
    parser.add_argument(
        "--atol", type=float, metavar="A", help="an absolute tolerance, with --rtol"
    )
    parser.add_argument(
        "--equal-nan", action="store_true", help="take NaN for equal to NaN"
    )
    parser.add_argument(
        "--no-free-run",
        action="store_true",
        help="do not let the port train by itself, too",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the report to a JSON file"
    )
    parser.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="write the report to a page of HTML, which opens offline",
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    need("flax", "rich", command="verify")
    from jaxclip._commands._progress import steps_compared
    from jaxclip.parity import ParityError, Port, verify

    found = named(args.port)
    port: Any = found if isinstance(found, Port) or not callable(found) else found()
    if not isinstance(port, Port):
        raise CommandError(
            f"{args.port} is a {type(port).__name__}; it must be a jaxclip.parity.Port "
            "or a function that returns one"
        )
    try:
        with steps_compared(str(args.trace)) as on_step:
            report = verify(
                args.trace,
                port,
                steps=args.steps,
                rtol=args.rtol,
                atol=args.atol,
                factor=args.factor,
                equal_nan=args.equal_nan,
                free_run=not args.no_free_run,
                on_step=on_step,
            )
        if args.json is not None:
            report.save_json(args.json)
        if args.html is not None:
            report.save_html(args.html)
    except (ValueError, TypeError, OSError, ImportError, ParityError) as error:
        raise CommandError(str(error)) from None
    report.print()
    return 0 if report.passed else 1

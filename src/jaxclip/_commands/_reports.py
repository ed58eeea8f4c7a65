"""What the commands share whose result is a report: their options and their end."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxclip._commands._arguments import CommandError, integer, positive

if TYPE_CHECKING:
    from jaxclip.parity import Report

EPILOG = (
    "exit status: 0 if all that was compared is the same, 1 if anything differs, 2 if "
    "the two could not be compared"
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add how much may differ, in how many steps, and where the report goes."""
    option = parser.add_argument
    option(
        "--steps",
        type=integer(1, 10**9),
        metavar="N",
        help="compare the first N recorded steps; by default all",
    )
    option(
        "--factor",
        type=positive,
        default=4.0,
        metavar="F",
        help="how many times the rounding noise is allowed; by default 4",
    )
    option("--rtol", type=float, metavar="R", help="a relative tolerance instead")
    option("--atol", type=float, metavar="A", help="an absolute tolerance, with --rtol")
    option("--equal-nan", action="store_true", help="take NaN for equal to NaN")
    option("--json", type=Path, metavar="FILE", help="write the report to a JSON file")
    option(
        "--html",
        type=Path,
        metavar="FILE",
        help="write the report to a page of HTML, which opens offline",
    )


def options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of the comparison itself, by the names of its arguments."""
    names = ("steps", "factor", "rtol", "atol", "equal_nan")
    return {name: getattr(args, name) for name in names}


@contextmanager
def refusals() -> Iterator[None]:
    """Say in one line why the two could not be compared, or the report not written."""
    from jaxclip.parity import ParityError

    try:
        yield
    except (ValueError, TypeError, OSError, ImportError, ParityError) as error:
        raise CommandError(str(error)) from None


def finish(report: "Report", args: argparse.Namespace) -> int:
    """Write and print a report; return the exit status."""
    with refusals():
        if args.json is not None:
            report.save_json(args.json)
        if args.html is not None:
            report.save_html(args.html)
    report.print()
    return 0 if report.passed else 1

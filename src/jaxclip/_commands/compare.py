"""`jaxclip compare`: a recording against another."""

import argparse
from pathlib import Path

from jaxclip._commands._arguments import CommandError, integer, need, positive
from jaxclip._commands._named import renaming


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "compare",
        help="compare two recordings of the same training",
        description=(
            "Hold a recording against another one of the same framework, stage by "
            "stage, and say where the two part first. They are to be equal to the "
            "bit, unless --exact or a tolerance says otherwise. Nothing is computed "
            "anew: see jaxclip verify for that."
        ),
        epilog=(
            "exit status: 0 if all that was compared is the same, 1 if anything "
            "differs, 2 if the two could not be compared"
        ),
    )
    parser.add_argument(
        "reference", type=Path, metavar="REFERENCE", help="the recording to go by"
    )
    parser.add_argument(
        "candidate", type=Path, metavar="CANDIDATE", help="the one to be the same"
    )
    parser.add_argument(
        "--exact",
        type=Path,
        metavar="TRACE",
        help="a recording of the reference's run in float64, which tells the noise",
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
        "--rename",
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="what a prefix of the reference's names is in the candidate's; "
        "re:PATTERN=NEW for a regular expression; may be repeated",
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
    need("flax", "rich", command="compare")
    from jaxclip.parity import ParityError, compare_traces

    try:
        report = compare_traces(
            args.reference,
            args.candidate,
            exact=args.exact,
            steps=args.steps,
            rtol=args.rtol,
            atol=args.atol,
            factor=args.factor,
            equal_nan=args.equal_nan,
            rename=renaming(args.rename),
        )
        if args.json is not None:
            report.save_json(args.json)
        if args.html is not None:
            report.save_html(args.html)
    except (ValueError, TypeError, OSError, ImportError, ParityError) as error:
        raise CommandError(str(error)) from None
    report.print()
    return 0 if report.passed else 1

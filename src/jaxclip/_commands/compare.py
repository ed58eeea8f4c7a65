"""`jaxclip compare`: a recording against another."""

import argparse
from pathlib import Path

from jaxclip._commands._arguments import need
from jaxclip._commands._named import renaming
from jaxclip._commands._reports import EPILOG, add_options, finish, options, refusals


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
        epilog=EPILOG,
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
        "--rename",
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="what a prefix of the reference's names is in the candidate's; "
        "re:PATTERN=NEW for a regular expression; may be repeated",
    )
    add_options(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    need("flax", "rich", command="compare")
    from jaxclip.parity import compare_traces

    with refusals():
        report = compare_traces(
            args.reference,
            args.candidate,
            exact=args.exact,
            rename=renaming(args.rename),
            **options(args),
        )
    return finish(report, args)

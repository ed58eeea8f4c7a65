"""`jaxclip inspect`: what a file of weights, or the recording of a run, holds."""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from jaxclip._commands._arguments import CommandError, need
from jaxclip._commands._trace import inspect_trace


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "inspect",
        help="list the tensors in a file of weights, or the steps of a recording",
        description=(
            "List the names, shapes, dtypes and sizes of the tensors in a "
            ".safetensors, .pt, .pth or .bin file, or in all those that an .index.json "
            "names; or the steps of a recording by jaxclip.parity.record, whose files "
            "are all held against their checksums. Nothing in a file is run."
        ),
        epilog="exit status: 0 if the file was read, 2 if it could not be",
    )
    parser.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help="the file of weights, or the folder of the recording",
    )
    parser.add_argument(
        "--key",
        metavar="KEY",
        help="where in a checkpoint the state dict lies, if there are several",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    rich = [] if args.json else ["rich"]
    if args.file.is_dir():
        need(*rich, command="inspect")
        inspect_trace(args.file, as_json=args.json)
        return 0
    need("flax", *rich, command="inspect")
    from jaxclip.convert._sources.source import read_source

    try:
        tensors, notes = read_source(args.file, args.key)
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise CommandError(str(error)) from None
    rows = [_row(name, value) for name, value in tensors.items()]
    total = {
        "tensors": len(rows),
        "elements": sum(math.prod(row["shape"]) for row in rows),
        "bytes": sum(row["bytes"] for row in rows),
    }
    if args.json:
        print(json.dumps({"file": str(args.file), "tensors": rows, "total": total}))
    else:
        _print_table(rows, total, notes)
    return 0


def _row(name: str, value: Any) -> dict[str, Any]:
    return {
        "name": name,
        "shape": [*getattr(value, "shape", ())],
        "dtype": str(getattr(value, "dtype", type(value).__name__)).removeprefix(
            "torch."
        ),
        "bytes": getattr(value, "nbytes", 0),
    }


def _print_table(
    rows: list[dict[str, Any]], total: dict[str, int], notes: tuple[str, ...]
) -> None:
    from rich.console import Console
    from rich.filesize import decimal
    from rich.table import Table
    from rich.text import Text

    table = Table("name", "shape", "dtype", box=None, pad_edge=False)
    table.add_column("bytes", justify="right")
    for row in rows:
        shape = f"({', '.join(map(str, row['shape']))})"
        # Text, so that brackets in a name are no markup.
        table.add_row(Text(row["name"]), shape, row["dtype"], f"{row['bytes']:,}")
    # Wider than any terminal: a name that is cut short would be of no use.
    console = Console(width=100_000)
    console.print(table)
    count, plural = total["tensors"], "s" * (total["tensors"] != 1)
    console.print(
        f"{count:,} tensor{plural}, {total['elements']:,} elements, "
        f"{decimal(total['bytes'])}",
        highlight=False,
    )
    for note in notes:
        console.print(Text(f"Note: {note}."))

"""`jaxclip convert`: a torch checkpoint as Flax variables, in a safetensors file."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxclip._commands._arguments import CommandError, need
from jaxclip._commands._named import named, renaming


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "convert",
        help="turn a torch checkpoint into Flax variables",
        description=(
            "Read a torch checkpoint (.safetensors, .pt, .pth, .bin, or the "
            ".index.json of several) and write the variables of a Flax model, laid out "
            "as Flax wants them, to a safetensors file under their dotted Flax paths. "
            "The model is named as MODULE:NAME, where NAME is a function that makes an "
            "NNX module, or that returns the pair (module, inputs) of a Linen module "
            "and what it is called with."
        ),
        epilog=(
            "exit status: 0 if every tensor and every variable was used once, 2 if not "
            "or if the command could not run; OUT is not written then"
        ),
    )
    option = parser.add_argument
    option("checkpoint", type=Path, metavar="CHECKPOINT", help="the torch weights")
    option("model", metavar="MODULE:NAME", help="what makes the Flax model")
    option(
        *("-o", "--out"),
        type=Path,
        required=True,
        metavar="OUT",
        help="the .safetensors file to write",
    )
    option(
        "--mapping",
        type=Path,
        metavar="FILE",
        help="also write the map between the names, as JSON",
    )
    option(
        "--rename",
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="replace a prefix of the checkpoint's names, or, where OLD is "
        "re:PATTERN, whatever a regular expression matches; may be repeated",
    )
    option(
        "--ignore",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave out the tensors with such names; may be repeated",
    )
    option(
        "--flatten",
        action="append",
        default=[],
        metavar="NAME=C,H,W",
        help="the shape, channels first, that is flattened before a layer in torch; "
        "may be repeated",
    )
    option(
        "--axes",
        action="append",
        default=[],
        metavar="NAME=1,0",
        help="which axis of torch's each axis is, where no layer says it; NAME may be "
        "a pattern; may be repeated",
    )
    option(
        "--stacked",
        action="append",
        default=[],
        metavar="PATH",
        help="a module that holds several layers as one; may be repeated",
    )
    option("--key", metavar="KEY", help="where in the checkpoint the state dict lies")
    option("--dtype", metavar="DTYPE", help="cast floats to this dtype")
    option("--finite", action="store_true", help="refuse NaN and infinities")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    need("flax", "rich", command="convert")
    from rich.filesize import decimal

    from jaxclip._commands._progress import bytes_read
    from jaxclip._safetensors import write_safetensors
    from jaxclip.convert._conversion import plan_conversion

    if args.out.suffix != ".safetensors":
        raise CommandError(f"--out {args.out} is not the name of a .safetensors file")
    if args.out.exists() and args.out.samefile(args.checkpoint):
        raise CommandError(f"--out {args.out} is the checkpoint itself")
    target = named(args.model)
    try:
        job = plan_conversion(
            target,
            args.checkpoint,
            rename=renaming(args.rename),
            ignore=args.ignore,
            flatten=_sizes("--flatten", args.flatten, "C,H,W"),
            axes=_sizes("--axes", args.axes, "1,0"),
            stacked=args.stacked,
            key=args.key,
            dtype=args.dtype,
        )
        with bytes_read(args.checkpoint.name, job.nbytes) as on_read:
            arrays = job.read(finite=args.finite, on_read=on_read)
        if args.mapping is not None:
            job.mapping.save(args.mapping)
        write_safetensors(args.out, _flat(arrays))
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise CommandError(str(error)) from None
    size = decimal(sum(array.nbytes for array in arrays.values()))
    print(f"{args.out}: {len(arrays)} variables, {size}")
    for note in job.mapping.notes:
        print(f"Note: {note}.")
    return 0


def _flat(arrays: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    named = {".".join(path): array for path, array in arrays.items()}
    if len(named) < len(arrays):
        raise CommandError("two variables have the same dotted path")
    return named


def _sizes(option: str, pairs: list[str], form: str) -> dict[str, tuple[int, ...]]:
    """Read numbers by name."""
    found: dict[str, tuple[int, ...]] = {}
    for pair in pairs:
        name, equals, numbers = pair.rpartition("=")
        try:
            found[name] = tuple(int(number) for number in numbers.split(","))
        except ValueError:
            equals = ""
        if not equals:
            raise CommandError(f"{option} {pair} is not of the form NAME={form}")
    return found

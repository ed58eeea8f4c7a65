"""What `jaxclip inspect` says of the recording of a run."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxclip._commands._arguments import CommandError

if TYPE_CHECKING:
    from jaxclip.parity import Step, Trace


def inspect_trace(path: Path, *, as_json: bool) -> None:
    """Print what a recording holds; every file of it is read and checked.

    Raises:
        CommandError: If there is no recording, or it is damaged.
    """
    from jaxclip.parity import open_trace

    try:
        trace = open_trace(path)
        rows = [_row(step) for step in trace]
    except (ValueError, OSError) as error:
        raise CommandError(str(error)) from None
    if as_json:
        print(json.dumps({"file": str(path), **_summary(trace), "steps": rows}))
    else:
        _print(trace, rows)


def _summary(trace: "Trace") -> dict[str, Any]:
    run = trace.run
    return {
        "finished": trace.finished,
        "framework": run.framework,
        "versions": dict(run.versions),
        "settings": dict(run.settings),
        "model": run.modules[0].type,
        "modules": len(run.modules),
        "parameters": sum(len(module.parameters) for module in run.modules)
        - sum(map(len, run.tied.values())),
        "dtypes": [*run.dtypes],
        "optimizer": run.optimizer,
        "schedulers": [*run.schedulers],
        "stages": [*run.keep],
        "bytes": trace.nbytes,
        "warnings": [
            {"code": warning.code, "message": warning.message, "step": warning.step}
            for warning in trace.warnings
        ],
    }


def _row(step: "Step") -> dict[str, Any]:
    norm = step.total_norm
    return {
        "step": step.number,
        "loss": [_number(loss) for loss in step.loss],
        "total_norm": None if norm is None else _number(norm),
        "lr": [group.get("lr") for group in step.hyperparameters],
        "activations": len(step.activations),
        "events": [event.kind for event in step.events],
        "unexplained_draws": [*step.unexplained_draws],
    }


def _number(array: Any) -> Any:
    """Return what an array holds, or the text of a number that JSON lacks."""
    value = array.item() if array.size == 1 else array.tolist()
    return (
        str(value) if isinstance(value, float) and not math.isfinite(value) else value
    )


def _print(trace: "Trace", rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.filesize import decimal
    from rich.table import Table
    from rich.text import Text

    summary = _summary(trace)
    facts = {
        "model": f"{summary['model']}, {summary['modules']} modules, "
        f"{summary['parameters']} parameters of {', '.join(summary['dtypes'])}",
        "optimizer": ", ".join([summary["optimizer"], *summary["schedulers"]]),
        "versions": ", ".join(f"{k} {v}" for k, v in summary["versions"].items()),
        "settings": ", ".join(f"{k}={v}" for k, v in summary["settings"].items()),
        "stages": ", ".join(summary["stages"]),
    }
    # Wider than any terminal: a name that is cut short would be of no use.
    console = Console(width=100_000)
    grid = Table.grid(padding=(0, 2))
    for name, fact in facts.items():
        # Text, so that brackets in a name are no markup.
        grid.add_row(name, Text(fact))
    console.print(grid)
    table = Table(
        "step", "loss", "total norm", "lr", "events", box=None, pad_edge=False
    )
    for row in rows:
        shown = (row["loss"], [row["total_norm"]], row["lr"])
        table.add_row(
            str(row["step"]),
            *(" ".join(map(_short, values)) for values in shown),
            Text(" ".join(row["events"])),
        )
    console.print(table)
    count, plural = len(rows), "s" * (len(rows) != 1)
    end = "" if trace.finished else "; the run did not come to its end"
    console.print(
        f"{count} step{plural}, {decimal(trace.nbytes)}{end}", highlight=False
    )
    drawn = dict.fromkeys(name for row in rows for name in row["unexplained_draws"])
    if drawn:
        names = ", ".join(map(repr, drawn))
        console.print(Text(f"Note: random numbers that are not recorded, of {names}."))
    for warning in trace.warnings:
        console.print(Text(f"Warning: {warning}"))


def _short(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)

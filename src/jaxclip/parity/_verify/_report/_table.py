"""A report for a terminal."""

import importlib.util
from typing import TYPE_CHECKING

from jaxclip.parity._verify._report import _text

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from jaxclip.parity._verify._report._report import Report

_COLOURS = {"same": "green", "not compared": "yellow"}


def table(report: "Report") -> "RenderableType":
    """Draw the verdict, a table of the stages, the worst tensors, and remarks."""
    from rich.console import Group
    from rich.text import Text

    # Text, so that brackets in a name are no markup.
    first, *rest = _text.headline(report)
    colour = "green" if report.passed else "red"
    stages = _empty("stage", "verdict", "worst")
    for stage in report.stage_names:
        verdict, worst = _text.summary(report.of_stage(stage), report.words)
        style = _COLOURS.get(verdict, "red")
        stages.add_row(stage, Text(verdict, style), Text(worst))
    if report.free_run is not None:
        stages.add_row("free run", "", Text(str(report.free_run)))
    parts: list[RenderableType] = [Text(first, f"bold {colour}"), *map(Text, rest)]
    parts.append(stages)
    if report.failures:
        tensors = _empty(
            *("where", "tensor", "times noise", "rel. L2", "cosine", "elements"),
            title="What differs",
        )
        for tensor in report.failures[: _text.MOST]:
            tensors.add_row(
                Text(_text.place(tensor)),
                Text(tensor.name),
                f"{tensor.ratio:.3g}",
                f"{tensor.relative_l2:.2g}",
                f"{tensor.cosine:.6g}",
                str(tensor.size)
                if tensor.by_digest
                else f"{tensor.mismatched} of {tensor.size}",
            )
        parts.append(tensors)
    parts += map(Text, _text.remarks(report))
    return Group(*parts)


def _empty(*columns: str, title: str | None = None) -> "Table":
    """Return a table without rows, which cuts nothing off, however narrow it is."""
    from rich import box
    from rich.table import Column, Table

    return Table(
        *(Column(column, overflow="fold") for column in columns),
        box=box.SIMPLE_HEAD,
        title=title,
        title_justify="left",
    )


def show(report: "Report") -> None:
    """Print a report.

    Raises:
        ImportError: If rich is not installed.
    """
    if importlib.util.find_spec("rich") is None:
        raise ImportError(
            "report.print() needs rich, which is not installed: pip install "
            "'jaxclip[cli]'. print(report) does without it."
        )
    from rich.console import Console

    Console().print(report)

"""Run every benchmark, and keep the figures: ``python -m benchmarks [--write]``."""

import io
import platform
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from benchmarks import (
    convert_weights,
    eager_calls,
    one_pass,
    optimizer_step,
    record_run,
    standalone,
    training_step,
    verify_step,
)
from benchmarks.timing import hardware

RESULTS = Path(__file__).with_name("RESULTS.md")

HEAD = """# Figures

Written by `python -m benchmarks --write` (`make bench` prints the same). Ratios are
medians over rounds in which the candidates take turns, in one process or, for weights,
each in a new one; the machine is shared, so a tenth either way means nothing. Where
processor time is given, the machine was busier still, and wall time says little.
"""


def markdown(table: Table) -> str:
    """Return a table as Markdown."""
    title, table.title, table.box = table.title, None, MARKDOWN
    text = io.StringIO()
    Console(file=text, width=200).print(table)
    rows = "\n".join(line.strip() for line in text.getvalue().strip().splitlines())
    return f"## {title}\n\n{rows}\n"


def main() -> None:
    """Run all and print their tables; with ``--write``, keep them in RESULTS.md."""
    benchmarks = (
        training_step,
        standalone,
        optimizer_step,
        one_pass,
        eager_calls,
        convert_weights,
        record_run,
        verify_step,
    )
    tables = [table for benchmark in benchmarks for table in benchmark.main()]
    if "--write" not in sys.argv[1:]:
        return
    versions = ", ".join(
        f"{name} {version(name)}" for name in ("jax", "flax", "optax", "torch")
    )
    where = f"{date.today()}, {hardware()}, Python {platform.python_version()}"
    parts = [HEAD, f"{where}, {versions}.\n", *map(markdown, tables)]
    RESULTS.write_text("\n".join(parts))


if __name__ == "__main__":
    main()

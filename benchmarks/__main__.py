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
from benchmarks.timing import hardware, on_gpu

HERE = Path(__file__).parent
CPU = (
    *(training_step, standalone, optimizer_step, one_pass, eager_calls),
    *(convert_weights, record_run, verify_step),
)
GPU = standalone, optimizer_step, training_step, eager_calls, record_run
"""Those that say something of a GPU; each has its peers in torch on CUDA."""

HEAD = """# Figures

Written by `python -m benchmarks --write` (`make bench` prints the same). Ratios are
medians over rounds in which the candidates take turns, in one process or, for weights,
each in a new one; the machine is shared, so a tenth either way means nothing. Where
processor time is given, the machine was busier still, and wall time says little.
"""

GPU_HEAD = """# Figures of a GPU

Written by `python -m benchmarks --write` where JAX has a GPU; torch computes on the
same one. Ratios are medians over rounds in which the candidates take turns, in one
process. In its turn each is called 20 times, and waited for in the end: a GPU computes
one call while Python prepares the next, as in a training loop. What is called outside
of `jit`, or recorded, is called once. Temporary memory is what XLA allocates beside
arguments and results, and what torch held at most beyond what it held before.
"""


def markdown(table: Table) -> str:
    """Return a table as Markdown."""
    title, table.title, table.box = table.title, None, MARKDOWN
    text = io.StringIO()
    Console(file=text, width=200).print(table)
    rows = "\n".join(line.strip() for line in text.getvalue().strip().splitlines())
    return f"## {title}\n\n{rows}\n"


def main() -> None:
    """Run all and print their tables; with ``--write``, keep them beside this file."""
    benchmarks, head, page = (
        (GPU, GPU_HEAD, HERE / "RESULTS-GPU.md")
        if on_gpu()
        else (CPU, HEAD, HERE / "RESULTS.md")
    )
    versions = ", ".join(
        f"{name} {version(name)}" for name in ("jax", "flax", "optax", "torch")
    )
    where = f"{date.today()}, {hardware()}, Python {platform.python_version()}"
    parts = [head, f"{where}, {versions}.\n"]
    for benchmark in benchmarks:
        parts += map(markdown, benchmark.main())
        if "--write" in sys.argv[1:]:
            page.write_text("\n".join(parts))


if __name__ == "__main__":
    main()

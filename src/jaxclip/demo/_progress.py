"""How far a run is: a live bar on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from jaxclip.demo._history import OnStep
from jaxclip.demo._settings import BATCH_SIZE, SEQUENCE_LENGTH

_LINES = 4
"""How many lines a run prints where there is no terminal."""


@contextmanager
def progress(console: Console, label: str, steps: int) -> Iterator[OnStep]:
    """Show how far a run of ``steps`` steps is, its loss, and its speed.

    Args:
        console: Where to.
        label: What runs.
        steps: How many steps it takes.

    Yields:
        What to call after each step.
    """
    started = time.perf_counter()

    def figures(step: int, loss: float) -> str:
        chars = step * BATCH_SIZE * SEQUENCE_LENGTH
        speed = chars / (time.perf_counter() - started)
        return f"loss {loss:#6.4g}  {speed:8,.0f} chars/s"

    if not console.is_terminal:

        def print_line(step: int, loss: float) -> None:
            if step * _LINES // steps > (step - 1) * _LINES // steps:
                console.print(f"{label:16} {step:>6}/{steps}  {figures(step, loss)}")

        yield print_line
        return

    with Progress(
        TextColumn(f"{label:16}"),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        console=console,
    ) as bars:
        bar = bars.add_task(label, total=steps, figures="")

        def move_bar(step: int, loss: float) -> None:
            bars.update(bar, completed=step, figures=figures(step, loss))

        yield move_bar

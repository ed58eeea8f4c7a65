"""How far a command is, on the terminal, if it takes more than a second."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
)

_PATIENCE = 1.0
"""Seconds before which there is nothing to see."""


@contextmanager
def bytes_read(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how much of some bytes has been read.

    Args:
        label: What is read.
        total: How many bytes it has.

    Yields:
        What to call with each number of bytes read.
    """
    with _bar(label, DownloadColumn(), total) as bar:
        yield lambda nbytes: bar(advance=nbytes)


@contextmanager
def steps_compared(label: str) -> Iterator[Callable[[int, int], None]]:
    """Show how many steps have been compared.

    Args:
        label: What they are held against.

    Yields:
        What to call with how many there have been, and of how many.
    """
    with _bar(label, MofNCompleteColumn(), None) as bar:
        bar(patience=0.0)  # the first step is compiled, which takes a while
        yield lambda done, total: bar(completed=done, total=total)


@contextmanager
def _bar(
    label: str, column: ProgressColumn, total: int | None
) -> Iterator[Callable[..., None]]:
    """Draw a bar on the standard error, which is gone at the end.

    Where that is no terminal, nothing is shown.
    """
    console = Console(stderr=True)
    started = monotonic()
    columns = TextColumn("{task.description}"), BarColumn(), column
    bars = Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    )
    bar = bars.add_task(label, total=total)

    def update(patience: float = _PATIENCE, **progress: Any) -> None:
        bars.update(bar, **progress)
        if monotonic() - started >= patience:
            bars.start()

    try:
        yield update
    finally:
        bars.stop()

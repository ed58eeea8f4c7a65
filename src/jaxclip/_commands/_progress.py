"""How far a command is, on the terminal, if it takes more than a second."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

_PATIENCE = 1.0
"""Seconds before which there is nothing to see."""


@contextmanager
def bytes_read(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how much of some bytes has been read.

    It goes to the standard error, and is gone at the end. Where that is no terminal,
    nothing is shown.

    Args:
        label: What is read.
        total: How many bytes it has.

    Yields:
        What to call with each number of bytes read.
    """
    console = Console(stderr=True)
    started = monotonic()
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn()
    bars = Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    )
    bar = bars.add_task(label, total=total)

    def on_read(nbytes: int) -> None:
        bars.advance(bar, nbytes)
        if monotonic() - started > _PATIENCE:
            bars.start()

    try:
        yield on_read
    finally:
        bars.stop()

import io

import pytest
from rich.console import Console

from jaxclip.demo._progress import progress


def shown(steps, *, terminal):
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=80)
    with progress(console, "torch", steps) as on_step:
        for step in range(1, steps + 1):
            on_step(step, 1 / step)
    return file.getvalue()


@pytest.mark.parametrize(("steps", "lines"), [(1, 1), (3, 3), (4, 4), (100, 4)])
def test_a_file_gets_a_line_now_and_then(steps, lines):
    text = shown(steps, terminal=False)
    assert len(text.splitlines()) == lines
    assert text.splitlines()[-1].startswith(f"torch {steps:>17}/{steps}  loss ")
    assert "\x1b" not in text


def test_a_terminal_gets_a_bar_that_ends_full():
    text = shown(40, terminal=True)
    assert "\x1b" in text
    assert "40/40" in text
    assert "loss 0.02500" in text

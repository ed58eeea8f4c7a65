"""How far a command is, shown on a terminal alone, and only if it takes a while."""

import io

import pytest
from rich.console import Console

from jaxclip._commands import _progress


def terminal_like(monkeypatch, terminal):
    """Return what a console that is a terminal, or is none, is written to."""
    out = io.StringIO()
    monkeypatch.setattr(
        _progress,
        "Console",
        lambda stderr: Console(file=out, force_terminal=terminal, width=80),
    )
    return out


def shown(monkeypatch, *, terminal, seconds):
    """Return what is shown while half of 100 bytes, then all, take some seconds."""
    out = terminal_like(monkeypatch, terminal)
    now = iter([0.0, seconds / 2, seconds])
    monkeypatch.setattr(_progress, "monotonic", lambda: next(now))
    with _progress.bytes_read("weights.pt", 100) as on_read:
        on_read(50)
        on_read(50)
    return out.getvalue()


def test_what_takes_longer_than_a_second_is_shown(monkeypatch):
    text = shown(monkeypatch, terminal=True, seconds=4.0)
    assert "weights.pt" in text
    assert "100/100 bytes" in text


@pytest.mark.parametrize(("terminal", "seconds"), [(True, 0.5), (False, 4.0)])
def test_what_is_quick_or_on_no_terminal_is_not(monkeypatch, terminal, seconds):
    assert shown(monkeypatch, terminal=terminal, seconds=seconds) == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_steps_are_shown_from_the_start(monkeypatch, terminal):
    out = terminal_like(monkeypatch, terminal)
    with _progress.steps_compared("run.trace") as on_step:
        assert ("run.trace" in out.getvalue()) is terminal
        on_step(1, 3)
        on_step(3, 3)
    assert ("3/3" in out.getvalue()) is terminal

import io

import numpy as np
from rich.console import Console

from jaxclip.demo._report import print_trainings
from tests.demo.runs import history, trainings


def printed(what, width=100):
    console = Console(file=io.StringIO(), force_terminal=False, width=width)
    print_trainings(console, what)
    return console.file.getvalue()


def row(text, first):
    [line] = [line for line in text.splitlines() if line.split()[:1] == [first]][:1]
    return line.split()


def test_the_chosen_steps_show_both_frameworks_and_the_run_without_clipping():
    text = printed(trainings())
    assert row(text, "20") == [
        *("20", "2.0000", "2.0000", "7.389", "7.389", "1.6e-05", "4.0000"),
    ]
    assert "16%" not in text
    assert row(text, "JAX")[1:3] == ["2.0000", "80%"]


def test_a_terminal_of_80_columns_will_do():
    text = printed(trainings(), width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text


def test_a_run_that_became_nan_is_told():
    losses = history(error=1.0)
    losses.losses[7:] = np.nan
    text = printed(trainings(unclipped=losses))
    assert "torch, unclipped: the loss is nan at step 8." in text

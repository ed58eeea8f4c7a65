"""The first steps, recorded in torch and computed anew in JAX."""

import contextlib
import dataclasses

import pytest

from jaxclip.demo import _language_model
from jaxclip.demo._language_model import make_task
from jaxclip.demo._proof import prove
from jaxclip.demo._settings import CELLS, Settings
from jaxclip.demo._text import load_corpus
from jaxclip.parity import open_trace
from tests.demo.runs import proof

# A threshold that the first steps exceed, so that every step is clipped.
TINY = Settings(steps=3, hidden=8, max_norm=0.05)


@contextlib.contextmanager
def unwatched(name, steps):
    yield lambda step, loss: None


def task(**changes):
    settings = dataclasses.replace(TINY, **changes)
    corpus = load_corpus(settings)
    # 40 different characters and no more than are needed.
    few = dataclasses.replace(corpus, tokens=corpus.tokens[:3000] % 40, vocab_size=40)
    return make_task(settings, few)


@pytest.mark.parametrize(
    "cell",
    ["rnn", *(pytest.param(cell, marks=pytest.mark.long) for cell in CELLS[1:])],
)
def test_torch_and_jax_take_the_same_steps(tmp_path, cell):
    shown = []

    @contextlib.contextmanager
    def watch(name, steps):
        yield lambda step, loss: shown.append((name, step, loss))

    found = prove(task(cell=cell), tmp_path, watch)
    assert found.equal, str(found)
    assert found.clipped == len(found.float32.steps) == 3
    assert found.report is found.float32
    assert not found.float32.warnings
    for dtype, report in found.reports.items():
        assert report.dtype == dtype
        assert [run.told for run in report.free_run.steps] == [True] * 3
        compared = {stage.stage for stage in report.stages if stage.tensors}
        assert {"activations", "output", "loss", "gradients"} <= compared
        assert {"total norm", "clipped gradients", "update"} <= compared
    assert str(found).startswith(
        "equal, up to rounding: in 3 recorded steps, 3 of them clipped"
    )
    names = [f"{does}, {of}" for of in found.reports for does in ("record", "verify")]
    assert [(name, step) for name, step, _ in shown] == [
        (name, step) for name in names for step in (1, 2, 3)
    ]
    # What is verified is what was recorded.
    assert [loss for *_, loss in shown[:3]] == [loss for *_, loss in shown[3:6]]


def test_a_second_proof_replaces_the_recordings_of_the_first(tmp_path):
    for steps in (2, 1):
        _language_model.record_torch(
            task(),
            steps,
            tmp_path / "run.trace",
            dtype="float32",
            on_step=lambda *_: None,
        )
        assert len(open_trace(tmp_path / "run.trace")) == steps


def wrong_loss(model, batch):
    loss, outputs = LOSS(model, batch)
    return loss * (1 + 1e-9), outputs  # float32 cannot hold it


LOSS = _language_model.next_token_loss


def test_a_mistake_below_what_float32_holds_shows_in_float64(tmp_path, monkeypatch):
    monkeypatch.setattr(_language_model, "next_token_loss", wrong_loss)
    found = prove(task(steps=1), tmp_path, unwatched)
    assert found.float32.passed
    assert not found.equal
    assert found.report is found.float64
    assert found.report.first.stage == "loss"
    assert str(found) == (
        "NOT equal: of 1 recorded step, torch's and JAX's differ in float64; see the "
        "report"
    )


def test_a_difference_in_float32_is_what_is_told():
    both = proof(error32=1e-3, error64=1e-3)
    assert both.report is both.float32
    assert "in float32 and in float64" in str(both)
    assert not both.equal

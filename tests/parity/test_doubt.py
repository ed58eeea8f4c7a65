"""Where the port's few runs were all near the truth by luck, more are made."""

import math

import jax.numpy as jnp
import pytest
import torch
from flax import nnx

from jaxclip import optim
from jaxclip.parity import Port, record, verify
from jaxclip.parity._verify import _doubt
from jaxclip.parity._verify._doubt import DOUBT, MORE

DRAWS = 3
LR = 1e-6


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Record steps whose errors are one number each: that of a sum that cancels."""
    path = tmp_path_factory.mktemp("trace") / "run.trace"
    torch.manual_seed(2)
    model = torch.nn.Linear(64, 1)
    torch.nn.init.normal_(model.weight, std=100.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    with record(path, model, optimizer) as run:
        for _ in range(20):
            x = torch.randn(1, 64)
            y = model(x).detach() + 0.5
            with run.step(x=x, y=y):
                optimizer.zero_grad()
                torch.nn.functional.mse_loss(model(x), y).backward()
                optimizer.step()
    return path


def loss_fn(model, batch):
    return jnp.mean((model(batch["x"]) - batch["y"]) ** 2)


def port(lr=LR):
    return Port(nnx.Linear(64, 1, rngs=nnx.Rngs(0)), loss_fn, optim.sgd(lr))


def verified(path, port, **options):
    return verify(path, port, free_run=False, **options)


def greatest(report):
    """Return the greatest ratio of each step."""
    ratios = {}
    for stage in report.stages:
        own = [tensor.ratio for tensor in stage.tensors]
        ratios[stage.step] = max(ratios.get(stage.step, 0.0), *own, 0.0)
    return ratios


def doubts(report):
    return [n for stage in report.stages for n in stage.notes if "draws" in n]


@pytest.fixture(scope="module")
def lucky(path):
    """Return the step in which few draws err most: its number, and its ratios."""
    few, many = (
        greatest(verified(path, port(), draws=n)) for n in (DRAWS, MORE * DRAWS)
    )
    step = max(few, key=lambda number: few[number] / many[number])
    assert 1.5 * many[step] < few[step] < DOUBT * many[step]
    return step, few[step], many[step]


def test_a_difference_that_is_one_of_few_draws_alone_is_none(path, lucky):
    step, few, many = lucky
    factor = math.sqrt(few * many)
    report = verified(path, port(), draws=DRAWS, factor=factor, steps=[step])
    report.raise_if_different()
    noted = doubts(report)
    assert any(f"was {few:.3g} times the noise of 3 draws" in note for note in noted)
    assert all(note in str(report) for note in noted)


def test_a_difference_that_more_draws_leave_is_one(path, lucky):
    step, _, many = lucky
    report = verified(path, port(), draws=DRAWS, factor=0.9 * many, steps=[step])
    assert many in [tensor.ratio for tensor in report.failures]
    assert greatest(report) == {step: many}


@pytest.mark.parametrize("options", [{"draws": 0}, {"rtol": 1e-12, "atol": 0.0}])
def test_without_draws_there_is_no_doubt(path, options, monkeypatch):
    made = drawn(monkeypatch)
    assert not verified(path, port(), **options, factor=1e-3, steps=2)
    assert made == [options.get("draws", DRAWS)] * 2


def test_a_large_difference_is_not_drawn_again(path, monkeypatch):
    made = drawn(monkeypatch)
    report = verified(path, port(1000 * LR), draws=DRAWS, steps=2)
    assert report.first.stage == "update"
    assert report.first.share > DOUBT
    assert made == [DRAWS] * 2


def drawn(monkeypatch):
    """Return a list that each comparison of a step adds its number of draws to."""
    made = []
    compared = _doubt.explained

    def counted(comparing, watched):
        made.append(comparing.draws)
        return compared(comparing, watched)

    monkeypatch.setattr(_doubt, "explained", counted)
    return made

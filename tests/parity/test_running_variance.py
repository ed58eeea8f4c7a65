"""Flax's batch normalisation keeps a biased variance; torch's does not."""

import jax.numpy as jnp
import pytest
import torch
from flax import nnx

from jaxclip import models, optim
from jaxclip.parity import Port, record, verify

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROWS, CHANNELS = 6, 5


class Ported(nnx.Module):
    """A normalisation, of Flax or of ours."""

    def __init__(self, norm):
        """Keep it."""
        self.norm = norm

    def __call__(self, x):
        return self.norm(x)


def report_of(path, norm, **options):
    torch.manual_seed(0)
    model = torch.nn.Sequential()
    model.add_module("norm", torch.nn.BatchNorm1d(CHANNELS))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with record(path, model, optimizer) as run:
        for _ in range(2):
            x = torch.randn(ROWS, CHANNELS) * torch.arange(1.0, 1 + CHANNELS)
            y = torch.randn(ROWS, CHANNELS)
            with run.step(x=x, y=y):
                optimizer.zero_grad()
                (model(x) * y).sum().backward()
                optimizer.step()

    def loss_fn(model, batch):
        return jnp.sum(model(batch["x"]) * batch["y"])

    return verify(path, Port(Ported(norm), loss_fn, optim.sgd(0.1), **options))


def flax(**options):
    return nnx.BatchNorm(CHANNELS, epsilon=1e-5, rngs=nnx.Rngs(0), **options)


COUNT = {"ignore": ["*num_batches_tracked"]}


def test_that_nothing_else_differs_is_said(tmp_path):
    report = report_of(tmp_path, flax(momentum=0.9), **COUNT)
    assert {(t.stage, t.name) for t in report.failures} == {
        ("buffers after", "norm.running_var")
    }
    assert {t.hint for t in report.failures} == {
        "the port takes the biased variance of a batch, over n, and torch that over "
        "n - 1, as jaxclip.models.BatchNorm does"
    }


def test_another_momentum_is_not_taken_for_it(tmp_path):
    report = report_of(tmp_path, flax(momentum=0.89), **COUNT)
    failed = {t.name: t.hint for t in report.failures if t.stage == "buffers after"}
    assert failed.keys() == {"norm.running_mean", "norm.running_var"}
    assert not any("biased" in hint for hint in failed.values())


def test_ours_is_the_same(tmp_path):
    report = report_of(tmp_path, models.BatchNorm(CHANNELS, rngs=nnx.Rngs(0)))
    assert report, report

"""A port that flattens images in the other order is told what to say of it."""

import jax.numpy as jnp
import pytest
import torch
from flax import nnx

from jaxclip import optim
from jaxclip.parity import Port, record, verify

pytestmark = pytest.mark.usefixtures("quick_compilation")


class Net(torch.nn.Module):
    """A convolution, relu as a function if ``relu``, and a layer of all of it."""

    def __init__(self, relu):
        """Make the layers."""
        super().__init__()
        self.relu = relu
        self.conv = torch.nn.Conv2d(1, 3, 3, padding=1)
        self.flatten, self.fc = torch.nn.Flatten(), torch.nn.Linear(3 * 4 * 5, 2)

    def forward(self, x):
        x = self.conv(x)
        return self.fc(self.flatten(torch.relu(x) if self.relu else x))


class Ported(nnx.Module):
    """The port of `Net`; ``slope`` scales what it flattens."""

    def __init__(self, relu, slope):
        """Make the layers."""
        rngs = nnx.Rngs(0)
        self.relu, self.slope = relu, slope
        self.conv = nnx.Conv(1, 3, (3, 3), rngs=rngs)
        self.fc = nnx.Linear(60, 2, rngs=rngs)

    def __call__(self, x):
        x = self.slope * self.conv(x.transpose(0, 2, 3, 1))
        return self.fc((nnx.relu(x) if self.relu else x).reshape(len(x), -1))


def report_of(path, relu, *, slope=1.0, **options):
    torch.manual_seed(0)
    model = Net(relu)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(6, 1, 4, 5)
    with record(path, model, optimizer) as run, run.step(x=x):
        model(x).square().mean().backward()
        optimizer.step()

    def loss_fn(model, batch):
        return jnp.mean(model(batch["x"]) ** 2)

    return verify(path, Port(Ported(relu, slope), loss_fn, optim.sgd(0.1), **options))


@pytest.mark.parametrize("relu", [False, True])
def test_that_it_is_to_be_said_is_said(tmp_path, relu):
    report = report_of(tmp_path, relu)
    assert (report.first.stage, report.first.module) == ("activations", "fc")
    assert report.first.hint == (
        "the port flattens (3, 4, 5) with its channels last, and has torch's weight: "
        "say so in flatten=, as {'fc': (3, 4, 5)} does of 'fc'"
    )


def test_where_it_is_said_nothing_is(tmp_path):
    said = {"fc": (3, 4, 5)}
    report = report_of(tmp_path / "right", False, flatten=said)
    assert report, report
    report = report_of(tmp_path / "other", False, flatten=said, slope=2.0)
    assert report.first.module == "fc"
    assert "flatten" not in report.first.hint

"""Large images: torch sums gradients up one by one, and elements lie at many kinks."""

import numpy as np
import optax
import pytest
import torch
from flax import nnx

from jaxclip import optim
from jaxclip.parity import Port, open_trace, record, verify
from jaxclip.parity._verify._judge._summed import grain_of_sum

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROWS, CLASSES = 8, 4


class Net(torch.nn.Module):
    """Two convolutions, a mean over all positions and a layer."""

    def __init__(self):
        """Make the layers."""
        super().__init__()
        self.a, self.b = (torch.nn.Conv2d(n, 8, 3, padding=1) for n in (3, 8))
        self.fc = torch.nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.fc(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))


class Ported(nnx.Module):
    """The port of `Net`."""

    def __init__(self):
        """Make the layers."""
        rngs = nnx.Rngs(0)
        self.a, self.b = (nnx.Conv(n, 8, (3, 3), rngs=rngs) for n in (3, 8))
        self.fc = nnx.Linear(8, CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.fc(nnx.relu(self.b(nnx.relu(self.a(x)))).mean((1, 2)))


def recorded(path, seed, side):
    torch.manual_seed(seed)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with record(path, model, optimizer) as run:
        x, y = torch.randn(ROWS, 3, side, side), torch.randint(0, CLASSES, (ROWS,))
        with run.step(x=x, y=y):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return path


def loss_fn(model, batch):
    outputs = model(batch["x"].transpose(0, 2, 3, 1))
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs, batch["y"])
    return losses.mean(), outputs


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(n, marks=pytest.mark.long) for n in range(1, 6))]
)
def test_the_gradients_of_large_images_are_the_same(tmp_path, seed):
    path = recorded(tmp_path, seed, 64)
    report = verify(path, Port(Ported(), loss_fn, optim.sgd(0.1)), free_run=False)
    assert report, report


def test_what_is_added_up_in_one_go_is_known_by_its_module(tmp_path):
    trace = open_trace(recorded(tmp_path, 0, 16))
    step, eps = trace[0], np.finfo(np.float32).eps
    terms = ROWS * 16 * 16

    def ulps(name):
        grain = grain_of_sum(name, np.asarray(step.grads[name]), step, trace.run)
        return None if grain is None else np.max(grain / abs(step.grads[name])) / eps

    assert ulps("a.bias") == pytest.approx(0.1 * terms)
    assert ulps("a.weight") == pytest.approx(0.1 * terms**0.5)
    assert ulps("fc.weight") is None

"""A port's parts are compiled once, however many recordings it is held against."""

import jax.numpy as jnp
import pytest
import torch
from flax import nnx

from jaxclip import optim
from jaxclip.parity import Port, record, verify

LR = 0.1


class Net(nnx.Module):
    """A linear layer, and in evaluation mode twice that."""

    def __init__(self):
        """Make the layer."""
        self.fc = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        self.deterministic = False

    def __call__(self, x):
        return self.fc(x) * (2 if self.deterministic else 1)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Record a layer from two seeds."""
    paths = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = torch.nn.ModuleDict({"fc": torch.nn.Linear(3, 2)})
        model.forward = lambda x, model=model: model["fc"](x)
        optimizer = torch.optim.SGD(model.parameters(), lr=LR)
        paths.append(tmp_path_factory.mktemp("runs") / "run.trace")
        with record(paths[-1], model, optimizer) as run:
            x, y = torch.randn(4, 3), torch.randn(4, 2)
            with run.step(x=x, y=y):
                torch.nn.functional.mse_loss(model(x), y).backward()
                optimizer.step()
    return paths


def test_a_second_recording_is_not_compiled_for_unless_the_model_changed(runs):
    traced = []

    def loss_fn(model, batch):
        traced.append(model)
        outputs = model(batch["x"])
        return jnp.mean((outputs - batch["y"]) ** 2), outputs

    own = Port(Net(), loss_fn, optim.sgd(LR))
    first = verify(runs[0], own)
    first.raise_if_different()
    once = len(traced)
    second = verify(runs[1], own)
    second.raise_if_different()
    assert len(traced) == once > 0
    assert second.not_compared == first.not_compared

    own.model.eval()
    changed = verify(runs[0], own)
    assert len(traced) == 2 * once
    assert (changed.first.stage, changed.first.name) == ("output", "output")
    own.model.train()
    verify(runs[0], own).raise_if_different()

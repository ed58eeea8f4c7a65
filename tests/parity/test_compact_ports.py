"""Ports to Linen whose modules are made in compact methods, as most are."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
import pytest
import torch
from flax import linen as nn

from jaxclip import clip_by_global_norm, optim
from jaxclip.parity import Port, record, verify

pytestmark = pytest.mark.usefixtures("quick_compilation")

MAX_NORM, LR = 0.5, 0.01


class TorchNet(torch.nn.Module):
    """A convolution, a dropout and a block."""

    def __init__(self):
        """Make the layers."""
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 6, 3, padding=1)
        self.drop = torch.nn.Dropout(0.3)
        self.block = torch.nn.Sequential(
            torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 5)
        )

    def forward(self, x):
        return self.block(self.drop(torch.relu(self.conv(x)).mean((2, 3))))


class Net(nn.Module):
    """The port; ``slope`` scales what the first layer of the block returns."""

    slope: float = 1.0

    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.Conv(6, (3, 3))(x)).mean((1, 2))
        x = nn.Dropout(0.3, name="drop")(x, deterministic=not train)
        x = nn.tanh(self.slope * nn.Dense(8, name="block_0")(x))
        return nn.remat(nn.Dense)(5, name="block_2")(x)


RENAME = {"conv": "Conv_0", "block.0": "block_0", "block.2": "block_2"}


def loss_fn(model, batch):
    outputs = model(batch["x"].transpose(0, 2, 3, 1), train=True)
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs, batch["y"])
    return losses.mean(), outputs


def recorded(path, dtype):
    torch.manual_seed(0)
    model = TorchNet().to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    with record(path, model, optimizer) as run:
        for _ in range(3):
            x, y = torch.randn(4, 3, 6, 6, dtype=dtype), torch.randint(0, 5, (4,))
            with run.step(x=x, y=y):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(x), y).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
                optimizer.step()
    return path


def port(**options):
    module = Net(**options)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = module.init(keys, jnp.zeros((1, 6, 6, 3)), train=True)
    return Port(
        (module, variables),
        loss_fn,
        optim.adamw(LR),
        clip=clip_by_global_norm(MAX_NORM),
        rename=RENAME,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_its_weights_activations_masks_and_state_are_compared(tmp_path, dtype):
    report = verify(recorded(tmp_path, dtype), port())
    assert report, report
    stages = report.of_stage("activations")
    assert {tensor.module for tensor in stages[0].tensors} >= {
        *("conv", "drop", "block.0", "block.2"),
    }
    kept = report.of_stage("optimizer state")[2].tensors
    assert {tensor.name.rpartition("/")[0] for tensor in kept} == {
        f"{module}.{name}"
        for module in ("conv", "block.0", "block.2")
        for name in ("weight", "bias")
    }


def test_a_fault_is_found_behind_the_module_where_it_is(tmp_path):
    report = verify(recorded(tmp_path, torch.float32), port(slope=1.001))
    assert (report.first.stage, report.first.module) == ("activations", "block.2")
    assert report.last_same.name == "block.0"


def test_what_from_torch_takes_is_taken_too(tmp_path):
    own = port()
    target = *own.model, lambda model: model(jnp.zeros((1, 6, 6, 3)), True)
    path = recorded(tmp_path, torch.float32)
    assert verify(path, dataclasses.replace(own, model=target), steps=1)

"""Of a tuple that a torch module returns, Flax's own returns the first part alone."""

import jax
import jax.numpy as jnp
import optax
import pytest
import torch
from flax import linen, nnx

from jaxclip import models
from jaxclip.parity import Port, compare

pytestmark = pytest.mark.usefixtures("quick_compilation")

FEATURES, HEADS = 8, 2


class Attending(torch.nn.Module):
    """Attention, and a layer on what it returns."""

    def __init__(self):
        """Make the layers."""
        super().__init__()
        self.attention = torch.nn.MultiheadAttention(FEATURES, HEADS, batch_first=True)
        self.head = torch.nn.Linear(FEATURES, 2)

    def forward(self, x):
        attended, _ = self.attention(x, x, x)
        return self.head(attended)


class AttendingPort(nnx.Module):
    """The port with NNX's own attention."""

    def __init__(self, factor=1.0):
        """Make the layers."""
        rngs = nnx.Rngs(0)
        self.factor = factor
        self.attention = nnx.MultiHeadAttention(
            HEADS, FEATURES, decode=False, rngs=rngs
        )
        self.head = nnx.Linear(FEATURES, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(self.attention(self.factor * x, x, x))


class LinenPort(linen.Module):
    """The port with Linen's own attention."""

    def setup(self):
        self.attention = linen.MultiHeadDotProductAttention(HEADS)
        self.head = linen.Dense(2)

    def __call__(self, x):
        return self.head(self.attention(x, x, x))


def linen_port():
    x = jnp.zeros((1, 2, FEATURES))
    return LinenPort(), LinenPort().init(jax.random.key(0), x)


class Recurrent(torch.nn.Module):
    """A recurrent net, and a layer on what it returns of each step."""

    def __init__(self):
        """Make the layers."""
        super().__init__()
        self.rnn = torch.nn.GRU(FEATURES, 3, batch_first=True)
        self.head = torch.nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0])


class Steps(models.GRU):
    """A recurrent net that returns what each step does, and no last state."""

    def __call__(self, *args, **options):
        return super().__call__(*args, **options)[0]


class RecurrentPort(nnx.Module):
    """The port with such a net."""

    def __init__(self):
        """Make the layers."""
        rngs = nnx.Rngs(0)
        self.rnn = Steps(FEATURES, 3, rngs=rngs)
        self.head = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(self.rnn(x))


def compared(torch_model, model, **options):
    def loss_fn(model, batch):
        outputs = model(batch["x"])
        return jnp.mean(outputs**2), outputs

    torch.manual_seed(0)
    return compare(
        torch_model,
        Port(model, loss_fn, optax.identity(), **options),
        {"x": torch.randn(3, 5, FEATURES)},
        torch_loss=lambda model, batch: (model(batch["x"]) ** 2).mean(),
    )


def activations(report):
    [stage] = report.of_stage("activations")
    return stage


@pytest.mark.parametrize("make", [AttendingPort, linen_port])
def test_what_attention_returns_is_held_against_the_first_of_torchs_pair(make):
    report = compared(Attending(), make())
    report.raise_if_different()
    found = activations(report)
    assert "attention, output 0" in [tensor.name for tensor in found.tensors]
    assert [left.name for left in found.not_compared] == ["attention, output 1"]


def test_a_port_whose_attention_differs_is_blamed_there():
    report = compared(Attending(), AttendingPort(factor=1.1))
    assert report.first.stage == "activations"
    assert report.first.name == "attention, output 0"


@pytest.mark.parametrize("layout", ["same", ("same", "same")])
def test_so_is_what_a_recurrent_net_returns(layout):
    report = compared(Recurrent(), RecurrentPort(), layouts={"rnn": layout})
    report.raise_if_different()
    found = activations(report)
    assert "rnn, output 0" in [tensor.name for tensor in found.tensors]

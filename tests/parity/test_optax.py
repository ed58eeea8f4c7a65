"""Ports that train with Optax's own optimizers: same where those do as torch's."""

import jax.numpy as jnp
import optax
import pytest
import torch
from flax import nnx

from jaxclip.parity import Port, record, verify

pytestmark = pytest.mark.usefixtures("quick_compilation")

LR = 0.01

SAME = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9}, optax.sgd(LR, 0.9)),
    "nesterov": (
        torch.optim.SGD,
        {"momentum": 0.9, "nesterov": True},
        optax.sgd(LR, 0.9, nesterov=True),
    ),
    "adam": (torch.optim.Adam, {}, optax.adam(LR)),
    "adamw": (
        torch.optim.AdamW,
        {"weight_decay": 0.1},
        optax.adamw(LR, weight_decay=0.1),
    ),
    "adamax": (torch.optim.Adamax, {}, optax.adamax(LR)),
    "rmsprop": (
        torch.optim.RMSprop,
        {"alpha": 0.9},
        optax.rmsprop(LR, 0.9, eps_in_sqrt=False),
    ),
    "centered rmsprop": (
        torch.optim.RMSprop,
        {"alpha": 0.9, "centered": True},
        optax.rmsprop(LR, 0.9, eps_in_sqrt=False, centered=True),
    ),
    "adagrad": (torch.optim.Adagrad, {"eps": 0.0}, optax.adagrad(LR, 0.0, 0.0)),
    "adadelta": (torch.optim.Adadelta, {}, optax.adadelta(LR)),
}

KEPT = {
    "sgd": {"momentum_buffer"},
    "nesterov": {"momentum_buffer"},
    "adam": {"exp_avg", "exp_avg_sq", "step"},
    "adamw": {"exp_avg", "exp_avg_sq", "step"},
    "adamax": {"exp_avg", "exp_inf", "step"},
    "rmsprop": {"square_avg"},
    "centered rmsprop": {"grad_avg", "square_avg"},
    "adagrad": {"sum"},
    "adadelta": {"acc_delta", "square_avg"},
}
"""What is compared of each parameter in every step."""


class Net(torch.nn.Module):
    """Two layers, with tanh between them."""

    def __init__(self):
        """Make the layers."""
        super().__init__()
        self.fc1, self.fc2 = torch.nn.Linear(3, 8), torch.nn.Linear(8, 2)

    def forward(self, x):
        return self.fc2(torch.tanh(self.fc1(x)))


class Ported(nnx.Module):
    """The port of `Net`."""

    def __init__(self):
        """Make the layers."""
        self.fc1 = nnx.Linear(3, 8, rngs=nnx.Rngs(0))
        self.fc2 = nnx.Linear(8, 2, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.fc2(nnx.tanh(self.fc1(x)))


def recorded(path, make, options, *, dtype=torch.float32, steps=3):
    torch.manual_seed(0)
    model = Net().to(dtype)
    optimizer = make(model.parameters(), lr=LR, **options)
    with record(path, model, optimizer) as run:
        for _ in range(steps):
            x, y = torch.randn(4, 3, dtype=dtype), torch.randn(4, 2, dtype=dtype)
            with run.step(x=x, y=y):
                optimizer.zero_grad()
                torch.nn.functional.mse_loss(model(x), y).backward()
                optimizer.step()
    return path


def loss_fn(model, batch):
    outputs = model(batch["x"])
    return jnp.mean((outputs - batch["y"]) ** 2), outputs


def verified(path, transformation):
    return verify(path, Port(Ported(), loss_fn, transformation))


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.long)]
)
@pytest.mark.parametrize("name", SAME)
def test_what_does_as_torchs_is_the_same_with_its_state(tmp_path, name, dtype):
    make, options, transformation = SAME[name]
    path = recorded(tmp_path, make, options, dtype=dtype)
    report = verified(path, transformation)
    assert report, report
    for stage in report.of_stage("optimizer state"):
        kept = {tensor.name.rpartition("/")[2] for tensor in stage.tensors}
        assert {key for key in kept if "at the start" not in key} == KEPT[name]
    # A count of steps that nothing depends on is in none of Optax's states.
    reasons = {
        left.reason
        for stage in report.of_stage("optimizer state")
        for left in stage.not_compared
        if left.name
    }
    counts = "step" in KEPT[name] or "momentum_buffer" in KEPT[name]
    said = set() if counts else {"nothing in the port's optimizer counts steps"}
    assert reasons == said


WRONG = {
    "adamax": (optax.adamax(LR, b2=0.99), "exp_inf"),
    "rmsprop": (optax.rmsprop(LR, 0.8, eps_in_sqrt=False), "square_avg"),
    "centered rmsprop": (
        optax.rmsprop(LR, 0.8, eps_in_sqrt=False, centered=True),
        "grad_avg",
    ),
    "adagrad": (optax.adagrad(LR, 0.1, 0.0), "sum, at the start"),
    "adadelta": (optax.adadelta(LR, 0.8), "acc_delta"),
}


@pytest.mark.parametrize("name", WRONG)
def test_another_number_is_found_in_the_state(tmp_path, name):
    make, options, _ = SAME[name]
    transformation, key = WRONG[name]
    report = verified(recorded(tmp_path, make, options), transformation)
    assert not report
    failed = {
        tensor.name.rpartition("/")[2]
        for tensor in report.failures
        if tensor.stage == "optimizer state"
    }
    assert key in failed


@pytest.mark.parametrize(
    ("make", "options", "transformation", "ours"),
    [
        (torch.optim.Adam, {"amsgrad": True}, optax.amsgrad(LR), "adam(amsgrad=True)"),
        (torch.optim.Rprop, {}, optax.rprop(LR), "rprop"),
        (torch.optim.Adafactor, {}, optax.adafactor(LR), "adafactor"),
        (
            torch.optim.RMSprop,
            {"momentum": 0.9},
            optax.rmsprop(LR, 0.99, eps_in_sqrt=False, momentum=0.9),
            "rmsprop",
        ),
    ],
)
def test_of_a_state_of_other_numbers_the_report_names_what_has_the_same(
    tmp_path, make, options, transformation, ours
):
    report = verified(recorded(tmp_path, make, options), transformation)
    assert report.first.stage == "optimizer state"
    assert f"that of jaxclip.optim.{ours} the same." in report.first.detail

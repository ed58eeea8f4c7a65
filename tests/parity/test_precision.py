"""Ports that compute in another dtype than that of their parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from torch import nn
from torch.nn import functional as F

from jaxclip import clip_by_global_norm, models, optim
from jaxclip.parity import Port, record, verify
from jaxclip.parity._verify._compute._evaluation import Evaluation
from jaxclip.parity._verify._compute._precision import Traced

pytestmark = pytest.mark.usefixtures("quick_compilation")


FEATURES, BATCH, LR, MAX_NORM = 16, 8, 0.1, 0.5
LOW = ("bfloat16", "float16")


class Net(nn.Module):
    """Linear layers, normalisation and gates."""

    def __init__(self):
        """Make the layers."""
        super().__init__()
        self.fc1 = nn.Linear(FEATURES, FEATURES)
        self.norm = nn.LayerNorm(FEATURES)
        self.gates = nn.Linear(FEATURES, 2 * FEATURES)
        self.fc2 = nn.Linear(FEATURES, 4)

    def forward(self, x):
        hidden = F.gelu(self.norm(self.fc1(x)))
        value, gate = self.gates(hidden).chunk(2, -1)
        return self.fc2(value * torch.sigmoid(gate) + hidden)


class NetPort(nnx.Module):
    """The port of `Net`, with a fault."""

    def __init__(self, dtype, fault):
        """Make the layers."""
        given = {"dtype": dtype, "param_dtype": jnp.float32, "rngs": nnx.Rngs(0)}
        self.fault = fault
        self.fc1 = nnx.Linear(FEATURES, FEATURES, **given)
        eps = 1e-6 if fault == "eps of LayerNorm" else 1e-5
        self.norm = nnx.LayerNorm(FEATURES, epsilon=eps, **given)
        self.gates = nnx.Linear(FEATURES, 2 * FEATURES, **given)
        self.fc2 = nnx.Linear(FEATURES, 4, **given)

    def __call__(self, x):
        tanh = self.fault == "tanh GELU"
        hidden = jax.nn.gelu(self.norm(self.fc1(x)), approximate=tanh)
        value, gate = jnp.split(self.gates(hidden), 2, -1)
        if self.fault == "swapped gates":
            value, gate = gate, value
        if self.fault == "scale":
            value = 1.1 * value
        return self.fc2(value * jax.nn.sigmoid(gate) + hidden)


def run_of(path, dtype, *, autocast, seed=0, steps=1):
    """Record training in a precision: all of it, or by autocast."""
    torch.manual_seed(seed)
    low = getattr(torch, dtype)
    model = Net() if autocast else Net().to(low)
    # In float16 alone torch's Adam divides by squares that are 0.
    make = torch.optim.AdamW if autocast else torch.optim.SGD
    optimizer = make(model.parameters(), lr=LR)
    with record(path, model, optimizer) as run:
        for _ in range(steps):
            x, y = torch.randn(BATCH, FEATURES), torch.randn(BATCH, 4)
            if not autocast:
                x, y = x.to(low), y.to(low)
            with run.step(x=x, y=y):
                optimizer.zero_grad()
                with torch.autocast("cpu", low, enabled=autocast):
                    outputs = model(x)
                outputs = outputs.float() if autocast else outputs
                ((outputs - y) ** 2).mean().backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
                optimizer.step()
    return path


def port_of(dtype, *, autocast, fault=""):
    def loss_fn(model, batch):
        outputs = model(batch["x"])
        wider = outputs.astype(jnp.float32) if autocast else outputs
        return jnp.mean((wider - batch["y"]) ** 2), outputs

    make = optim.adamw if autocast else optim.sgd
    return Port(
        NetPort(jnp.dtype(dtype) if autocast else None, fault),
        loss_fn,
        make(LR * 1.05 if fault == "learning rate" else LR),
        clip=clip_by_global_norm(MAX_NORM),
    )


@pytest.mark.parametrize(
    ("dtype", "autocast", "seed"),
    [
        ("bfloat16", False, 0),
        ("bfloat16", True, 0),
        *(
            pytest.param(dtype, autocast, seed, marks=pytest.mark.long)
            for dtype in LOW
            for autocast in (False, True)
            for seed in range(10)
        ),
    ],
)
def test_a_port_in_few_bits_is_the_same(tmp_path, dtype, autocast, seed):
    path = run_of(tmp_path / "run.trace", dtype, autocast=autocast, seed=seed)
    report = verify(path, port_of(dtype, autocast=autocast), free_run=seed > 0)
    report.raise_if_different()
    assert f"The port computes in {dtype}: its noise is that of 4 runs" in str(report)
    assert f"rounding noise of the port, which computes in {dtype}" in report.rule
    assert ("compared in torch's dtype" in str(report)) is not autocast


@pytest.mark.parametrize(
    ("fault", "stage", "dtype", "autocast"),
    [
        ("swapped gates", "activations", "bfloat16", True),
        *(
            pytest.param(fault, stage, dtype, autocast, marks=pytest.mark.long)
            for fault, stage in (
                ("swapped gates", "activations"),
                ("scale", "activations"),
                ("learning rate", "update"),
            )
            for dtype in LOW
            for autocast in (False, True)
            # bfloat16 parameters are coarser than a twentieth of such a step.
            if (fault, dtype, autocast) != ("learning rate", "bfloat16", False)
        ),
    ],
)
def test_a_bug_is_found_in_few_bits(tmp_path, fault, stage, dtype, autocast):
    path = run_of(tmp_path / "run.trace", dtype, autocast=autocast)
    own = port_of(dtype, autocast=autocast, fault=fault)
    report = verify(path, own, free_run=False)
    assert not report
    found = {first.stage for first in report.failures}
    assert stage in found or (fault == "scale" and "gradients" in found)


@pytest.mark.parametrize(
    ("fault", "module"), [("tanh GELU", "gates"), ("eps of LayerNorm", "norm")]
)
@pytest.mark.parametrize(
    "autocast", [False, pytest.param(True, marks=pytest.mark.long)]
)
def test_small_bugs_are_hidden_in_few_bits_and_found_in_float32(
    tmp_path, fault, module, autocast
):
    path = run_of(tmp_path / "low.trace", "bfloat16", autocast=autocast)
    low = port_of("bfloat16", autocast=autocast, fault=fault)
    assert verify(path, low, free_run=False)
    path = run_of(tmp_path / "run.trace", "float32", autocast=False)
    own = port_of("float32", autocast=False, fault=fault)
    first = verify(path, own, free_run=False).first
    assert (first.stage, first.module) == ("activations", module)


# A dtype that is held to by hand.


def linear_run(path, seed=0):
    torch.manual_seed(seed)
    model = nn.Linear(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    with record(path, model, optimizer) as run:
        x, y = torch.randn(16, 8), torch.randn(16, 4)
        with run.step(x=x, y=y):
            low = torch.bfloat16
            outputs = (x.to(low) @ model.weight.to(low).T).float() + model.bias
            ((outputs - y) ** 2).mean().backward()
            optimizer.step()
    return path


def bare_port(scale=1.0):
    def loss_fn(params, batch):
        low = jnp.bfloat16
        outputs = batch["x"].astype(low) @ params["weight"].T.astype(low)
        outputs = scale * outputs.astype(jnp.float32) + params["bias"]
        return jnp.mean((outputs - batch["y"]) ** 2).astype(jnp.float32)

    params = {"weight": jnp.zeros((4, 8)), "bias": jnp.zeros(4)}
    return Port(params, loss_fn, optim.sgd(LR))


class Convolutional(nnx.Module):
    """The port of what `autocast_convolutions` trains, with a normalisation."""

    def __init__(self, norm):
        """Make the layers."""
        low, rngs = jnp.bfloat16, nnx.Rngs(0)
        self.conv = nnx.Conv(3, 8, (3, 3), padding=1, dtype=low, rngs=rngs)
        self.norm = norm(8, rngs=rngs)
        self.fc = nnx.Linear(128, 10, dtype=low, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(jnp.moveaxis(x, 1, -1))))
        return self.fc(nnx.max_pool(x, (2, 2), (2, 2)).reshape(len(x), -1))


def autocast_convolutions(path, seed):
    """Record what autocast makes of convolutions and of a batch normalisation."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)),
        *(nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10)),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    with record(path, model, optimizer) as run:
        for _ in range(2):
            x, y = torch.randn(8, 3, 8, 8), torch.randint(10, (8,))
            with run.step(x=x, y=y):
                optimizer.zero_grad()
                with torch.autocast("cpu", torch.bfloat16):
                    loss = F.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
    return path


def port_of_convolutions(norm=models.BatchNorm, **options):
    def loss_fn(model, batch):
        logits = model(batch["x"])
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits.astype(jnp.float32), batch["y"]
        )
        return losses.mean(), logits

    return Port(
        Convolutional(norm),
        loss_fn,
        optim.adamw(LR),
        rename={"0": "conv", "1": "norm", "5": "fc"},
        flatten={"fc": (8, 4, 4)},
        **options,
    )


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 10))]
)
def test_convolutions_under_autocast_are_the_same(tmp_path, seed):
    path = autocast_convolutions(tmp_path / "run.trace", seed)
    report = verify(path, port_of_convolutions())
    report.raise_if_different()
    compared = report.of_stage("activations")[0].tensors
    assert [tensor.module for tensor in compared] == ["0", "1", "5"]


def test_a_normalisation_that_leaves_autocast_is_named(tmp_path):
    # torch's is given bfloat16 and returns it; Flax's returns float32 by default.
    path = autocast_convolutions(tmp_path / "run.trace", 0)
    own = port_of_convolutions(nnx.BatchNorm, ignore=["*.num_batches_tracked"])
    report = verify(path, own, free_run=False)
    assert (report.first.stage, report.first.module) == ("activations", "1")
    assert "dtype differs: bfloat16 in torch, float32 in port" in report.first.detail
    assert report.last_same.name == "0"
    assert "the last before it that is the same: 0\n" in str(report)
    assert ">0</b>" in report.to_html()
    assert report.to_json()["last_same"] == "0"


def test_a_cast_by_hand_is_seen(tmp_path):
    path = linear_run(tmp_path / "run.trace")
    report = verify(path, bare_port(), free_run=False)
    report.raise_if_different()
    assert "The port computes in bfloat16" in str(report)
    wrong = verify(path, bare_port(1.1), free_run=False)
    assert wrong.first.stage in ("loss", "gradients")


def test_the_wide_run_casts_to_float64_alone():
    def function(x, kernel):
        low = x.astype(jnp.bfloat16) @ kernel.astype(jnp.bfloat16)

        def body(carry, row):
            carry = jnp.tanh(carry + row.astype(jnp.float16))
            return carry, jax.lax.cond(row[0] > 0, jnp.sin, jnp.cos, carry)

        last, all_rows = jax.lax.scan(body, jnp.zeros(3, jnp.float16), low)
        halved = jax.lax.fori_loop(0, 3, lambda _, y: y / 2, last)
        picked = low.at[jnp.array([0, 0])].add(1)
        return jax.checkpoint(jax.nn.relu)(picked).astype("f").sum() + halved.sum(), (
            all_rows
        )

    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(5, 4)), rng.normal(size=(4, 3))
    with jax.enable_x64(True):
        traced = Traced(jax.value_and_grad(function, has_aux=True), x, kernel)
        assert {"bfloat16", "float16"} <= {str(dtype) for dtype in traced.dtypes}
        (value, rows), grad = traced(x, kernel, evaluation=Evaluation(lift=True))
    hidden = x @ kernel
    carry, expected = np.zeros(3), []
    for row in hidden:
        carry = np.tanh(carry + row)
        expected.append(np.sin(carry) if row[0] > 0 else np.cos(carry))
    hidden[0] += 2
    np.testing.assert_allclose(rows, expected, rtol=1e-14)
    np.testing.assert_allclose(
        value, np.maximum(hidden, 0).sum() + carry.sum() / 8, rtol=1e-14
    )
    assert {str(array.dtype) for array in (value, rows, grad)} == {"float64"}

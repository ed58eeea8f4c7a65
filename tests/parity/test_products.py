"""Products of float32 are computed in full, unless the user asks for another precision.

How many bits that has, a CPU does not show: the precision that JAX traced does.
"""

import dataclasses
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from torch import nn

from jaxclip.parity import Port, open_trace, record, record_jax, verify
from jaxclip.parity._verify._compute import _products
from jaxclip.parity._verify._compute._precision import Traced
from jaxclip.parity._verify._compute._runs import Runs
from jaxclip.parity._verify._tracing._equations import jaxprs_in

HIGHEST, DEFAULT = jax.lax.Precision.HIGHEST, jax.lax.Precision.DEFAULT
F32 = np.dtype("float32")


class Net(nn.Module):
    """A convolution and a product."""

    def __init__(self):
        """Make the layers."""
        super().__init__()
        self.conv = nn.Conv1d(2, 2, 3)
        self.fc = nn.Linear(8, 2)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).flatten(1))


class NetPort(nnx.Module):
    """The port of `Net`."""

    def __init__(self, precision=None):
        """Make the layers, one with a precision of its own."""
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(2, 2, (3,), padding="VALID", rngs=rngs)
        self.fc = nnx.Linear(8, 2, precision=precision, rngs=rngs)

    def __call__(self, x):
        hidden = nnx.relu(self.conv(x.swapaxes(1, 2)))
        return self.fc(hidden.reshape(len(x), -1))


def loss_fn(model, batch):
    outputs = model(batch["x"])
    return jnp.mean((outputs - batch["y"]) ** 2), outputs


def port(precision=None, optimizer=None):
    model = NetPort(precision)
    return Port(model, loss_fn, optimizer or optax.sgd(0.1), flatten={"fc": (2, 4)})


@pytest.fixture
def path(tmp_path):
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with record(tmp_path / "run.trace", model, optimizer) as run:
        for _ in range(2):
            x, y = torch.randn(4, 2, 6), torch.randn(4, 2)
            with run.step(x=x, y=y):
                optimizer.zero_grad()
                nn.functional.mse_loss(model(x), y).backward()
                optimizer.step()
    return tmp_path / "run.trace"


@pytest.fixture
def traced(monkeypatch):
    """What the port's runs are traced to, each with the name of the run."""
    made: list[Traced] = []
    original = Runs.traced

    def traced(self, *given, wide):
        made.append(original(self, *given, wide=wide))
        return made[-1]

    monkeypatch.setattr(Runs, "traced", traced)
    return made


def precisions(made):
    """Return the precisions of all products and convolutions."""
    found = [
        eqn.params["precision"]
        for each in made
        for jaxpr in jaxprs_in(each.closed.jaxpr)
        for eqn in jaxpr.eqns
        if eqn.primitive.name in ("dot_general", "conv_general_dilated")
    ]
    assert found
    return {*found}


def test_the_ports_products_are_in_full_precision(path, traced):
    verify(path, port()).raise_if_different()
    assert precisions(traced) == {(HIGHEST, HIGHEST)}


def test_those_of_the_optimizer_too(path):
    seen = set()

    def update(updates, state, params=None):
        seen.add(jax.config.values["jax_default_matmul_precision"])
        return jax.tree.map(lambda u: -0.1 * u, updates), state

    optimizer = optax.GradientTransformation(lambda _: optax.EmptyState(), update)
    verify(path, port(optimizer=optimizer)).raise_if_different()
    assert seen == {"highest"}


@pytest.mark.parametrize("asked", ["default", "tensorfloat32"])
def test_what_the_user_asks_for_is_honoured(asked, path, traced):
    with jax.default_matmul_precision(asked):
        verify(path, port()).raise_if_different()
    assert (HIGHEST, HIGHEST) not in precisions(traced)


def test_a_precision_in_the_port_is_honoured(path, traced):
    verify(path, port(precision=DEFAULT)).raise_if_different()
    assert precisions(traced) == {(HIGHEST, HIGHEST), (DEFAULT, DEFAULT)}


def test_it_is_not_left_on(path):
    verify(path, port(), steps=1, free_run=False)
    assert jax.config.values["jax_default_matmul_precision"] is None


def test_record_jax_trains_as_the_user_does(tmp_path, traced):
    with record_jax(tmp_path, port()) as run:
        run.step(x=jnp.ones((4, 2, 6)), y=jnp.ones((4, 2)))
    assert precisions(traced) == {None}


def test_a_cpu_has_nothing_to_note(path):
    run = open_trace(path).run
    assert run.settings["cudnn_tf32"] == "conv, rnn"
    assert [*_products.notes(run, {F32})] == []


@pytest.mark.parametrize(("platform", "dtype"), [("gpu", "TF32"), ("tpu", "bfloat16")])
def test_the_default_of_the_device_is_noted(platform, dtype, path, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    run = open_trace(path).run
    [note] = _products.notes(run, {F32})
    assert f"JAX's default on a {platform.upper()} is {dtype}" in note
    assert 'jax.config.update("jax_default_matmul_precision", "highest")' in note
    assert [*_products.notes(run, {np.dtype("float64")})] == []
    with jax.default_matmul_precision("highest"):
        assert [*_products.notes(run, {F32})] == []
    with jax.default_matmul_precision("tensorfloat32"):
        [note] = _products.notes(run, {F32})
    assert "jax_default_matmul_precision='tensorfloat32'" in note


def with_settings(path, **settings):
    run = open_trace(path).run
    return dataclasses.replace(run, settings=run.settings | settings)


def test_products_of_torch_in_tf32_are_noted(path):
    full = {"device": "cuda:0", "cudnn_tf32": "none"}
    assert [*_products.notes(with_settings(path, **full), {F32})] == []
    run = with_settings(path, **full, float32_matmul_precision="medium")
    [note] = _products.notes(run, {F32})
    assert "'medium'" in note
    assert 'torch.set_float32_matmul_precision("highest")' in note


def test_layers_of_cudnn_in_tf32_are_noted(path):
    run = with_settings(path, device="cuda:0")
    [note] = _products.notes(run, {F32})
    assert "torch computed conv in TF32" in note
    assert "torch.backends.cudnn.allow_tf32 = False" in note
    of_rnn = dataclasses.replace(run.modules[-1], path="lstm", type=name_of(nn.LSTM))
    run = dataclasses.replace(run, modules=(*run.modules, of_rnn))
    [note] = _products.notes(run, {F32})
    assert "torch computed conv, lstm in TF32" in note
    wide = dataclasses.replace(run, dtypes=("float64",))
    assert [*_products.notes(wide, {F32})] == []


def name_of(layer):
    return f"{layer.__module__}.{layer.__qualname__}"


def test_a_recording_of_jax_in_tf32_is_noted(tmp_path):
    with record_jax(tmp_path, port()) as run:
        run.step(x=jnp.ones((4, 2, 6)), y=jnp.ones((4, 2)))
    assert [*_products.notes(open_trace(tmp_path).run, {F32})] == []
    [note] = _products.notes(with_settings(tmp_path, device="gpu, some card"), {F32})
    assert "TF32, of 10 bits" in note
    full = {"device": "gpu, some card", "matmul_precision": "highest"}
    assert [*_products.notes(with_settings(tmp_path, **full), {F32})] == []


@pytest.mark.parametrize(
    ("setting", "conv", "products"),
    [
        ("torch.backends.cudnn.allow_tf32 = False", "none", "highest"),
        ("torch.backends.cuda.matmul.fp32_precision = 'tf32'", "conv, rnn", "high"),
        *(
            pytest.param(*row, marks=pytest.mark.long)
            for row in (
                ("torch.set_float32_matmul_precision('high')", "conv, rnn", "high"),
                (
                    "torch.backends.cudnn.conv.fp32_precision = 'ieee'",
                    *("rnn", "highest"),
                ),
                ("torch.backends.fp32_precision = 'tf32'", "conv, rnn", "high"),
            )
        ),
    ],
)
def test_however_torch_is_told_its_precision_is_recorded(
    setting, conv, products, in_a_new_process
):
    assert in_a_new_process(setting) == [conv, products]


@pytest.fixture
def in_a_new_process():
    """Runs a line of torch and what is then recorded; nothing puts that line back."""
    code = (
        "from jaxclip.parity._torch import _describe\n"
        "print(', '.join(_describe._cudnn_tf32()) or 'none')\n"
        "print(_describe._matmul_precision())"
    )

    def run(line):
        done = subprocess.run(
            [sys.executable, "-c", f"import torch\n{line}\n{code}"],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.splitlines()

    return run


WIDTH = 64


def in_tf32(a, b):
    """Multiply as a GPU does in TF32: float32 of 10 bits, added up in float32."""
    if a.dtype == jnp.float32:
        a, b = (jax.lax.reduce_precision(x, 8, 10) for x in (a, b))
    return jnp.matmul(a, b, precision=HIGHEST)


class Dense(nnx.Module):
    """Two layers with a GELU between them."""

    def __init__(self, multiply, *, approximate):
        """Make the layers."""
        rngs = nnx.Rngs(0)
        self.multiply, self.approximate = multiply, approximate
        self.fc1 = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.fc2 = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x):
        hidden = self.multiply(x, self.fc1.kernel[...]) + self.fc1.bias[...]
        hidden = jax.nn.gelu(hidden, approximate=self.approximate)
        return self.multiply(hidden, self.fc2.kernel[...]) + self.fc2.bias[...]


def test_in_tf32_a_correct_port_would_be_blamed(tmp_path):
    """Which is why products are in full; a CPU can only imitate the other."""
    torch.manual_seed(0)
    names = ("fc1", "gelu", "fc2")
    layers = nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH)
    model = nn.Sequential(OrderedDict(zip(names, layers, strict=True)))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with record(tmp_path, model, optimizer) as run:
        x, y = torch.randn(32, WIDTH), torch.randn(32, WIDTH)
        with run.step(x=x, y=y):
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()

    def verified(multiply, *, approximate):
        model = Dense(multiply, approximate=approximate)
        own = Port(model, loss_fn, optax.sgd(0.1))
        return verify(tmp_path, own, free_run=False)

    verified(jnp.matmul, approximate=False).raise_if_different()
    assert "torch is" in verified(jnp.matmul, approximate=True).first.detail
    blamed = verified(in_tf32, approximate=False)
    assert "the port loses digits that torch keeps" in blamed.first.detail

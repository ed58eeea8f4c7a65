"""Ports in Equinox are compared by module, and keep what torch's dropouts did."""

from collections import OrderedDict
from dataclasses import dataclass, replace
from itertools import chain

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
import torch

from jaxclip.convert import ConversionError
from jaxclip.parity import compare_traces, open_trace, record_jax, verify
from tests.parity.equinox_nets import FAULTS, PORTS
from tests.parity.recordings import in_each_dtype, quick_or_long, recorded_once
from tests.parity.scanned_nets import (
    BATCH,
    LAYERS,
    SIZE,
    port,
    recording,
    trained,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

BLOCKS = [
    [f"blocks.{n}.{name}" for name in ("norm", "up", "drop", "down")]
    for n in range(LAYERS)
]
MEMBERS = [
    f"members.{n}.{name}" for n in range(LAYERS) for name in ("up", "drop", "down")
]
MODULES = {"stack": [*chain(*BLOCKS), "head"], "ensemble": MEMBERS}

QUICK = {
    ("scanned", torch.float64),
    ("ensemble", torch.float32),
}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Record the stack in each dtype once."""
    return recorded_once(tmp_path_factory, recording)


@pytest.mark.parametrize(
    ("name", "dtype"),
    in_each_dtype(PORTS, QUICK),
)
def test_a_port_is_the_same_module_by_module(name, dtype, recorded):
    net, make = PORTS[name]
    report = verify(recorded(net, dtype), make())
    report.raise_if_different()
    assert report.notes == ()
    names = [tensor.name for tensor in report.of_stage("activations")[0].tensors]
    assert names == MODULES[net]


@pytest.mark.long
def test_a_module_of_the_users_is_compared_once_its_layout_is_said(recorded):
    port = replace(PORTS["list"][1](), layouts={"blocks.?": "same"})
    report = verify(recorded("stack"), port)
    report.raise_if_different()
    names = {tensor.name for tensor in report.of_stage("activations")[0].tensors}
    assert {f"blocks.{n}" for n in range(LAYERS)} <= names


EXPECTED = [
    ("eps", "blocks.2.norm", "more than noise"),
    ("gelu", "blocks.1.drop", "more than noise"),
    ("off", "blocks.3.drop", "more than the port asked for it"),
    ("one key", "blocks.0.drop", "each row needs a key of its own"),
    ("scanned gelu", "blocks.0.drop", "more than noise"),
]


@pytest.mark.parametrize(
    ("fault", "module", "words"),
    quick_or_long(EXPECTED, {("scanned gelu",)}, ids=1),
)
def test_a_fault_is_found_in_its_module(fault, module, words, recorded):
    report = verify(recorded("stack"), FAULTS[fault]())
    first = report.first
    assert (first.step, first.stage, first.module) == (0, "activations", module)
    assert words in str(report)


def test_a_recording_of_jax_has_what_modules_return(tmp_path, recorded):
    batch = open_trace(recorded("stack"))[0].batch
    paths = [tmp_path / name for name in ("one", "other")]
    for path in paths:
        with record_jax(path, PORTS["list"][1]()) as run:
            run.step(**batch)
    found = open_trace(paths[0])[0].activations
    expected = [
        name for n, block in enumerate(BLOCKS) for name in (*block, f"blocks.{n}")
    ]
    assert [each.module for each in found] == [*expected, "head"]
    assert found[-1].type.endswith(".Linear")
    compare_traces(*paths).raise_if_different()


class Normed(eqx.Module):
    """A layer, and running statistics in a state."""

    fc: eqx.nn.Linear
    norm: eqx.nn.BatchNorm

    def __init__(self):
        """Make the layers."""
        self.fc = eqx.nn.Linear(SIZE, SIZE, key=jax.random.key(0))
        self.norm = eqx.nn.BatchNorm(SIZE, "rows", mode="batch")

    def __call__(self, x, state):
        """Map ``(SIZE,)`` to the same."""
        return self.norm(self.fc(x), state)


def test_what_keeps_a_state_is_compared_by_what_it_returns(tmp_path):
    torch.manual_seed(0)
    layers = {"fc": torch.nn.Linear(SIZE, SIZE), "norm": torch.nn.BatchNorm1d(SIZE)}
    batches = [torch.randn(2, BATCH, SIZE) for _ in range(2)]
    source = torch.nn.Sequential(OrderedDict(layers))
    path = trained(tmp_path / "run.trace", source, batches)
    model, state = eqx.nn.make_with_state(Normed)()

    def loss_fn(model, batch):
        dtype = batch["x"].dtype
        own = jax.tree.map(
            lambda kept: kept.astype(
                dtype if jnp.issubdtype(kept.dtype, jnp.floating) else kept.dtype
            ),
            state,
        )
        rows = {"in_axes": (0, None), "out_axes": (0, None), "axis_name": "rows"}
        outputs, _ = jax.vmap(model, **rows)(batch["x"], own)
        return jnp.mean((outputs - batch["y"]) ** 2), outputs

    ignore = ["*.running_mean", "*.running_var", "*.num_batches_tracked"]
    report = verify(path, port(model, loss_fn, ignore=ignore))
    report.raise_if_different()
    names = [tensor.name for tensor in report.of_stage("activations")[0].tensors]
    assert names == ["fc", "norm"]
    with pytest.raises(ConversionError, match="keeps running statistics in a State"):
        verify(path, port(model, loss_fn))


@jax.tree_util.register_dataclass
@dataclass
class Dense:
    """A layer of a class that is no module of any library."""

    weight: jax.Array
    bias: jax.Array

    def __call__(self, x):
        """Map ``(B, SIZE)`` to the same."""
        return x @ self.weight.T + self.bias


def test_whatever_can_be_called_in_a_tree_is_seen(tmp_path):
    torch.manual_seed(0)
    layers = {name: torch.nn.Linear(SIZE, SIZE) for name in ("fc", "head")}
    source = torch.nn.Sequential(
        OrderedDict(fc=layers["fc"], relu=torch.nn.ReLU(), head=layers["head"])
    )
    path = trained(tmp_path / "run.trace", source, [torch.randn(2, BATCH, SIZE)])

    def loss_fn(model, batch):
        outputs = model["head"](jax.nn.relu(model["fc"](batch["x"])))
        return jnp.mean((outputs - batch["y"]) ** 2), outputs

    model = {name: Dense(jnp.zeros((SIZE, SIZE)), jnp.zeros(SIZE)) for name in layers}
    report = verify(path, port(model, loss_fn))
    report.raise_if_different()
    said = "how its output lies is not known: say it in layouts"
    reasons = {left.name.split(" ")[0]: left.reason for _, left in report.not_compared}
    assert reasons["fc"] == reasons["head"] == said
    report = verify(path, port(model, loss_fn, layouts={"*": "same"}))
    report.raise_if_different()
    names = [tensor.name for tensor in report.of_stage("activations")[0].tensors]
    assert names == ["fc", "head"]
    # Its class is as it was.
    assert not hasattr(Dense.__call__, "__wrapped__")

"""What is mapped over rows, or over layers, is compared and replayed."""

from collections import OrderedDict

import jax
import pytest
import torch
from flax import nnx

from jaxclip.parity import verify
from tests.parity.mapped_nets import PORTS
from tests.parity.recordings import in_each_dtype, quick_or_long, recorded_once
from tests.parity.scanned_nets import (
    BATCH,
    LAYERS,
    SIZE,
    STEPS,
    port,
    recording,
    trained,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Record each net in each dtype once."""
    return recorded_once(tmp_path_factory, recording)


def names_of(report):
    """Return what was compared of the activations, in order."""
    return [tensor.name for tensor in report.of_stage("activations")[0].tensors]


EXPECTED = {
    "nnx": [
        f"{layer}{call}"
        for call in ("", *(f", call {n}" for n in range(1, STEPS)))
        for layer in ("ih", "hh", "drop")
    ]
    + ["head"],
    "linen": [
        f"blocks.{n}.{name}"
        for n in range(LAYERS)
        for name in ("norm", "up", "drop", "down")
    ]
    + ["head"],
    "plain": [],
    "ensemble": [
        f"members.{n}.{name}" for n in range(LAYERS) for name in ("up", "drop", "down")
    ],
}
"""What is compared: what returns nothing is not, and a module of stacked layers only
where its layout is said."""


QUICK = {("nnx", torch.float32), ("plain", torch.float64), ("ensemble", torch.float32)}


@pytest.mark.parametrize(
    ("name", "dtype"),
    in_each_dtype(PORTS, QUICK),
)
def test_a_port_that_maps_is_the_same(name, dtype, recorded):
    net, make = PORTS[name]
    report = verify(recorded(net, dtype), make())
    report.raise_if_different()
    assert report.notes == ()
    assert names_of(report) == EXPECTED[name]


class Columns(nnx.Module):
    """A layer that is mapped over the second axis, and then the first."""

    def __init__(self, *, rngs):
        """Make the layer."""
        self.fc = nnx.Linear(SIZE, SIZE, rngs=rngs)

    def __call__(self, x):
        """Map ``(B, T, SIZE)`` to the same."""
        return jax.vmap(jax.vmap(self.fc), in_axes=1, out_axes=1)(x)


@pytest.mark.parametrize("layouts", [None, {"fc": (1, 0, 2)}], ids=["found", "said"])
def test_which_axis_is_mapped_over_follows_from_the_shape_or_is_said(tmp_path, layouts):
    torch.manual_seed(0)
    model = torch.nn.Sequential(OrderedDict(fc=torch.nn.Linear(SIZE, SIZE)))
    # Of equal length nobody can tell them apart.
    x, y = torch.randn(2, BATCH, BATCH + (layouts is None), SIZE)
    path = trained(tmp_path / "run.trace", model, [(x, y)])
    own = port(Columns(rngs=nnx.Rngs(0)), layouts=layouts)
    report = verify(path, own)
    report.raise_if_different()
    assert names_of(report) == ["fc"]


ONE_KEY = "in jax.vmap each row needs a key of its own: jax.random.split(key, 4)"

FAULTS = [
    ("nnx", "relu", "activations", "drop", "more than noise"),
    ("linen", "gelu", "activations", "blocks.0.drop", "more than noise"),
    ("linen", "one key", "activations", "blocks.1.drop", ONE_KEY),
    ("plain", "gelu", "output", "", "more than noise"),
    ("plain", "one key", "activations", "blocks.0.drop", ONE_KEY),
    ("ensemble", "sum", "output", "", "the port has 4 times what torch has"),
]


@pytest.mark.parametrize(
    ("name", "fault", "stage", "module", "words"),
    quick_or_long(FAULTS, {("plain", "one key")}),
)
def test_a_fault_in_what_is_mapped_is_found_in_its_place(
    name, fault, stage, module, words, recorded
):
    net, make = PORTS[name]
    report = verify(recorded(net), make(fault))
    assert report.verdict == "different"
    first = report.first
    assert (first.step, first.stage, first.module) == (0, stage, module)
    assert words in str(report)

"""Masks of dropout are replayed; a port that drops otherwise than torch is found."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from jaxclip import models, optim
from jaxclip.convert import ConversionError
from jaxclip.models import linen as models_linen
from jaxclip.parity import Port, open_trace, record, replayed_mask, verify
from jaxclip.parity._verify._compute._runs import Runs
from jaxclip.parity._verify._random._drawn import _kept
from tests.parity.dropped_nets import (
    NETS,
    bare_port,
    linen_port,
    loss_fn,
    loss_of,
    port,
    recording,
)
from tests.parity.recordings import in_each_dtype, recorded_once

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Record each net in each dtype once."""
    return recorded_once(tmp_path_factory, recording)


PORTS = {
    **{net: lambda net=net: (net, port(net)) for net in NETS},
    "linen": lambda: ("dense", linen_port()),
    "bare": lambda: ("dense", bare_port()),
}
QUICK = {("linen", torch.float32)}


@pytest.mark.parametrize(
    ("name", "dtype"),
    in_each_dtype(PORTS, QUICK),
)
def test_a_port_with_dropout_is_the_same(name, dtype, recorded):
    net, own = PORTS[name]()
    path = recorded(net, dtype)
    assert all(len(step.masks) > 2 for step in open_trace(path))
    report = verify(path, own)
    report.raise_if_different()
    assert report.notes == ()
    assert all(stage.notes == () for stage in report.stages)
    assert len(report.free_run.steps) == 2
    dropouts = {mask.module for mask in open_trace(path)[0].masks}
    compared = {tensor.module for tensor in report.of_stage("activations")[0].tensors}
    assert dropouts <= compared or name == "bare"


@pytest.mark.long
@pytest.mark.parametrize("net", NETS)
def test_there_is_no_false_alarm_over_seeds_and_steps(net, tmp_path):
    own = port(net)
    for seed in range(5):
        path = recording(tmp_path / f"{seed}.trace", net, steps=6, seed=seed)
        verify(path, own).raise_if_different()


@pytest.mark.long
def test_the_noise_of_a_low_precision_is_the_ports_own(tmp_path):
    path = recording(tmp_path / "run.trace", "dense", dtype=torch.bfloat16)
    report = verify(path, port("dense"), free_run=False)
    for stage in ("activations", "output", "loss", "gradients"):
        assert {each.verdict for each in report.of_stage(stage)} == {"same"}


# What a port does otherwise.

FAULTS = [
    ("dense", "another rate", "activations", "drop", True),
    ("dense", "scale missing", "activations", "drop", True),
    ("dense", "before the activation", "activations", "drop", True),
    ("dense", "dropout off", "activations", "drop", False),
    ("dense", "called once", "activations", "last", True),
    ("dense", "called three times", "activations", "last", True),
    ("images", "a draw for each element", "activations", "channels", True),
    ("images", "a draw for each channel", "activations", "pixels", True),
    ("bare", "mask inverted", "output", "", False),
    ("bare", "scale missing", "output", "", True),
    ("bare", "no handle", "output", "", True),
    ("bare", "one for all", "output", "", True),
]


@pytest.mark.parametrize(
    ("net", "fault", "stage", "module"),
    [
        pytest.param(
            *(net, fault, stage, module),
            marks=[pytest.mark.long] if is_long else [],
            id=f"{net}-{fault}",
        )
        for net, fault, stage, module, is_long in FAULTS
    ],
)
def test_a_fault_of_dropout_is_found(net, fault, stage, module, recorded):
    own = bare_port(fault) if net == "bare" else port(net, fault)
    path = recorded("dense" if net == "bare" else net)
    report = verify(path, own, free_run=False)
    first = report.first
    assert first is not None, str(report)
    assert (first.step, first.stage, first.module) == (0, stage, module), str(report)
    notes = " ".join(report.stages[1].notes)
    if fault == "dropout off":
        assert "torch drew what 'drop' keeps 2 times more" in notes
    elif fault == "called once":
        assert "torch drew what 'drop' keeps once more than the port asked" in notes
    elif fault == "called three times":
        assert "torch drew 2 times what 'drop' keeps" in notes
    elif fault == "no handle":
        assert "replayed_mask" in notes
        assert "'last' keeps once" in notes
    elif fault == "one for all":
        assert "torch drew what 'last' keeps once more" in notes
        assert "replayed_mask('drop') drops numbers by a draw of its own" in notes
    else:
        assert notes == ""


def test_a_draw_for_a_whole_channel_is_none_for_each_element(recorded):
    report = verify(recorded("images"), port("images", "a draw for each element"))
    [step, _] = report.of_stage("activations")
    # With torch's mask all values are the same: the shape of the draw alone differs.
    assert [tensor.name for tensor in step.failures] == ["mask of channels"]
    assert step.failures[0].detail == (
        "'channels' draws numbers of shape (8, 6, 6, 8), and torch's 'channels' of "
        "shape (8, 1, 1, 8) in that layout: Dropout2d draws one number for a whole "
        "channel (broadcast_dims=(1, 2))"
    )
    assert {tensor.stage for tensor in report.failures} == {"activations"}


@pytest.mark.long
def test_a_layout_that_is_not_said_is_asked_for(recorded):
    report = verify(recorded("images"), port("images", layouts=None), free_run=False)
    first = report.first
    assert (first.module, first.name) == ("pixels", "mask of pixels")
    assert "of shape (8, 8, 6, 6) in that layout: say in layouts= of Port" in str(first)


@pytest.mark.long
def test_dropout_left_on_is_found(tmp_path):
    path = recording(tmp_path / "run.trace", "dense", train=False)
    report = verify(path, port("dense"), free_run=False)
    first = report.first
    assert (first.stage, first.module) == ("activations", "drop")
    notes = " ".join(report.stages[1].notes)
    assert "'drop' drops numbers by a draw of its own: torch drew never" in notes


@pytest.mark.long
def test_masks_that_were_not_recorded_are_named_once(tmp_path):
    keep = {"params", "batch", "grads", "loss", "params_after"}
    path = recording(tmp_path / "run.trace", "dense", keep=keep)
    report = verify(path, port("dense"), free_run=False)
    assert not report
    assert report.notes == (
        "Random numbers were drawn in 'drop', 'last' that are not recorded: the steps "
        "cannot be computed anew unless the port draws the same. Record the run with "
        "masks and draws in keep=.",
    )


def test_a_mask_that_drops_nothing_need_not_be_asked_for(tmp_path):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Dropout(0.0))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    path = tmp_path / "run.trace"
    with record(path, net, optimizer) as run:
        x, y = torch.randn(3, 4), torch.randn(3, 2)
        with run.step(x=x, y=y):
            torch.nn.functional.mse_loss(net(x), y).backward()
            optimizer.step()
    own = nnx.Sequential(nnx.Linear(4, 2, rngs=nnx.Rngs(0)))
    report = verify(path, Port(own, loss_fn, optim.sgd(0.1)))
    report.raise_if_different()
    assert report.of_stage("activations")[0].notes == ()


# How they are replayed.


def test_masks_are_no_constants_of_what_is_compiled(recorded, monkeypatch):
    traced = []
    original = Runs._loss_and_grads

    def counted(self, *args, wide):
        traced.append(wide)
        return original(self, *args, wide=wide)

    monkeypatch.setattr(Runs, "_loss_and_grads", counted)
    verify(recorded("dense"), port("dense")).raise_if_different()
    assert sorted(traced) == [False, True]


def test_flax_is_as_it_was_afterwards(recorded):
    call = nnx.Dropout.__call__

    def fails(model, batch):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        verify(recorded("dense"), port("dense", loss_fn=fails))
    assert nnx.Dropout.__call__ is call
    keep = jnp.asarray([True, False])
    assert replayed_mask("drop", keep) is keep


def test_a_mask_to_replay_is_boolean():
    with pytest.raises(TypeError, match=r"keep is float32; it must be boolean"):
        replayed_mask("drop", jnp.ones(3))


@pytest.mark.long
@pytest.mark.parametrize("how", ["view", "remat"])
def test_a_view_and_a_checkpoint_of_a_model_are_replayed(how, recorded):
    def viewed(model, batch):
        return loss_fn(nnx.view(model, deterministic=False), batch)

    own = port("dense", loss_fn=viewed) if how == "view" else port("tokens", "remat")
    report = verify(recorded("dense" if how == "view" else "tokens"), own)
    report.raise_if_different()
    assert all(stage.notes == () for stage in report.stages)
    assert {t.module for t in report.of_stage("activations")[0].tensors} >= {"drop"}


@pytest.mark.long
def test_a_mask_by_hand_lies_as_it_is_said(recorded):
    model = NETS["images"][1]("", rngs=nnx.Rngs(0))

    def by_hand(model, batch):
        def drop(x, name, rate, shape):
            keep = jax.random.bernoulli(jax.random.key(0), 1 - rate, shape)
            keep = replayed_mask(name, keep, layout="channels_last")
            return jnp.where(keep, x / (1 - rate), 0)

        x = jnp.tanh(model.conv1(jnp.moveaxis(batch["x"], 1, -1)))
        x = drop(x, "channels", 0.4, (len(x), 1, 1, 8))
        x = jnp.tanh(model.conv2(x))
        x = drop(x, "pixels", 0.2, x.shape)
        return loss_of(model.head(x.mean((1, 2))), batch["y"])

    own = dataclasses.replace(port("images"), model=model, loss_fn=by_hand)
    verify(recorded("images"), own).raise_if_different()


def test_dropouts_that_are_not_there_are_an_error(recorded):
    with pytest.raises(ConversionError) as caught:
        verify(recorded("dense"), port("dense", dropouts={"no": "drop", "drop": "fc1"}))
    assert caught.value.problems == (
        "dropouts has 'no', which is no module of the recorded model: its dropouts are "
        "'drop', 'last'. (Where dropout is a function, name the module that calls it.)",
        "dropouts gives 'drop' the place 'fc1', where the port has no Dropout: it "
        "has 'drop', 'last'.",
    )


@pytest.mark.long
@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_a_layer_with_one_dropout_for_all_of_torchs(kind, tmp_path):
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True)
    net = torch.nn.Sequential(layer)
    layer.self_attn.dropout = 0.0
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    path = tmp_path / "run.trace"
    with record(path, net, optimizer) as run:
        x, y = torch.randn(3, 5, 8), torch.randn(3, 5, 8)
        with run.step(x=x, y=y):
            torch.nn.functional.mse_loss(net(x), y).backward()
            optimizer.step()
    options = {"dropout": 0.3}
    if kind == "nnx":
        own = models.TransformerEncoderLayer(8, 2, 16, rngs=nnx.Rngs(0), **options)
        own.self_attn.dropout.rate = 0.0
        model, loss = nnx.Sequential(own), loss_fn
    else:
        module = models_linen.TransformerEncoderLayer(8, 2, 16, **options)
        shape = jnp.ones((3, 5, 8))
        model = module, module.init(jax.random.key(0), shape, deterministic=True)

        def loss(model, batch):
            rngs = {"dropout": jax.random.key(0)}
            outputs = model(batch["x"], deterministic=False, rngs=rngs)
            return loss_of(outputs, batch["y"])

    changes = {} if kind == "nnx" else {"rename": lambda name: name.removeprefix("0.")}
    report = verify(path, Port(model, loss, optim.sgd(0.1), **changes))
    if kind == "nnx":
        report.raise_if_different()
        compared = {t.module for t in report.of_stage("activations")[0].tensors}
        assert compared >= {"0.dropout", "0.dropout1", "0.dropout2"}
    else:
        # Its attention drops with the same rate, which torch's here does not.
        notes = report.of_stage("activations")[0].notes
        assert [note for note in notes if "self_attn.drop" in note]
        assert not [note for note in notes if "more than" in note]


def test_the_kept_of_a_channel_is_one_number():
    kept = np.ones((2, 3, 4), bool)
    assert _kept(kept, "Dropout").shape == (2, 3, 4)
    assert _kept(kept, "Dropout1d").shape == (2, 3, 1)
    assert _kept(kept[0], "Dropout1d").shape == (3, 1)


class Flattened(torch.nn.Module):
    """Images that are flattened, dropped and classified."""

    def __init__(self):
        """Make the layers."""
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 3, 3, padding=1)
        self.drop, self.fc = torch.nn.Dropout(0.5), torch.nn.Linear(3 * 4 * 5, 2)

    def forward(self, x):
        return self.fc(self.drop(self.conv(x).flatten(1)))


class FlattenedPort(nnx.Module):
    """The port of `Flattened`, which flattens with the channels last."""

    def __init__(self):
        """Make the layers."""
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(1, 3, (3, 3), rngs=rngs)
        self.drop, self.fc = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(60, 2, rngs=rngs)

    def __call__(self, x):
        x = self.conv(x.transpose(0, 2, 3, 1))
        return self.fc(self.drop(x.reshape(len(x), -1)))


def test_a_dropout_of_flattened_images_is_replayed_in_their_order(tmp_path):
    torch.manual_seed(0)
    model = Flattened()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(6, 1, 4, 5)
    with record(tmp_path, model, optimizer) as run, run.step(x=x):
        model(x).square().mean().backward()
        optimizer.step()
    said = Port(
        FlattenedPort(),
        lambda model, batch: jnp.mean(model(batch["x"]) ** 2),
        optim.sgd(0.1),
        flatten={"fc": (3, 4, 5)},
        layouts={"drop": "flattened(3, 4, 5)"},
    )
    report = verify(tmp_path, said)
    assert report, report
    compared = {tensor.name for tensor in report.of_stage("activations")[0].tensors}
    assert compared == {"conv", "drop", "fc"}
    unsaid = verify(tmp_path, dataclasses.replace(said, layouts=None))
    assert (unsaid.first.stage, unsaid.first.name) == ("activations", "drop")

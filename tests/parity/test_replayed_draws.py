"""What functions of torch's drew is replayed; a port that draws otherwise is found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx

from jaxclip import optim
from jaxclip.parity import (
    STAGES,
    Port,
    compare_traces,
    open_trace,
    record,
    record_jax,
    replayed_draw,
    replayed_mask,
    verify,
)
from jaxclip.parity._verify._random._drawn import Drawn
from jaxclip.parity._verify._random._replay import Replay
from tests.parity.drawn_nets import BATCH, LR, NETS, SIZE, port, recording
from tests.parity.recordings import in_each_dtype, recorded_once

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Record each net in each dtype once."""
    return recorded_once(tmp_path_factory, recording)


QUICK = {
    *(("autoencoder", torch.float32), ("diffusion", torch.float64)),
    *(("dropping", torch.float32), ("attentive", torch.float32)),
}


@pytest.mark.parametrize(
    ("net", "dtype"),
    in_each_dtype(NETS, QUICK),
)
def test_a_port_that_draws_is_the_same(net, dtype, recorded):
    path = recorded(net, dtype)
    assert all(step.masks or step.draws for step in open_trace(path))
    report = verify(path, port(net))
    report.raise_if_different()
    assert report.notes == ()
    assert all(stage.notes == () for stage in report.stages)
    assert len(report.free_run.steps) == 2


@pytest.mark.long
@pytest.mark.parametrize("net", NETS)
def test_there_is_no_false_alarm_over_seeds_and_steps(net, tmp_path):
    own = port(net)
    for seed in range(5):
        path = recording(tmp_path / f"{seed}.trace", net, steps=6, seed=seed)
        verify(path, own).raise_if_different()


# What a port does otherwise: where it is found, and what is said of it.

FAULTS = [
    (
        *("autoencoder", "no noise", "activations", "dec"),
        "torch drew random numbers in the model itself (randn_like) that the port did "
        "not ask for. If they matter to the loss, replayed_draw('', ...) gives them",
    ),
    (
        *("autoencoder", "no handle", "activations", "dec"),
        "torch drew random numbers in the model itself (randn_like) that the port did",
    ),
    (
        *("autoencoder", "one for all", "activations", "dec"),
        "replayed_draw('') draws numbers of shape (3,), and what randn_like drew in "
        "the model itself has shape (6, 3), so that the port keeps its own",
    ),
    (
        *("autoencoder", "of another module", "activations", "dec"),
        "replayed_draw('enc') is a draw of the port's own: torch drew numbers never in "
        "'enc', as far as is recorded, and the port asks again",
    ),
    ("autoencoder", "variance for deviation", "activations", "dec", ""),
    ("dropping", "another rate", "activations", "block.fc2", ""),
    (
        *("dropping", "a draw for each element", "activations", "block.fc1"),
        "'channels' draws numbers of shape (6, 5, 1, 4), and torch's the model itself",
    ),
    ("dropping", "dropout off", "output", "", ""),
    (
        *("dropping", "dropouts elsewhere", "output", ""),
        "'drop2' drops numbers by a draw of its own: torch drew 2 times what the model "
        "itself keeps",
    ),
    ("attentive", "another rate", "activations", "attn", ""),
]


@pytest.mark.parametrize(
    ("net", "fault", "stage", "module", "said"),
    [
        pytest.param(
            *row, marks=[pytest.mark.long] if row[0] == "attentive" else [], id=row[1]
        )
        for row in FAULTS
    ],
)
def test_a_port_that_draws_otherwise_is_found(
    net, fault, stage, module, said, recorded
):
    report = verify(recorded(net), port(net, fault), steps=1, free_run=False)
    first = report.first
    assert (first.stage, first.module) == (stage, module)
    notes = [note for each in report.stages for note in each.notes]
    notes += [tensor.detail for tensor in report.failures]
    assert any(said in note for note in notes)
    if said and stage == "activations":
        assert first.hint in notes


def test_one_mask_serves_a_dropout_by_hand_and_one_in_another_place(recorded):
    verify(recorded("dropping"), port("dropping", "by hand")).raise_if_different()
    own = port("dropping", "dropouts elsewhere", dropouts={"block": "drop2"})
    verify(recorded("dropping"), own).raise_if_different()


def test_numbers_that_are_not_recorded_are_named(tmp_path):
    keep = {*STAGES} - {"draws"}
    path = recording(tmp_path / "run.trace", "autoencoder", keep=keep)
    report = verify(path, port("autoencoder"), steps=1, free_run=False)
    (note,) = report.notes
    assert note.startswith("Random numbers were drawn in the model itself that are not")
    assert report.first.module == "dec"
    (asked,) = report.of_stage("activations")[0].notes
    assert report.first.hint == asked
    silent = port("autoencoder", "no noise")
    first = verify(path, silent, steps=1, free_run=False).first
    assert first.hint == "torch drew numbers in the model itself that are not recorded"


def test_draws_are_given_out_in_order_in_the_layout_and_dtype_asked_for(tmp_path):
    path = recording(tmp_path / "run.trace", "diffusion", steps=1)
    (step,) = open_trace(path)
    t, noise = (draw.array for draw in step.draws)
    with Replay(Drawn.of(step)).active():
        first = replayed_draw(None, jnp.zeros(BATCH, jnp.int8))
        second = replayed_draw(
            None, jnp.zeros((SIZE, BATCH), jnp.bfloat16), layout=(1, 0)
        )
        mine = jnp.ones(3)
        assert replayed_draw(None, mine) is mine
    assert (first.dtype, second.dtype) == (jnp.int8, jnp.bfloat16)
    np.testing.assert_array_equal(first, t)
    np.testing.assert_array_equal(second, noise.T.astype(jnp.bfloat16))


def test_a_mask_of_the_loop_is_replayed(tmp_path):
    """Inputs are masked at random, as a masked language model's are."""
    torch.manual_seed(0)
    model = torch.nn.Linear(SIZE, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    with record(tmp_path, model, optimizer) as run:
        for _ in range(2):
            x = torch.randn(BATCH, SIZE)
            with run.step(x=x):
                optimizer.zero_grad()
                masked = x * torch.bernoulli(torch.full_like(x, 0.5))
                model(masked).square().mean().backward()
                optimizer.step()

    def loss_fn(model, batch):
        keep = jax.random.bernoulli(jax.random.key(0), 0.5, batch["x"].shape)
        keep = replayed_mask(None, keep)
        output = model(jnp.where(keep, batch["x"], 0))
        return (output**2).mean(), output

    linear = nnx.Linear(SIZE, 1, rngs=nnx.Rngs(0))
    report = verify(tmp_path, Port(linear, loss_fn, optim.adam(LR)))
    report.raise_if_different()
    assert all(stage.notes == () for stage in report.stages)


def test_booleans_and_unknown_layouts_are_refused(recorded):
    with pytest.raises(TypeError, match=r"drawn is boolean.*use replayed_mask"):
        replayed_draw("", jnp.ones(3, bool))
    (step, _) = open_trace(recorded("autoencoder"))
    with Replay(Drawn.of(step)).active():
        with pytest.raises(ValueError, match=r"layout is 'upside down'; it must be"):
            replayed_draw("", jnp.ones(3), layout="upside down")
        assert replayed_draw("", jnp.ones(3), layout="channels_last").shape == (3,)


class Noisy(linen.Module):
    """A layer with noise, and a dropout."""

    @linen.compact
    def __call__(self, x):
        noise = jax.random.normal(self.make_rng("dropout"), x.shape)
        x = linen.Dense(1)(x + replayed_draw("", noise))
        return linen.Dropout(0.5, deterministic=False)(x)


def test_a_recording_of_jax_draws_the_same_by_its_keys(tmp_path):
    x = jnp.linspace(0, 1, BATCH * SIZE).reshape(BATCH, SIZE)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    module = Noisy()

    def loss_fn(model, batch):
        output = model(batch["x"], rngs={"dropout": batch["key"]})
        return (output**2).mean(), output

    own = Port((module, module.init(keys, x)), loss_fn, optim.adam(LR))
    with record_jax(tmp_path, own) as run:
        for seed in range(2):
            run.step(x=x, key=jax.random.key(seed))
    report = verify(tmp_path, own)
    report.raise_if_different()
    assert all(stage.notes == () for stage in report.stages)


def test_two_recordings_that_drew_other_numbers_are_told_apart(tmp_path):
    made = {}
    for name, net, seed in [
        ("one", "autoencoder", 0),
        ("same", "autoencoder", 0),
        ("loop", "diffusion", 0),
        ("same loop", "diffusion", 0),
    ]:
        made[name] = recording(tmp_path / name, net, seed=seed)
    report = compare_traces(made["one"], made["same"])
    report.raise_if_different()
    batch = report.of_stage("batch")[0]
    assert [tensor.name for tensor in batch.tensors] == [
        "x",
        "draw of the model, output 0",
    ]
    assert compare_traces(made["loop"], made["same loop"]).passed


def test_other_numbers_of_a_model_are_a_difference_and_those_of_a_loop_are_named(
    tmp_path,
):
    def make(path, *, shuffle=0, within=False):
        torch.manual_seed(0)
        model = NETS["autoencoder"].torch()
        optimizer = torch.optim.Adam(model.parameters(), lr=LR)
        shuffling = torch.Generator().manual_seed(shuffle)
        with record(path, model, optimizer) as run:
            x = torch.ones(BATCH, SIZE)
            with run.step(x=x):
                torch.randperm(7, generator=shuffling)
                if within:
                    torch.rand(1)
                NETS["autoencoder"].loss(model, x).backward()
                optimizer.step()
        return path

    one = make(tmp_path / "one")
    report = compare_traces(one, make(tmp_path / "shuffled", shuffle=1))
    report.raise_if_different()
    (left,) = report.of_stage("batch")[0].not_compared
    assert left.name == "draw of (outside the model), output 0"
    report = compare_traces(one, make(tmp_path / "drawn", within=True))
    assert report.first.name == "draw of the model, output 0"

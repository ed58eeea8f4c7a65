"""What is in a transformation is compared and replayed as if it stood outside."""

from collections import OrderedDict
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from jaxclip import convert, optim
from jaxclip.parity import (
    Port,
    compare_traces,
    open_trace,
    record,
    record_jax,
    replayed_draw,
    verify,
)
from jaxclip.parity._verify._random._dropouts import _of_all_layers
from tests.parity.recordings import in_each_dtype, quick_or_long, recorded_once
from tests.parity.scanned_nets import (
    BATCH,
    GROUPS,
    HIDDEN,
    LAYERS,
    LR,
    NOISE,
    PORTS,
    RATE,
    SIZE,
    STEPS,
    ScannedLoop,
    ScannedStack,
    loss_fn,
    port,
    recording,
    trained,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Record each net in each dtype once."""
    return recorded_once(tmp_path_factory, recording)


QUICK = {("linen", torch.float32), ("loop", torch.float64)}


@pytest.mark.parametrize(
    ("name", "dtype"),
    in_each_dtype(PORTS, QUICK),
)
def test_a_port_that_scans_is_the_same(name, dtype, recorded):
    net, make = PORTS[name]
    path = recorded(net, dtype)
    report = verify(path, make())
    report.raise_if_different()
    assert report.notes == ()
    assert len(report.free_run.steps) == 3
    names = [tensor.name for tensor in report.of_stage("activations")[0].tensors]
    if name == "loop":
        calls = [f", call {call}" if call else "" for call in range(STEPS)]
        each = [f"{layer}{call}" for call in calls for layer in ("ih", "hh", "drop")]
        assert names == [*each, "head"]
    elif name == "groups":
        assert names == [
            f"groups.{group}.{name}"
            for group in range(GROUPS)
            for name in (*(f"layers.{layer}" for layer in range(LAYERS)), "mix")
        ] + ["head"]
    elif name != "plain":
        assert names == [
            f"blocks.{layer}.{name}"
            for layer in range(LAYERS)
            for name in ("norm", "up", "drop", "down")
        ] + ["head"]


@pytest.mark.long
@pytest.mark.parametrize("name", PORTS)
def test_there_is_no_false_alarm_over_seeds(name, tmp_path):
    net, make = PORTS[name]
    own = make()
    for seed in range(5):
        path = recording(
            tmp_path / f"{seed}.trace", net, dtype=torch.float32, seed=seed
        )
        verify(path, own).raise_if_different()


FAULTS = [
    ("nnx", "eps", "activations", "blocks.0.norm", "more than noise"),
    ("nnx", "gelu", "activations", "blocks.0.drop", "more than noise"),
    ("nnx remat", "gelu", "activations", "blocks.0.drop", "more than noise"),
    ("nnx", "noise", "activations", "blocks.1.norm", "more than noise"),
    ("nnx", "off", "activations", "blocks.0.drop", "more than the port asked for it"),
    ("nnx", "backwards", "activations", "blocks.0.norm", "more than noise"),
    ("linen", "gelu", "activations", "blocks.0.drop", "more than noise"),
    ("plain", "gelu", "output", "", "more than noise"),
    ("plain", "scale", "output", "", "more than noise"),
    ("plain", "name", "output", "", "torch drew never what 'blocks.*.dropped' keeps"),
    ("groups", "backwards", "activations", "groups.0.layers.0", "more than noise"),
    ("loop", "forwards", "activations", "ih", "more than noise"),
]


@pytest.mark.parametrize(
    ("name", "fault", "stage", "module", "words"),
    quick_or_long(FAULTS, {("nnx", "off")}),
)
def test_a_fault_in_a_scan_is_found_in_its_layer(
    name, fault, stage, module, words, recorded
):
    net, make = PORTS[name]
    report = verify(recorded(net), make(fault))
    assert report.verdict == "different"
    first = report.first
    assert (first.step, first.stage, first.module) == (0, stage, module)
    assert words in str(report)


@pytest.mark.parametrize("name", ["nnx", pytest.param("linen", marks=pytest.mark.long)])
def test_what_a_layer_hands_on_is_compared_once_its_layout_is_said(name, recorded):
    net, make = PORTS[name]
    own = replace(make(), layouts={"blocks.?": "same"})
    report = verify(recorded(net), own)
    report.raise_if_different()
    names = {tensor.name for tensor in report.of_stage("activations")[0].tensors}
    assert {f"blocks.{layer}" for layer in range(LAYERS)} <= names


UNKNOWN = "'drop' is a draw of the port's own: which of torch's calls it is cannot be"


class Branching(nnx.Module):
    """A port that calls its layers in a loop that ends somewhere, and in a branch."""

    def __init__(self, *, rngs):
        """Make the layers."""
        self.ih = nnx.Linear(SIZE, HIDDEN, rngs=rngs)
        self.hh = nnx.Linear(HIDDEN, HIDDEN, rngs=rngs)
        self.drop = nnx.Dropout(RATE, rngs=rngs)
        self.head = nnx.Linear(HIDDEN, SIZE, rngs=rngs)

    def __call__(self, x):
        """Map ``(B, T, SIZE)`` to ``(B, SIZE)``."""
        backwards = jnp.flip(x, 1)

        def step(t, state):
            return self.drop(jnp.tanh(self.ih(backwards[:, t]) + self.hh(state)))

        start = jnp.zeros((len(x), HIDDEN), x.dtype)
        end = jnp.where(x.sum() > 0, len(x), STEPS)
        states = jax.lax.stop_gradient(jax.lax.fori_loop(0, end, step, start))
        return jax.lax.cond(x.sum() > 0, self.head, self.head, states)


def test_what_nobody_can_look_at_is_named(recorded):
    report = verify(recorded("loop"), port(Branching(rngs=nnx.Rngs(0))))
    reasons = {left.name.split(" ")[0]: left.reason for _, left in report.not_compared}
    for layer in ("ih", "drop", "head"):
        assert "as inside of lax.cond" in reasons[layer], layer
    assert UNKNOWN in str(report)


class Branched(nnx.Module):
    """A port that drops in a branch."""

    def __init__(self, *, rngs):
        """Make the layers."""
        self.up = nnx.Linear(SIZE, HIDDEN, rngs=rngs)
        self.drop = nnx.Dropout(RATE, rngs=rngs)

    def __call__(self, x):
        """Map ``(B, SIZE)`` to ``(B, HIDDEN)``."""
        hidden = self.up(x)
        return jax.lax.cond(x.sum() > -99, self.drop, lambda h: 0 * h, hidden)


def test_one_draw_is_replayed_in_a_branch(tmp_path):
    torch.manual_seed(0)
    up, drop = torch.nn.Linear(SIZE, HIDDEN), torch.nn.Dropout(RATE)
    model = torch.nn.Sequential(OrderedDict(up=up, drop=drop))
    batch = torch.randn(BATCH, SIZE), torch.randn(BATCH, HIDDEN)
    path = trained(tmp_path / "run.trace", model, [batch])
    report = verify(path, port(Branched(rngs=nnx.Rngs(0))))
    report.raise_if_different()
    assert report.notes == ()
    assert report.of_stage("output")[0].verdict == "same"


class Compiled(ScannedLoop):
    """A port whose step is compiled by itself, and called once for each step."""

    def __call__(self, x):
        """Map ``(B, T, SIZE)`` to ``(B, SIZE)``."""

        @nnx.jit
        def step(model, state, x):
            state = model.drop(nnx.tanh(model.ih(x) + model.hh(state)))
            drawn = jax.random.normal(model.drop.rngs(), state.shape)
            return state + NOISE * replayed_draw("", drawn).astype(x.dtype)

        state = jnp.zeros((len(x), HIDDEN), x.dtype)
        for inputs in jnp.swapaxes(x, 0, 1)[::-1]:
            state = step(self, state, inputs)
        return self.head(state)


def test_a_compiled_function_is_looked_into(recorded):
    report = verify(recorded("loop"), port(Compiled(rngs=nnx.Rngs(0))))
    assert UNKNOWN in str(report)
    assert UNKNOWN.replace("'drop'", "replayed_draw('')") in str(report)
    # The layers were seen, and the first call has what torch's has.
    [first] = [t for t in report.of_stage("activations")[0].tensors if t.name == "ih"]
    assert first.passed


def test_a_recording_of_jax_has_every_iteration(tmp_path):
    paths = []
    for name in ("one", "other"):
        own = Port(ScannedStack(rngs=nnx.Rngs(0)), loss_fn, optim.adamw(LR))
        paths.append(tmp_path / name)
        with record_jax(paths[-1], own) as run:
            for seed in range(2):
                x = np.random.default_rng(seed).normal(size=(BATCH, SIZE))
                run.step(x=np.float32(x), y=np.float32(x[::-1]))
    calls = [
        (each.module, each.call)
        for each in open_trace(paths[0])[0].activations
        if each.module == "blocks.up"
    ]
    assert calls == [("blocks.up", layer) for layer in range(LAYERS)]
    compare_traces(*paths).raise_if_different()


def test_the_map_pairs_the_modules_of_stacked_layers():
    model = ScannedStack(rngs=nnx.Rngs(0))
    weights = convert.mapping(model, stacked=["blocks"])
    pairs = {pair.torch: pair.flax for pair in weights.modules}
    assert pairs["blocks.2.up"] == "blocks[2].up"
    assert pairs["head"] == "head"
    outputs = {f"blocks.{n}.up": np.full((1, HIDDEN), n) for n in range(LAYERS)}
    there = weights.activations_to_flax(outputs)
    assert [int(there[f"blocks[{n}].up"][0, 0]) for n in range(LAYERS)] == [0, 1, 2, 3]


class Critic(nnx.Module):
    """Two layers, and dropout between them."""

    def __init__(self, *, rngs):
        """Make the layers."""
        self.fc1 = nnx.Linear(SIZE, HIDDEN, rngs=rngs)
        self.drop = nnx.Dropout(RATE, rngs=rngs)
        self.fc2 = nnx.Linear(HIDDEN, 1, rngs=rngs)

    def __call__(self, x):
        """Map ``(B, SIZE)`` to ``(B, 1)``."""
        return self.fc2(self.drop(jnp.tanh(self.fc1(x))))


def penalized(model, batch):
    """Return the loss of a critic with a penalty on its gradient."""
    real = model(batch["real"])

    def score(mixed):
        scores = model(mixed)
        return scores.sum(), scores

    (_, mixed), grads = jax.value_and_grad(score, has_aux=True)(batch["mixed"])
    fake = model(batch["fake"])
    penalty = jnp.mean((jnp.linalg.norm(grads, axis=1) - 1) ** 2)
    return fake.mean() - real.mean() + 10 * penalty, [real, mixed, fake]


def test_what_is_differentiated_is_in_its_place_among_the_calls(tmp_path):
    torch.manual_seed(0)
    layers = {
        "fc1": torch.nn.Linear(SIZE, HIDDEN),
        "tanh": torch.nn.Tanh(),
        "drop": torch.nn.Dropout(RATE),
        "fc2": torch.nn.Linear(HIDDEN, 1),
    }
    model = torch.nn.Sequential(OrderedDict(layers))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    with record(tmp_path / "run.trace", model, optimizer) as run:
        parts = dict(
            zip(("real", "mixed", "fake"), torch.randn(3, BATCH, SIZE), strict=True)
        )
        with run.step(**parts):
            inputs = parts["mixed"].requires_grad_()
            real, mixed = model(parts["real"]), model(inputs)
            [grads] = torch.autograd.grad(mixed.sum(), inputs, create_graph=True)
            fake = model(parts["fake"])
            penalty = ((grads.norm(dim=1) - 1) ** 2).mean()
            (fake.mean() - real.mean() + 10 * penalty).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    own = port(Critic(rngs=nnx.Rngs(0)), penalized)
    report = verify(tmp_path / "run.trace", own)
    report.raise_if_different()
    names = [tensor.name for tensor in report.of_stage("activations")[0].tensors]
    calls = ("", ", call 1", ", call 2")
    layers = ("fc1", "drop", "fc2")
    assert names == [f"{layer}{call}" for call in calls for layer in layers]


def test_what_is_said_of_dropouts_holds_for_every_layer():
    types = dict.fromkeys(("h.0.drop", "h.1.drop", "h.0.mlp", "drop"), "")
    stacks = {"blocks": 2}

    def said(name, place):
        return _of_all_layers({name: place}, types, stacks)

    apart = {"h.0.drop": "h_0.Dropout_0", "h.1.drop": "h_1.Dropout_0"}
    assert said("h.*.drop", "h_*.Dropout_0") == apart
    stacked = {"h.0.drop": "blocks[0].D", "h.1.drop": "blocks[1].D"}
    assert said("h.*.drop", "blocks.D") == stacked
    assert said("h.*.drop", "one") == {"h.0.drop": "one", "h.1.drop": "one"}
    assert said("drop", "d") == {"drop": "d"}
    assert said("no.*.drop", "d") == {"no.*.drop": "d"}  # which is refused later
    with pytest.raises(convert.ConversionError, match="must have as many \\* as the"):
        said("h.*.drop", "h_*.inner_*.D")

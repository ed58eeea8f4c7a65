"""Elements on a kink: named if rounding decides, different if a definition does."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn
from torch.nn import functional as F

from jaxclip import clip_by_global_norm, clip_by_value, optim
from jaxclip.parity import Port, record, verify
from jaxclip.parity._verify._compute._deciding import Decision
from jaxclip.parity._verify._compute._evaluation import Evaluation
from jaxclip.parity._verify._compute._precision import Traced
from jaxclip.parity._verify._kinks._kinks import AS_TORCH, defined_otherwise, flipped
from tests.kinks import KINKS

pytestmark = pytest.mark.usefixtures("quick_compilation")


LR, WIDTH, BATCH = 0.1, 6, 4


class Net(nn.Module):
    """Something between two linear layers."""

    def __init__(self, between):
        """Make the layers."""
        super().__init__()
        self.between = between
        self.fc1, self.fc2 = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, x):
        return self.fc2(self.between(self.fc1(x)))


class NetPort(nnx.Module):
    """The port of `Net`; ``fault`` scales what is between."""

    def __init__(self, between, fault):
        """Make the layers."""
        self.between, self.fault = between, fault
        self.fc1 = nnx.Linear(WIDTH, WIDTH, rngs=nnx.Rngs(0))
        self.fc2 = nnx.Linear(WIDTH, 2, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.fc2(self.between(self.fc1(x)) * self.fault)


def loss_fn(model, batch):
    outputs = model(batch["x"])
    return jnp.mean((outputs - batch["y"]) ** 2), outputs


def report_of(
    path, between, prepare, *, seed=0, fault=1.0, dtype=torch.float32, steps=1
):
    """Record training with weights that ``prepare`` has set, and verify its port."""
    in_torch, in_jax = between
    torch.manual_seed(seed)
    model = Net(in_torch).to(dtype)
    batch = torch.randn(BATCH, WIDTH).to(dtype), torch.randn(BATCH, 2).to(dtype)
    with torch.no_grad():
        prepare(model.fc1, batch[0])
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    with record(path, model, optimizer) as run:
        for _ in range(steps):
            x, y = batch
            with run.step(x=x, y=y):
                optimizer.zero_grad()
                F.mse_loss(model(x), y).backward()
                optimizer.step()
    return verify(path, Port(NetPort(in_jax, fault), loss_fn, optim.sgd(LR)))


def biased(element, target):
    """Move a bias until an element of the layer's output is at a value."""

    def prepare(layer, x):
        row, column = element
        for _ in range(6):
            layer.bias[column] += target - layer(x)[row, column]

    return prepare


def constant(value):
    """Let one of the layer's outputs be exactly a value."""

    def prepare(layer, x):
        layer.weight[2] = 0
        layer.bias[2] = value

    return prepare


def tied(one, other):
    """Let two of the layer's outputs be the greatest, and equal, for one input."""

    def prepare(layer, x):
        layer.bias[one] = layer.bias[other] = 9
        for _ in range(6):
            layer.bias[other] += layer(x)[0, one] - layer(x)[0, other]

    return prepare


RELU = F.relu, jax.nn.relu
HARDTANH = F.hardtanh, jax.nn.hard_tanh
CLIP = lambda x: x.clamp(-1, 1), lambda x: jnp.clip(x, -1, 1)
MAX = (
    lambda x: x.max(1, keepdim=True).values + x,
    lambda x: x.max(1, keepdims=True) + x,
)
ARGMAX = (
    lambda x: x * F.one_hot(x.argmax(1), WIDTH),
    lambda x: x * jax.nn.one_hot(jnp.argmax(x, 1), WIDTH),
)
POOL = (
    lambda x: F.max_pool1d(x[:, None], 2)[:, 0].repeat(1, 2),
    lambda x: jnp.tile(nnx.max_pool(x[..., None], (2,), (2,))[..., 0], (1, 2)),
)
AT_KINK = {
    "relu": (RELU, biased((1, 3), 0.0)),
    "hard_tanh": (HARDTANH, biased((0, 3), 1.0)),
    "clip": (CLIP, biased((0, 3), 1.0)),
    "max": (MAX, tied(2, 4)),
    "argmax": (ARGMAX, tied(2, 4)),
    "pool": (POOL, tied(2, 3)),
}
NAMED = {"pool": "reduce_window_max", "max": "reduce_max"}
SOME = [("relu", 0), ("pool", 3), ("clip", 1)]


@pytest.mark.parametrize(
    ("name", "seed"),
    [
        *SOME,
        *(
            pytest.param(name, seed, marks=pytest.mark.long)
            for name in AT_KINK
            for seed in range(10)
            if (name, seed) not in SOME
        ),
    ],
)
def test_what_rounding_decides_is_the_same_and_named(tmp_path, name, seed):
    report = report_of(tmp_path / "run.trace", *AT_KINK[name], seed=seed)
    report.raise_if_different()
    for step, kink in report.kinks:
        assert step == 0
        assert kink.startswith(NAMED.get(name, name))
        assert re.search(r"the element at \(\d, \d\)", kink)


def crossing(path, **options):
    """Return a report on a run in which one element is 0 in torch, and not in JAX."""
    for seed in range(20):
        report = report_of(path / f"{seed}", *AT_KINK["relu"], seed=seed, **options)
        if report.kinks:
            return report, seed
    raise AssertionError("no element crossed its kink")


def test_the_report_says_where_the_two_are_on_two_sides(tmp_path):
    report, seed = crossing(tmp_path)
    assert report.passed
    text = str(report)
    assert text.startswith("SAME in all that was compared, up to 1 kink: ")
    assert "Kinks that rounding decided otherwise in the two:\n  step 0: relu" in text
    assert "of the output of 'fc1': the element at (1, 3) is 0 in torch and" in text
    assert report.free_run.reason == "in step 0 the two are on two sides of a kink"
    stages = {stage["stage"]: stage for stage in report.to_json()["stages"]}
    assert stages["gradients"]["kinks"] == [report.kinks[0][1]]
    assert stages["activations"]["kinks"] == []
    # It excuses nothing else.
    wrong = report_of(tmp_path / "wrong", *AT_KINK["relu"], seed=seed, fault=1 + 1e-5)
    assert not wrong
    assert wrong.kinks == ()
    assert wrong.first.stage == "activations"


def test_a_kink_that_the_draws_cross_hides_no_bug(tmp_path):
    # The greatest of a row is one of two, by rounding: gradients are 100 % off.
    right = report_of(tmp_path / "right", *AT_KINK["max"])
    right.raise_if_different()
    wrong = report_of(tmp_path / "wrong", *AT_KINK["max"], fault=1 + 1e-5)
    assert not wrong
    assert wrong.of_stage("gradients")[0].failures


@pytest.mark.long
@pytest.mark.parametrize("seed", range(5))
def test_a_recording_in_float64_has_kinks_too(tmp_path, seed):
    report = report_of(
        tmp_path / "run", RELU, biased((1, 3), 0.0), seed=seed, dtype=torch.float64
    )
    report.raise_if_different()


# Where a derivative is a matter of definition.


@pytest.mark.parametrize(
    ("function", "between", "at"),
    [
        ("abs", (torch.abs, jnp.abs), 0.0),
        *(
            pytest.param(*row, marks=pytest.mark.long)
            for row in (
                ("clip", CLIP, 1.0),
                ("clip", CLIP, -1.0),
                ("hard_tanh", HARDTANH, 1.0),
                ("leaky_relu", (F.leaky_relu, jax.nn.leaky_relu), 0.0),
            )
        ),
    ],
)
def test_another_definition_is_different_and_says_what_to_write(
    tmp_path, function, between, at
):
    report = report_of(tmp_path / "run.trace", between, constant(at))
    assert not report
    assert report.kinks == ()
    assert report.first.stage == "gradients"
    hint = report.first.hint
    assert hint.startswith(f"4 elements are exactly on the kink of {function}")
    assert hint.endswith(
        "where the two define the derivative otherwise; write "
        f"{AS_TORCH[function]} for torch's"
    )


def test_a_difference_beside_a_tie_is_not_put_down_to_it(tmp_path):
    """The variance of a row of zeros is on the kink of max(0, variance) in Flax."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 8, padding_idx=0), nn.LayerNorm(8))
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    path = tmp_path / "run.trace"
    weights = torch.randn(4, 8)
    with record(path, model, optimizer) as run, run.step(x=torch.arange(4), y=weights):
        (model(torch.arange(4)) * weights).sum().backward()
        optimizer.step()

    rngs = nnx.Rngs(0)
    layers = nnx.Embed(5, 8, rngs=rngs), nnx.LayerNorm(8, epsilon=1e-5, rngs=rngs)

    def loss(model, batch):
        return (model(batch["x"]) * batch["y"]).sum()

    report = verify(path, Port(nnx.Sequential(*layers), loss, optim.sgd(LR)))
    assert (report.first.stage, report.first.name) == ("gradients", "0.weight")
    assert report.first.hint == (
        "index 0 along axis 0 alone differs, where torch has zeros"
    )


def test_what_to_write_has_torchs_derivative_in_the_table_of_kinks():
    table = {kink.as_torch for kink in KINKS}
    for function in ("abs", "hard_tanh", "reduce_max"):
        assert AS_TORCH[function] in table
    bounds = AS_TORCH["clip"].replace("lo", "-1").replace("hi", "1")
    assert bounds in table
    assert AS_TORCH["leaky_relu"].replace("negative_slope", "0.01") in table


def test_a_tie_that_both_decide_by_their_order_is_the_same(tmp_path):
    def prepare(layer, x):
        layer.bias[2] = layer.bias[4] = 9
        layer.weight[4] = layer.weight[2]

    verdicts = [report_of(tmp_path / "argmax", ARGMAX, prepare)]
    if verdicts[0].kinks:  # A product may round otherwise in one place than in another.
        assert verdicts[0].kinks[0][1].startswith("argmax")
    assert verdicts[0].passed, str(verdicts[0])


# The clip, exactly at its threshold.


@pytest.mark.parametrize(
    "dtype",
    [pytest.param(torch.float32, marks=pytest.mark.long), torch.float64],
    ids=str,
)
def test_a_clip_at_its_threshold_is_the_same(tmp_path, dtype):
    model = nn.Linear(2, 1, bias=False).to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    path = tmp_path / "run.trace"
    x = torch.tensor([[3.0, 4.0]], dtype=dtype)
    with record(path, model, optimizer) as run, run.step(x=x):
        model(x).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        nn.utils.clip_grad_value_(model.parameters(), 5.0)
        optimizer.step()

    def port(clip):
        def loss(model, batch):
            return model(batch["x"]).sum()

        linear = nnx.Linear(2, 1, use_bias=False, rngs=nnx.Rngs(0))
        return Port(linear, loss, optim.sgd(LR), clip=clip)

    verify(path, port(clip_by_global_norm(5.0))).raise_if_different()
    # Without torch's eps, the gradient is left as it is: by 2e-7, and float64 sees it.
    other = verify(path, port(clip_by_global_norm(5.0, eps=0.0)))
    assert other.passed is (dtype == torch.float32)
    if not other.passed:
        assert other.first.stage == "clipped gradients"
    assert not verify(path, port(clip_by_value(3.5))).passed


# The parts.


def test_distances_are_those_of_a_search():
    rng = np.random.default_rng(0)
    value = rng.normal(size=(3, 7))
    among = Decision("top_k", (1,), most=2).distance(value, None)
    for row, distances in zip(value, among, strict=True):
        order = np.argsort(-row)
        assert np.isnan(distances[order[:2]]).all()
        np.testing.assert_allclose(distances[order[2:]], row[order[1]] - row[order[2:]])
    least = Decision("argmin", (0,), -1.0).distance(value, None)
    expected = value.min(0) - value
    np.testing.assert_allclose(
        least, np.where(expected == 0, np.nan, expected), equal_nan=True
    )
    bounds = Decision("max").distance(value, np.asarray(0.5))
    np.testing.assert_allclose(bounds, 0.5 - value)
    assert np.isnan(Decision("max").distance(value, np.asarray(-np.inf))).all()
    np.testing.assert_allclose(Decision("abs").distance(value, None), -value)
    window = (1, 3), (1, 2), ((0, 0), (1, 1))
    found = Decision("reduce_window_max", window=window).distance(value, None)
    expected = np.full(value.shape, np.inf)
    for row in range(3):
        for start in range(-1, 6, 2):
            inside = [c for c in range(start, start + 3) if 0 <= c < 7]
            best = max(inside, key=lambda c: value[row, c])
            for c in inside:
                if c != best:
                    gap = value[row, best] - value[row, c]
                    expected[row, c] = min(expected[row, c], gap)
    np.testing.assert_allclose(
        found, np.where(np.isfinite(expected), expected, np.nan), equal_nan=True
    )


def test_an_element_is_moved_in_the_iteration_in_which_it_decides():
    def function(rows, start):
        def body(carry, row):
            hidden = carry + row
            return 0.5 * jnp.maximum(hidden, 0), hidden

        return jax.lax.scan(body, start, rows)

    rng = np.random.default_rng(0)
    rows, start = rng.normal(size=(4, 3)), rng.normal(size=3)
    with jax.enable_x64(True):
        traced = Traced(function, rows, start)
        plain = Evaluation()
        expected, hidden = traced(rows, start, evaluation=plain)
        [seen] = [s for s in plain.seen if s.decision.primitive == "max"]
        np.testing.assert_array_equal(seen.value, hidden)
        by = 2 - float(hidden[3, 1])  # to 2, in the last iteration
        moves = {seen.number: (jnp.asarray([10, -1]), jnp.asarray([by, 5.0]))}
        last, moved = traced(rows, start, evaluation=Evaluation(moves=moves))
    changed = np.array(rows)
    changed[3, 1] += by
    with jax.enable_x64(True):
        after, others = function(changed, start)
    np.testing.assert_allclose(last, after)
    np.testing.assert_allclose(moved, others)
    assert not np.allclose(last, expected)


def test_a_bound_belongs_to_its_iteration():
    def function(rows):
        def body(low, row):
            return low + 1, jnp.maximum(row, low)

        return jax.lax.scan(body, jnp.zeros(()), rows)[1]

    # As many iterations as elements, so that a bound could be taken along either.
    rows = np.arange(9, dtype=np.float32).reshape(3, 3)
    evaluation = Evaluation()
    Traced(function, rows)(rows, evaluation=evaluation)
    [seen] = [s for s in evaluation.seen if s.decision.primitive == "max"]
    found = seen.decision.distance(np.asarray(seen.value), np.asarray(seen.bound))
    np.testing.assert_array_equal(found, np.arange(3)[:, None] - rows)


def test_what_kinks_explain_is_fitted():
    effects = [np.asarray([1.0, 0, 0]), np.asarray([0.0, 2, 0]), np.zeros(3)]
    assert flipped(np.asarray([1.0, 0.01, 0]), effects) == [0]
    each = [[effect] for effect in effects]
    assert defined_otherwise(np.asarray([0.5, 0, 0]), each) == [0]
    assert defined_otherwise(np.asarray([0.5, 0, 1]), each) == []
    # On either side it is as far from the port's, and torch's is one of them.
    pair = [[np.asarray([0.5, 1e-9]), np.asarray([-0.5, 1e-9])]]
    assert defined_otherwise(np.asarray([0.5, 5e-9]), pair) == [0]
    assert defined_otherwise(np.asarray([1.5, 0.0]), pair) == []
    assert flipped(np.ones(3), []) == []

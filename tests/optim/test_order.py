"""The recipes of `docs/order_of_things.md`, each against the torch loop it mirrors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch.nn.utils import clip_grad_norm_

import jaxclip
from jaxclip import optim

STEPS = 6
MICRO_BATCHES = 3
MAX_NORM = 0.3
NAMES = ["head.bias", "head.weight", "body.weight"]
CLIP = jaxclip.clip_by_global_norm(MAX_NORM)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def start():
    rng = np.random.default_rng(0)
    shapes = {"head.bias": (2,), "head.weight": (2, 4), "body.weight": (4, 3)}
    return {name: rng.normal(size=shapes[name]) for name in NAMES}


@pytest.fixture
def batches():
    """Return inputs and targets, of (steps, micro-batches, examples, features)."""
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(STEPS, MICRO_BATCHES, 5, 3))
    return inputs, rng.normal(size=(STEPS, MICRO_BATCHES, 5, 2))


def loss_of(params, x, y, tanh):
    """Return a loss in either framework."""
    hidden = tanh(x @ params["body.weight"].T)
    output = hidden @ params["head.weight"].T + params["head.bias"]
    return ((output - y) ** 2).mean()


def torch_params(start):
    return {name: torch.nn.Parameter(torch.tensor(v)) for name, v in start.items()}


def train_torch(params, batches, step):
    """Call ``step(loss, zero_grad)`` with a function of each step's micro-batch."""
    inputs, targets = map(torch.tensor, batches)
    for x, y in zip(inputs, targets, strict=True):
        for param in params.values():
            param.grad = None
        step(lambda index, x=x, y=y: loss_of(params, x[index], y[index], torch.tanh))
    return {name: param.detach().numpy() for name, param in params.items()}


def train_jax(start, batches, optimizer, *, micro_batches=1, scaled=False):
    """Train as a user does, an update for each micro-batch."""
    inputs, targets = (jnp.asarray(array[:, :micro_batches]) for array in batches)
    params = {name: jnp.asarray(value) for name, value in start.items()}

    def step(carry, batch):
        params, state = carry

        def loss(params):
            value = loss_of(params, *batch, jnp.tanh)
            return optim.scale_loss(value, state) if scaled else value

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def run(params, *batches):
        flat = [array.reshape(-1, *array.shape[2:]) for array in batches]
        return jax.lax.scan(step, (params, optimizer.init(params)), flat)[0]

    return run(params, inputs, targets)


def assert_same(got, expected):
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-11, err_msg=name)


def assert_differs(got, expected):
    assert any(
        np.abs(got[name] - value).max() > 1e-4 for name, value in expected.items()
    )


OPTIMIZERS = {
    "sgd": (
        functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1),
        optim.sgd(0.1, momentum=0.9, weight_decay=0.1),
    ),
    "adamw": (
        functools.partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
        optim.adamw(0.01, weight_decay=0.1),
    ),
}


@pytest.fixture(params=OPTIMIZERS)
def optimizers(request):
    return OPTIMIZERS[request.param]


def test_clip_then_decay(start, batches, optimizers):
    theirs, ours = optimizers
    params = torch_params(start)
    optimizer = theirs(params.values())

    def step(loss):
        loss(0).backward()
        clip_grad_norm_(params.values(), MAX_NORM)
        optimizer.step()

    expected = train_torch(params, batches, step)
    got, _ = train_jax(start, batches, optim.in_torch_order(ours, clip=CLIP))
    assert_same(got, expected)
    # The order that comes to mind in Optax clips what decays, or the step.
    other, _ = train_jax(start, batches, optax.chain(ours, CLIP))
    assert_differs(other, expected)


def test_decay_then_clip(start, batches):
    params = torch_params(start)
    optimizer = torch.optim.SGD(params.values(), lr=0.1)

    def step(loss):
        loss(0).backward()
        for param in params.values():
            param.grad.add_(param.detach(), alpha=0.1)
        clip_grad_norm_(params.values(), MAX_NORM)
        optimizer.step()

    expected = train_torch(params, batches, step)
    decayed = optim.in_torch_order(optim.sgd(0.1), clip=CLIP, decay_before_clip=0.1)
    assert_same(train_jax(start, batches, decayed)[0], expected)
    other = optim.in_torch_order(optim.sgd(0.1, weight_decay=0.1), clip=CLIP)
    assert_differs(train_jax(start, batches, other)[0], expected)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_accumulate_then_clip(start, batches, optimizers, reduction):
    theirs, ours = optimizers
    params = torch_params(start)
    optimizer = theirs(params.values())
    divisor = MICRO_BATCHES if reduction == "mean" else 1

    def step(loss):
        for index in range(MICRO_BATCHES):
            (loss(index) / divisor).backward()
        clip_grad_norm_(params.values(), MAX_NORM)
        optimizer.step()

    expected = train_torch(params, batches, step)
    ordered = optim.in_torch_order(
        ours, clip=CLIP, accumulate_steps=MICRO_BATCHES, reduction=reduction
    )
    got, _ = train_jax(start, batches, ordered, micro_batches=MICRO_BATCHES)
    assert_same(got, expected)


def test_clip_each_micro_batch(start, batches, optimizers):
    theirs, ours = optimizers
    params = torch_params(start)
    optimizer = theirs(params.values())

    def step(loss):
        totals = [torch.zeros_like(param) for param in params.values()]
        for index in range(MICRO_BATCHES):
            optimizer.zero_grad()
            loss(index).backward()
            clip_grad_norm_(params.values(), MAX_NORM)
            for total, param in zip(totals, params.values(), strict=True):
                total += param.grad
        for total, param in zip(totals, params.values(), strict=True):
            param.grad = total
        optimizer.step()

    expected = train_torch(params, batches, step)
    each = optim.in_torch_order(ours, clip_each=CLIP, accumulate_steps=MICRO_BATCHES)
    got, _ = train_jax(start, batches, each, micro_batches=MICRO_BATCHES)
    assert_same(got, expected)
    sums = optim.in_torch_order(ours, clip=CLIP, accumulate_steps=MICRO_BATCHES)
    other, _ = train_jax(start, batches, sums, micro_batches=MICRO_BATCHES)
    assert_differs(other, expected)


def test_unscale_then_clip(start, batches, optimizers):
    theirs, ours = optimizers
    params = torch_params(start)
    optimizer = theirs(params.values())
    settings = {"init_scale": 2.0**10, "growth_interval": 2}
    scaler = torch.amp.GradScaler("cpu", **settings)
    # The third and the fourth step overflow.
    inputs, targets = batches
    inputs = inputs.copy()
    inputs[2:4] = np.inf
    scales = []

    def step(loss):
        scaler.scale(loss(0)).backward()
        scaler.unscale_(optimizer)
        clip_grad_norm_(params.values(), MAX_NORM)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())

    expected = train_torch(params, (inputs, targets), step)
    ordered = optim.in_torch_order(
        ours, clip=CLIP, scaler=functools.partial(optim.grad_scaler, **settings)
    )
    got, state = train_jax(start, (inputs, targets), ordered, scaled=True)
    assert_same(got, expected)
    assert scales == [2.0**10, 2.0**11, 2.0**10, 2.0**9, 2.0**9, 2.0**10]
    assert state.scale == scales[-1]
    assert state.inner_state.skipped_count == 2


def test_a_bad_micro_batch_is_skipped_with_its_step_and_forgotten(start, batches):
    params = torch_params(start)
    optimizer = torch.optim.SGD(params.values(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    inputs, targets = batches
    inputs = inputs.copy()
    inputs[1, 0] = np.nan

    def step(loss):
        for index in range(MICRO_BATCHES):
            scaler.scale(loss(index)).backward()
        scaler.unscale_(optimizer)
        clip_grad_norm_(params.values(), MAX_NORM)
        scaler.step(optimizer)
        scaler.update()

    expected = train_torch(params, (inputs, targets), step)
    ordered = optim.in_torch_order(
        optim.sgd(0.1),
        clip=CLIP,
        accumulate_steps=MICRO_BATCHES,
        scaler=functools.partial(optim.grad_scaler, init_scale=4.0),
    )
    got, _ = train_jax(
        start, (inputs, targets), ordered, micro_batches=MICRO_BATCHES, scaled=True
    )
    assert_same(got, expected)


def test_frozen_parameters(start, batches, optimizers):
    theirs, ours = optimizers
    params = torch_params(start)
    params["body.weight"].requires_grad_(False)
    optimizer = theirs(params.values())

    def step(loss):
        loss(0).backward()
        clip_grad_norm_(params.values(), MAX_NORM)
        optimizer.step()

    expected = train_torch(params, batches, step)
    frozen = jaxclip.by_path(lambda path: path == "body.weight")
    ordered = optim.in_torch_order(ours, clip=CLIP, frozen=frozen)
    got, _ = train_jax(start, batches, ordered)
    assert_same(got, expected)
    np.testing.assert_array_equal(got["body.weight"], start["body.weight"])
    # Frozen after the clip alone, their gradients count in the norm.
    masked = optax.chain(CLIP, optim.in_torch_order(ours, frozen=frozen))
    assert_differs(train_jax(start, batches, masked)[0], expected)


def test_one_clip_over_several_groups(start, batches):
    params = torch_params(start)
    groups = [
        {"params": [params["head.bias"]], "weight_decay": 0.0},
        {"params": [params["head.weight"], params["body.weight"]], "lr": 0.02},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1)

    def step(loss):
        loss(0).backward()
        clip_grad_norm_(params.values(), MAX_NORM)
        optimizer.step()

    expected = train_torch(params, batches, step)
    labels = jaxclip.by_path(lambda path: "bias" if path.endswith("bias") else "weight")
    ours = {
        "bias": optim.adamw(0.01, weight_decay=0.0),
        "weight": optim.adamw(0.02, weight_decay=0.1),
    }
    ordered = optim.in_torch_order(optax.partition(ours, labels), clip=CLIP)
    assert_same(train_jax(start, batches, ordered)[0], expected)
    # A clip within each group knows only the norm of that group.
    inside = {name: optax.chain(CLIP, group) for name, group in ours.items()}
    other, _ = train_jax(start, batches, optax.partition(inside, labels))
    assert_differs(other, expected)


def test_everything_at_once(start, batches):
    params = torch_params(start)
    params["head.bias"].requires_grad_(False)
    optimizer = torch.optim.AdamW(params.values(), lr=0.01, weight_decay=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)

    def step(loss):
        for index in range(MICRO_BATCHES):
            scaler.scale(loss(index) / MICRO_BATCHES).backward()
        scaler.unscale_(optimizer)
        for param in optimizer.param_groups[0]["params"]:
            if param.grad is not None:
                param.grad.add_(param.detach(), alpha=0.2)
        clip_grad_norm_(params.values(), MAX_NORM)
        scaler.step(optimizer)
        scaler.update()

    expected = train_torch(params, batches, step)
    ordered = optim.in_torch_order(
        optim.adamw(0.01, weight_decay=0.1),
        clip=CLIP,
        accumulate_steps=MICRO_BATCHES,
        reduction="mean",
        scaler=functools.partial(optim.grad_scaler, init_scale=8.0),
        decay_before_clip=0.2,
        frozen={"head.bias": True, "head.weight": False, "body.weight": False},
    )
    got, _ = train_jax(
        start, batches, ordered, micro_batches=MICRO_BATCHES, scaled=True
    )
    assert_same(got, expected)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"optimizer": optim.sgd}, TypeError, r"optimizer=.*an Optax transformation"),
        ({"clip": 1.0}, TypeError, r"clip=.*got float"),
        (
            {"clip_each": CLIP, "scaler": optim.grad_scaler},
            ValueError,
            "still scaled where clip_each",
        ),
        ({"decay_before_clip": -0.1}, ValueError, r"decay_before_clip=-0.1.*≥ 0"),
        ({"accumulate_steps": 0}, ValueError, r"accumulate\(steps=0\)"),
        ({"accumulate_steps": 2, "reduction": "max"}, ValueError, "'sum', 'mean'"),
    ],
)
def test_errors(arguments, error, words):
    with pytest.raises(error, match=words):
        optim.in_torch_order(**{"optimizer": optim.sgd(0.1), **arguments})


def test_frozen_has_to_fit_the_parameters(start):
    optimizer = optim.in_torch_order(optim.sgd(0.1), frozen={"head.bias": True})
    with pytest.raises(ValueError, match="frozen"):
        optimizer.init(start)

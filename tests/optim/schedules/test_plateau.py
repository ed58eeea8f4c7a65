"""ReduceLROnPlateau as a transformation: torch's learning rates, value by value."""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxclip.optim.schedules import PlateauState, reduce_lr_on_plateau
from tests.optim.schedules.harness import make_optimizer


def torch_lrs(values, lr=0.1, **options):
    """Return the learning rate after each value, the first one before them."""
    optimizer = make_optimizer(lr)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **options)
    lrs = [lr]
    for value in values:
        scheduler.step(value)
        lrs.append(optimizer.param_groups[0]["lr"])
    return np.array(lrs)


def jax_lrs(values, lr=0.1, **options):
    scheduler = reduce_lr_on_plateau(lr, **options)
    state = scheduler.init(())

    def step(state, value):
        _, state = scheduler.update((), state, value=value)
        return state, state.lr

    _, lrs = jax.lax.scan(step, state, jnp.asarray(values))
    return np.array([state.lr, *lrs])


def metric(seed, steps=60, sign=1.0):
    """Return a loss that falls, wavers and stays."""
    rng = np.random.default_rng(seed)
    loss = 2.0 * 0.8 ** np.arange(steps) + 0.05 * rng.random(steps) + 0.1
    return sign * np.round(loss, 2)  # which makes ties


OPTIONS = [
    {},
    {"patience": 0},
    {"factor": 0.5, "patience": 2},
    {"factor": 0.5, "patience": 2, "cooldown": 3},
    {"factor": 0.3, "patience": 1, "min_lr": 2e-3},
    {"factor": 0.9, "patience": 0, "eps": 5e-3},
    {"factor": 0.0, "patience": 2, "min_lr": 0.01},
    {"patience": 1, "threshold": 0.1, "threshold_mode": "rel"},
    {"patience": 1, "threshold": 0.02, "threshold_mode": "abs"},
    {"mode": "max", "patience": 2},
    {"mode": "max", "patience": 2, "threshold": 0.05, "threshold_mode": "abs"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_has_torchs_learning_rates(options):
    values = metric(0, sign=-1.0 if options.get("mode") == "max" else 1.0)
    expected = torch_lrs(values, **options)
    assert len(set(expected)) > 1
    with jax.enable_x64(True):
        np.testing.assert_allclose(
            jax_lrs(values, **options), expected, rtol=1e-14, atol=0
        )


def test_in_float32_too():
    # Sixteenths, whose comparisons float32 makes as float64 does.
    values = np.round(metric(1) * 16) / 16
    options = {"factor": 0.7, "patience": 1, "cooldown": 1}
    lrs = jax_lrs(values.astype(np.float32), **options)
    assert lrs.dtype == np.float32
    np.testing.assert_allclose(lrs, torch_lrs(values, **options), rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_counts_as_in_torch(value):
    values = np.array([1.0, value, 0.9, value, value, 0.8, 0.7, 0.7, 0.7])
    with jax.enable_x64(True):
        np.testing.assert_array_equal(
            jax_lrs(values, patience=1), torch_lrs(values, patience=1)
        )


plateaus = st.fixed_dictionaries(
    {
        "mode": st.sampled_from(["min", "max"]),
        "factor": st.floats(0.01, 0.99),
        "patience": st.integers(0, 6),
        "threshold": st.sampled_from([0.0, 1e-4, 0.01, 0.3]),
        "threshold_mode": st.sampled_from(["rel", "abs"]),
        "cooldown": st.integers(0, 4),
        "min_lr": st.sampled_from([0.0, 1e-3, 0.05, 0.2]),
        "eps": st.sampled_from([0.0, 1e-8, 1e-2]),
    }
)


def check_plateau(options, seed):
    values = metric(seed, sign=-1.0 if options["mode"] == "max" else 1.0)
    with jax.enable_x64(True):
        np.testing.assert_allclose(
            jax_lrs(values, **options), torch_lrs(values, **options), rtol=1e-13, atol=0
        )


@given(plateaus, st.integers(0, 999))
@settings(max_examples=12)
def test_whatever_its_options(options, seed):
    check_plateau(options, seed)


@pytest.mark.long
@given(plateaus, st.integers(0, 999))
@settings(max_examples=300)
def test_whatever_its_options_at_length(options, seed):
    check_plateau(options, seed)


# ---- in a chain ----------------------------------------------------------------------


def steps(optimizer, scheduler, values, **scheduled):
    """Train x on x², a value at each update; return x along the way."""

    def step(carry, value):
        x, state, scale = carry
        updates, state = optimizer.update(2 * x, state, x)
        updates, scale = scheduler.update(updates, scale, value=value)
        x = optax.apply_updates(x, updates)
        return (x, state, scale), x

    x = jnp.array([1.0, -3.0])
    carry = (x, optimizer.init(x), scheduler.init(x))
    return jax.lax.scan(step, carry, jnp.asarray(values))[1]


@pytest.mark.parametrize(
    ("torchs", "optimizer"),
    [
        (
            functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True),
            functools.partial(optax.sgd, momentum=0.9, nesterov=True),
        ),
        (
            functools.partial(torch.optim.AdamW, weight_decay=0.1),
            functools.partial(optax.adamw, weight_decay=0.1),
        ),
    ],
    ids=["SGD", "AdamW"],
)
def test_a_value_at_each_update_counts_from_the_next_on(torchs, optimizer):
    values = metric(2)
    x = torch.nn.Parameter(torch.tensor([1.0, -3.0], dtype=torch.float64))
    theirs = torchs([x], lr=0.05)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(theirs, patience=1)
    expected = []
    for value in values:
        x.grad = 2 * x.detach()
        theirs.step()
        scheduler.step(value)
        expected.append(x.detach().clone().numpy())
    assert theirs.param_groups[0]["lr"] < 0.05 / 50

    with jax.enable_x64(True):
        plateau = reduce_lr_on_plateau(0.05, patience=1)
        got = steps(optimizer(0.05), plateau, values)
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_it_stands_in_a_chain():
    optimizer = optax.chain(optax.sgd(0.1), reduce_lr_on_plateau(0.1, patience=0))
    state = optimizer.init(jnp.zeros(1))
    update = jax.jit(optimizer.update)
    sizes = []
    for value in [1.0, 1.0, 1.0]:
        updates, state = update(jnp.ones(1), state, value=value)
        sizes.append(-float(updates[0]))
    np.testing.assert_allclose(sizes, [0.1, 0.1, 0.01], rtol=1e-6)


def test_a_value_for_each_epoch_can_come_with_every_update():
    epochs = metric(3, steps=20)
    plateau = reduce_lr_on_plateau(0.1, patience=1, steps_per_epoch=3)
    # Only the last of three counts.
    values = np.stack([epochs - 5.0, epochs + 5.0, epochs], axis=1).ravel()
    x = steps(optax.sgd(0.1), plateau, values.astype(np.float32))
    before = np.concatenate([[[1.0, -3.0]], x[:-1]])
    lrs = ((before - x) / (2 * before))[:, 0]
    expected = np.repeat(torch_lrs(epochs, patience=1)[:-1], 3)
    np.testing.assert_allclose(lrs, expected, rtol=1e-3)


def test_without_a_value_nothing_is_learned_and_all_is_scaled():
    plateau = reduce_lr_on_plateau(0.1, patience=0)
    state = plateau.init(())
    for value in (1.0, 1.0):
        _, state = plateau.update((), state, value=value)
    updates, after = plateau.update({"a": jnp.ones(2), "b": None}, state)
    np.testing.assert_allclose(updates["a"], 0.1, rtol=1e-6)
    assert updates["b"] is None
    assert after.count == 1
    assert jax.tree.all(
        jax.tree.map(jnp.array_equal, after._replace(count=state.count), state)
    )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_a_leaf_keeps_its_dtype_and_is_rounded_once(dtype):
    plateau = reduce_lr_on_plateau(0.1, factor=0.3, patience=0)
    state = plateau.init(())
    for value in (1.0, 1.0):
        _, state = plateau.update((), state, value=value)
    leaf = jnp.linspace(0.5, 1.5, 64, dtype=dtype)
    updates, _ = plateau.update([leaf], state)
    assert updates[0].dtype == dtype
    expected = (leaf.astype(jnp.float32) * (state.lr / 0.1)).astype(dtype)
    np.testing.assert_array_equal(updates[0], expected)


def test_before_a_reduction_updates_are_as_they_were():
    plateau = reduce_lr_on_plateau(0.3)
    leaf = jnp.linspace(-1.0, 1.0, 99)
    updates, _ = plateau.update(leaf, plateau.init(leaf), value=1.0)
    np.testing.assert_array_equal(updates, leaf)


def test_its_state_keeps_its_types():
    plateau = reduce_lr_on_plateau(0.1)
    state = plateau.init(())
    assert isinstance(state, PlateauState)
    after = jax.eval_shape(lambda: plateau.update((), state, value=1.0)[1])
    assert jax.tree.map(lambda leaf: (leaf.dtype, leaf.weak_type), after) == (
        jax.tree.map(lambda leaf: (leaf.dtype, leaf.weak_type), state)
    )


# ---- for which optimizers ------------------------------------------------------------

NOT_PROPORTIONAL = {"ASGD", "Adafactor", "LBFGS", "Rprop"}


@pytest.mark.parametrize(
    "name",
    sorted(
        name
        for name in torch.optim.__all__
        if name != "Optimizer" and isinstance(getattr(torch.optim, name), type)
    ),
)
def test_torchs_updates_are_proportional_to_the_learning_rate_but_for_four(name):
    """Half the learning rate, half the step, from one state on."""
    rng = np.random.default_rng(0)
    start, weights = (torch.tensor(rng.standard_normal((3, 2))) for _ in range(2))

    def make(start, lr):
        return getattr(torch.optim, name)([torch.nn.Parameter(start.clone())], lr=lr)

    def step(optimizer):
        x = optimizer.param_groups[0]["params"][0]
        before = x.detach().clone()

        def closure():
            grad = weights + x.detach() ** 3
            x.grad = grad.to_sparse() if name == "SparseAdam" else grad
            return (weights * x.detach() + x.detach() ** 4 / 4).sum()

        closure()
        optimizer.step(closure)
        return (x.detach() - before).numpy()

    optimizer = make(start, 1.0)
    if name == "LBFGS":
        optimizer.param_groups[0]["max_iter"] = 2  # not to be done at once
    for _ in range(3):
        step(optimizer)
    halved = make(optimizer.param_groups[0]["params"][0].detach(), 0.5)
    halved.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    halved.param_groups[0]["lr"] = 0.5
    whole, half = step(optimizer), step(halved)
    # Muon rounds to bfloat16, alike in both.
    assert np.abs(whole).max() > 1e-4
    proportional = np.allclose(half, 0.5 * whole, rtol=1e-9, atol=0)
    assert proportional == (name not in NOT_PROPORTIONAL)


# ---- errors --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"factor": 1.0}, ValueError, r"\(factor=1\): expected a number below 1"),
        ({"base_lr": 0.0}, ValueError, r"\(base_lr=0\): expected a number above 0, as"),
        ({"mode": "less"}, ValueError, r"\(mode='less'\): expected one of 'min', 'max"),
        (
            {"threshold_mode": "ratio"},
            ValueError,
            r"\(threshold_mode='ratio'\): expected one of 'rel', 'abs'",
        ),
        ({"patience": -1}, ValueError, r"\(patience=-1\): expected a whole number of"),
        ({"cooldown": 0.5}, ValueError, r"\(cooldown=0.5\): expected a whole number"),
        ({"min_lr": [0.1]}, TypeError, r"\(min_lr=\[0.1\]\): expected a real number"),
    ],
)
def test_what_it_does_not_take(options, error, message):
    with pytest.raises(error, match=f"^reduce_lr_on_plateau{message}"):
        reduce_lr_on_plateau(**({"base_lr": 0.1} | options))


@pytest.mark.parametrize(
    "options", [{"factor": 1.0}, {"mode": "less"}, {"threshold_mode": "ratio"}]
)
def test_torch_does_not_take_it_either(options):
    with pytest.raises(ValueError, match=r"Factor should be|is unknown"):
        torch_lrs([], **options)


def test_a_value_is_a_scalar():
    plateau = reduce_lr_on_plateau(0.1)
    message = r"update got a value of shape \(2,\), expected a scalar"
    with pytest.raises(TypeError, match=message):
        plateau.update((), plateau.init(()), value=jnp.ones(2))


# ---- Optax's -------------------------------------------------------------------------


def test_optaxs_reacts_two_updates_earlier():
    values = [1.0] * 9
    ours, theirs = (
        steps(optax.sgd(0.1), scheduler, values)
        for scheduler in (
            reduce_lr_on_plateau(0.1, patience=3),
            optax.contrib.reduce_on_plateau(patience=3),
        )
    )

    def first_slow(x):
        before = np.concatenate([[1.0], x[:-1, 0]])
        return int(np.argmax((before - x[:, 0]) / (2 * before) < 0.05))

    assert first_slow(theirs) == 3
    assert first_slow(ours) == 5
    assert np.argmax(torch_lrs(values, patience=3) < 0.05) == 5

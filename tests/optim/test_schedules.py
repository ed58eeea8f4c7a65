"""Schedules of hyperparameters step as torch does with its groups changed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from jaxclip import optim
from tests.optim.against_torch import (
    Pair,
    apart,
    gradients,
    parameters,
    run_ours,
    run_ours_with_absent,
    run_torch,
)
from tests.optim.pairs import rows

STEPS = 20


def swing(start):
    """Return a schedule that rises from ``start`` by a third, and falls again."""
    # A count as a float: JAX divides int32 into float32.
    return lambda count: start * (1 + (19 - 1.0 * count) * count / 256)


def schedules(start):
    """Return a schedule for each number of the options, as they are laid out."""
    return jax.tree.map(swing, start)


PAIRS = [
    Pair(
        torch.optim.SGD,
        optim.sgd,
        {"lr": 0.1, "momentum": 0.5, "dampening": 0.3, "weight_decay": 0.1},
    ),
    Pair(
        torch.optim.Adam,
        optim.adam,
        {"lr": 0.01, "betas": (0.5, 0.6), "eps": 1e-3, "weight_decay": 0.1},
    ),
    Pair(
        torch.optim.AdamW,
        optim.adamw,
        {"lr": 0.01, "betas": (0.5, 0.6), "eps": 1e-3, "weight_decay": 0.1},
    ),
    Pair(
        torch.optim.Adamax,
        optim.adamax,
        {"lr": 0.01, "betas": (0.5, 0.6), "eps": 1e-3, "weight_decay": 0.1},
    ),
    Pair(
        torch.optim.NAdam,
        optim.nadam,
        {
            "lr": 0.01,
            "betas": (0.5, 0.6),
            "eps": 1e-3,
            "weight_decay": 0.1,
            "momentum_decay": 0.1,
        },
    ),
    Pair(
        torch.optim.RAdam,
        optim.radam,
        {"lr": 0.01, "betas": (0.5, 0.7), "eps": 1e-3, "weight_decay": 0.1},
    ),
    Pair(
        torch.optim.RMSprop,
        optim.rmsprop,
        {
            "lr": 0.01,
            "alpha": 0.7,
            "eps": 1e-3,
            "weight_decay": 0.1,
            "momentum": 0.5,
        },
    ),
    Pair(
        torch.optim.Adagrad,
        optim.adagrad,
        {"lr": 0.01, "lr_decay": 0.1, "eps": 1e-3, "weight_decay": 0.1},
    ),
    Pair(
        torch.optim.Adadelta,
        optim.adadelta,
        {"lr": 0.5, "rho": 0.7, "eps": 1e-3, "weight_decay": 0.1},
    ),
    Pair(
        torch.optim.ASGD,
        optim.asgd,
        {"lr": 0.1, "lambd": 0.1, "alpha": 0.5, "t0": 6.0, "weight_decay": 0.1},
    ),
    Pair(
        torch.optim.Rprop,
        optim.rprop,
        {"lr": 0.01, "etas": (0.5, 1.2), "step_sizes": (1e-6, 0.1)},
    ),
]


def both(pair, run, grads, **options):
    """Run ours with schedules, and torch with its group changed before each step."""
    params = parameters()
    ours = Pair(pair.torch, pair.ours, schedules(pair.options))

    def change(group, step):
        group.update(jax.tree.map(lambda start: swing(start)(step), pair.options))

    expected = run_torch(pair, params, grads, before=change, **options)
    with jax.enable_x64(True):
        history = run(ours, params, grads, **options)
    return apart(history, expected)


@pytest.mark.parametrize(
    "pair", rows(PAIRS, lambda pair: pair.ours in (optim.sgd, optim.nadam, optim.asgd))
)
def test_schedules_of_all_hyperparameters_step_as_torchs_groups(pair):
    for name, distance in both(pair, run_ours, gradients(steps=STEPS)).items():
        assert distance.max() < 1e-12, name


@pytest.mark.parametrize("pair", rows(PAIRS[-2:], lambda pair: pair == PAIRS[-1]))
def test_a_parameter_starts_with_the_learning_rate_of_its_first_step(pair):
    def absent(name, step):
        return name == "bias" and step < 3

    grads = gradients(steps=5)
    for name, distance in both(
        pair, run_ours_with_absent, grads, absent=absent
    ).items():
        assert distance.max() < 1e-12, name


def test_a_schedule_is_given_the_updates_so_far_as_an_int32_array():
    seen = []

    def schedule(count):
        seen.append((int(count), count.dtype))
        return 0.1

    optimizer = optim.sgd(schedule)
    state = optimizer.init(jnp.ones(2))
    seen.clear()
    for _ in range(2):
        _, state = optimizer.update(jnp.ones(2), state)
    assert seen == [(0, jnp.int32), (1, jnp.int32)]


def test_a_schedule_that_returns_numbers_keeps_the_state_and_compiles_once():
    optimizer = optim.sgd(0.1, momentum=lambda count: 0.0 if count < 1 else 0.5)
    state = optimizer.init(jnp.ones(2))
    assert state.momentum_buffer is not None
    _, state = optimizer.update(jnp.ones(2), state)
    with jax.no_tracing():
        updates, state = optimizer.update(jnp.ones(2), state)
    np.testing.assert_allclose(updates, -0.15 * np.ones(2), rtol=1e-6)


def test_an_optax_schedule_is_taken():
    optimizer = optim.sgd(optax.linear_schedule(0.1, 0.3, 2))
    state = optimizer.init(jnp.ones(2))
    got = []
    for _ in range(3):
        updates, state = optimizer.update(jnp.ones(2), state)
        got.append(updates[0])
    np.testing.assert_allclose(got, [-0.1, -0.2, -0.3], rtol=1e-6)

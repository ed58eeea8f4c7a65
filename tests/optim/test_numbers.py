"""What is small keeps its digits in float32, and what is known its sign."""

from decimal import Decimal, localcontext

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from jaxclip import optim
from jaxclip.optim._numbers import bias_correction
from jaxclip.optim._radam import sma_length
from tests.optim.against_torch import (
    Pair,
    error,
    gradients,
    parameters,
    run_ours,
    run_torch,
)

BETAS = [0.0, 0.5, 0.7, 0.9, 0.99, 0.999, 0.9999, 0.999999]
STEPS = [1, 2, 3, 4, 5, 6, 7, 10, 50, 100, 1000, 2000, 10_000, 1_000_000, 2**25]


def exact(beta):
    """Return ``1 - beta^t``, and RAdam's ``rho_t``, at each step, with all digits."""
    with localcontext() as context:
        context.prec = 60
        beta = Decimal(beta)
        rest = [1 - beta**step for step in STEPS]
        most = 2 / (1 - beta) - 1
        lengths = [most - 2 * step * beta**step / (1 - beta**step) for step in STEPS]
        return np.array(rest, float), np.array(lengths, float)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("is_array", [False, True], ids=["number", "array"])
def test_the_corrections_are_right_to_rounding_in_float32(beta, is_array):
    steps = jnp.asarray(STEPS, jnp.float32)
    # An array is what it was rounded to.
    given = jnp.float32(beta) if is_array else beta
    rest, lengths = exact(float(given))
    # One ulp, or what XLA's expm1 is off by.
    rtol = 3e-7 if is_array else 2.0**-23
    np.testing.assert_allclose(bias_correction(given, steps), rest, rtol=rtol)
    got, most = sma_length(given, steps)
    np.testing.assert_allclose(got, lengths, rtol=3e-7)
    np.testing.assert_allclose(most, lengths.max(), rtol=3e-7)
    np.testing.assert_array_equal(got > 5, lengths > 5)


@pytest.mark.parametrize(
    "beta",
    [0.999, *[pytest.param(b, marks=pytest.mark.long) for b in (0.7, 0.9, 0.9999)]],
)
def test_radam_switches_at_torchs_step_in_float32(beta):
    pair = Pair(torch.optim.RAdam, optim.radam, {"betas": (0.9, beta), "lr": 0.1})
    params, grads = parameters(), gradients(steps=12)
    truth = run_torch(pair, params, grads)
    assert error(run_ours(pair, params, grads, jnp.float32), truth) < 1e-6


def test_updates_of_adam_keep_the_digits_that_optax_loses():
    rng = np.random.default_rng(0)
    grads = rng.normal(size=(20, 2000)).astype(np.float32)

    def updates(optimizer, dtype):
        def step(state, grad):
            update, state = optimizer.update(grad, state, jnp.zeros_like(grad))
            return state, update

        given = jnp.asarray(grads, dtype)
        return jax.lax.scan(step, optimizer.init(given[0]), given)[1]

    def torchs(dtype):
        param = torch.nn.Parameter(torch.zeros(2000, dtype=dtype))
        optimizer = torch.optim.Adam([param])
        for grad in grads:
            param.data.zero_()
            param.grad = torch.tensor(grad, dtype=dtype)
            optimizer.step()
            yield param.detach().numpy().copy()

    truth = np.stack(list(torchs(torch.float64)))

    def errors(made):
        """Return how far off each step's update is, of its norm."""
        return np.linalg.norm(made - truth, axis=1) / np.linalg.norm(truth, axis=1)

    theirs = errors(np.stack(list(torchs(torch.float32))))
    ours = errors(updates(optim.adam(), jnp.float32))
    optaxs = errors(updates(optax.adam(1e-3), jnp.float32))
    assert (ours <= 2 * theirs).all()
    assert optaxs[0] > 50 * theirs[0]  # what Differs from says
    with jax.enable_x64(True):
        assert errors(updates(optim.adam(), jnp.float64)).max() < 1e-14


def test_nadam_keeps_the_digits_of_products_that_are_almost_1():
    options = {"betas": (0.9999, 0.999), "momentum_decay": 1e3, "lr": 0.1}
    pair = Pair(torch.optim.NAdam, optim.nadam, options)
    params, grads = parameters(), gradients(steps=3)
    truth = run_torch(pair, params, grads)
    theirs = error(run_torch(pair, params, grads, torch.float32), truth)
    assert error(run_ours(pair, params, grads, jnp.float32), truth) < theirs / 5


def test_rprop_knows_that_small_gradients_agree():
    """Their product is 0 in float32, of which torch takes the sign."""
    grads = jnp.array([1e-30, -1e-30])
    optimizer = optim.rprop(0.1)
    state = optimizer.init(grads)
    for signs, size, step in (
        (jnp.array([1.0, 1.0]), [0.1, 0.1], [-0.1, 0.1]),
        (jnp.array([1.0, -1.0]), [0.12, 0.05], [-0.12, 0.0]),
        (jnp.array([1.0, -1.0]), [0.144, 0.05], [-0.144, -0.05]),
    ):
        updates, state = optimizer.update(grads * signs, state)
        np.testing.assert_allclose(state.step_size, size, rtol=1e-6)
        np.testing.assert_allclose(updates, step, rtol=1e-6)


def test_rmsprop_makes_no_nan_of_a_variance_that_rounding_made_negative():
    pair = Pair(torch.optim.RMSprop, optim.rmsprop, {"alpha": 0.9, "centered": True})
    params = {"w": np.ones(64)}
    grads = {"w": np.tile(np.linspace(0.1, 2.0, 64), (400, 1))}
    theirs = run_torch(pair, params, grads, torch.float32)
    assert np.isnan(theirs["w"][-1]).any()
    ours = run_ours(pair, params, grads, jnp.float32)
    assert np.isfinite(ours["w"]).all()


def test_a_step_before_the_first_gradient_divides_by_nothing():
    """The clock of a parameter that never had a gradient is at 0."""
    optimizer = optim.nadam(0.1)
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    with jax.debug_nans(True), jax.debug_infs(True):
        grads = {"a": jnp.ones(2), "b": None}
        updates, state = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_array_equal(state.step, [1, 0])
    np.testing.assert_array_equal(state.mu_product[1], 1.0)
    np.testing.assert_array_equal(updates["b"], 0.0)

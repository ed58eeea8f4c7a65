"""Micro-batches are added up with the digits that they have."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxclip import optim

IDENTITY = optax.identity()


def updates_of(optimizer, grads, params):
    """Return each micro-batch's updates, from one scan."""

    def step(state, grad):
        updates, state = optimizer.update(grad, state, params)
        return state, updates

    return jax.lax.scan(step, optimizer.init(params), grads)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_sums_are_in_at_least_float32(dtype):
    # In bfloat16 and float16 a sum of 4096 ones stops growing on its way.
    grads = jnp.ones((4096, 2), dtype)
    optimizer = optim.accumulate(IDENTITY, 4096)
    state, updates = updates_of(optimizer, grads, jnp.zeros(2, dtype))
    assert updates.dtype == dtype
    np.testing.assert_array_equal(updates[-1].astype(np.float32), [4096, 4096])
    np.testing.assert_array_equal(updates[:-1].astype(np.float32), 0)
    assert state.mini_step == 0


def test_sums_of_float64_are_in_float64():
    with jax.enable_x64(True):
        grads = jnp.array([[1.0], [1e-12], [0.0]])
        _, updates = updates_of(optim.accumulate(IDENTITY, 3), grads, jnp.zeros(1))
        assert updates[-1] == 1.0 + 1e-12
        multi = optax.MultiSteps(IDENTITY, 3, use_grad_mean=False)
        _, other = updates_of(multi, grads, jnp.zeros(1))
        assert other[-1] == 1.0  # what Differs from says


def test_a_nan_is_forgotten_with_its_step():
    grads = jnp.array([[jnp.nan], [1.0], [1.0], [1.0]])
    _, updates = updates_of(optim.accumulate(IDENTITY, 2), grads, jnp.zeros(1))
    np.testing.assert_array_equal(updates[:, 0], [0, jnp.nan, 0, 2])
    multi = optax.MultiSteps(IDENTITY, 2, use_grad_mean=False)
    _, other = updates_of(multi, grads, jnp.zeros(1))
    assert jnp.isnan(other[-1])  # what Differs from says


def test_the_optimizer_steps_once_for_all():
    schedule = optax.piecewise_constant_schedule(1.0, {1: 0.1})
    optimizer = optim.accumulate(optim.sgd(schedule, momentum=0.5), 2, reduction="mean")
    grads = jnp.array([[1.0], [3.0], [5.0], [7.0]])
    state, updates = updates_of(optimizer, grads, jnp.zeros(1))
    np.testing.assert_allclose(updates[:, 0], [0, -2, 0, -0.7], rtol=1e-6)
    assert state.inner_state.count == 2


def test_complex_and_absent_leaves():
    params = {"a": jnp.zeros(1, jnp.complex64), "b": None}
    grads = {"a": jnp.full((2, 1), 1 + 2j, jnp.complex64), "b": None}
    _, updates = updates_of(optim.accumulate(IDENTITY, 2), grads, params)
    assert updates["a"][-1] == 2 + 4j


@pytest.mark.parametrize("steps", [0, -1, 1.5])
def test_steps_are_whole(steps):
    with pytest.raises(ValueError, match="a whole number of steps, 1 or more"):
        optim.accumulate(IDENTITY, steps)

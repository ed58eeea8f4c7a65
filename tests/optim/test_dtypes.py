"""Complex parameters step as torch's, narrow ones as float32 ones do, rounded once."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from jaxclip import optim
from tests.optim.against_torch import (
    apart,
    gradients,
    parameters,
    run_ours,
    run_torch,
)
from tests.optim.pairs import LAST, rows

STEPS = 20


def one(optimizer, pairs=LAST):
    """Return a row for each, of which one is quick: what is tested is common to all."""
    return rows(pairs, lambda pair: pair.ours is optimizer)


# Adafactor refuses complex parameters, as test_adafactor shows.
ELEMENTWISE = [pair for pair in LAST if pair.ours is not optim.adafactor]


@pytest.mark.parametrize("pair", one(optim.adagrad, ELEMENTWISE))
def test_complex_parameters_step_as_torchs(pair):
    params = {name: x + 0.5j * x[::-1] for name, x in parameters_with_axes().items()}
    real, imaginary = gradients(1, STEPS), gradients(2, STEPS)
    grads = {name: real[name] + 1j * imaginary[name] for name in params}
    expected = run_torch(pair, params, grads, torch.complex128)
    with jax.enable_x64(True):
        history = run_ours(pair, params, grads, jnp.complex128)
    for name, distance in apart(history, expected).items():
        assert distance.max() < 1e-12, name


def parameters_with_axes():
    return {name: value for name, value in parameters().items() if value.ndim}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bf16", "f16"])
@pytest.mark.parametrize("pair", one(optim.asgd))
def test_narrow_parameters_step_as_float32_ones_rounded_once_a_step(pair, dtype):
    optimizer = pair.ours(**pair.options)
    narrow = {name: jnp.asarray(x, dtype) for name, x in parameters().items()}
    state = optimizer.init(narrow)
    wide_state = optimizer.init(widened(narrow))
    for step in range(4):
        grads = {
            name: jnp.asarray(values[step], dtype)
            for name, values in gradients(steps=4).items()
        }
        updates, state = optimizer.update(grads, state, narrow)
        wide, wide_state = optimizer.update(widened(grads), wide_state, widened(narrow))
        for name, update in updates.items():
            assert update.dtype == dtype
            np.testing.assert_array_equal(update, wide[name].astype(dtype), name)
        for ours, expected in zip(
            jax.tree.leaves(state), jax.tree.leaves(wide_state), strict=True
        ):
            assert ours.dtype in (jnp.float32, jnp.int32)
            np.testing.assert_array_equal(ours, expected)
        narrow = optax.apply_updates(narrow, updates)


def widened(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)

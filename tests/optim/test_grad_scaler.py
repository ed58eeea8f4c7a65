"""Loss scaling follows torch's scale from step to step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import jaxclip
from jaxclip import optim

SETTINGS = {
    "init_scale": 2.0**12,
    "growth_factor": 4.0,
    "backoff_factor": 0.25,
    "growth_interval": 3,
}


def test_the_scale_is_torchs():
    rng = np.random.default_rng(0)
    finite = rng.random(60) < 0.8
    param = torch.nn.Parameter(torch.zeros(()))
    theirs = torch.amp.GradScaler("cpu", **SETTINGS)
    optimizer = torch.optim.SGD([param], lr=0.1)
    expected = []
    for ok in finite:
        theirs.scale(param * 1.0)
        param.grad = torch.tensor(1.0 if ok else float("inf"))
        theirs.step(optimizer)
        theirs.update()
        expected.append((theirs.get_scale(), param.item()))

    ours = optim.grad_scaler(optim.sgd(0.1), **SETTINGS)

    def step(carry, ok):
        params, state = carry
        grads = jnp.where(ok, jnp.float32(1.0), jnp.inf)
        updates, state = ours.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (state.scale, params)

    start = jnp.float32(0.0)
    (_, state), got = jax.lax.scan(step, (start, ours.init(start)), jnp.array(finite))
    np.testing.assert_allclose(np.stack(got, 1), expected, rtol=1e-6)
    assert state.inner_state.skipped_count == np.sum(~finite)
    assert len({scale for scale, _ in expected}) > 3


def test_the_scale_stays_finite():
    ours = optim.grad_scaler(optim.sgd(0.1), init_scale=2.0**127, growth_interval=1)
    state = ours.init(jnp.zeros(2))
    for _ in range(2):
        _, state = ours.update(jnp.ones(2), state)
    assert state.scale == 2.0**127


def test_gradients_of_float16_are_divided_in_float32():
    scale = 2.0**12
    clip = jaxclip.clip_by_global_norm(1.0)
    ours = optim.grad_scaler(optax.chain(clip, optim.sgd(1.0)), init_scale=scale)
    params = jnp.zeros(1)
    smallest = jnp.array([2.0**-24], jnp.float16)
    updates, _ = ours.update(smallest, ours.init(params), params)
    assert updates == -(2.0**-36)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"init_scale": 0.0}, r"init_scale=0\): expected 0 < a number"),
        ({"growth_factor": 1.0}, r"growth_factor=1\): expected 1 < a number"),
        ({"backoff_factor": 1.0}, r"backoff_factor=1\): expected 0 < a number < 1"),
        ({"growth_interval": 0}, r"growth_interval=0\): expected a whole number"),
    ],
)
def test_errors(arguments, words):
    with pytest.raises(ValueError, match=words):
        optim.grad_scaler(optim.sgd(0.1), **arguments)


def test_scale_loss_needs_one_scale():
    loss = jnp.float32(1.0)
    state = optim.sgd(0.1).init(loss)
    with pytest.raises(ValueError, match="found 0 GradScalerStates"):
        optim.scale_loss(loss, state)
    scaled = optim.grad_scaler(optim.sgd(0.1)).init(loss)
    with pytest.raises(ValueError, match="found 2 GradScalerStates"):
        optim.scale_loss(loss, [scaled, scaled])
    assert optim.scale_loss(loss.astype(jnp.float16), (state, scaled)) == 2.0**16

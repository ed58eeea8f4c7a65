"""Adafactor, Muon and L-BFGS in JAX's transformations and in Optax's wrappers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxclip.optim import adafactor, adamw, lbfgs, muon
from tests.processes import run_python

MAKERS = {
    "adafactor": (adafactor, {"lr": 0.1, "weight_decay": 0.1}, ()),
    "muon": (muon, {"lr": 0.1}, ("ns_steps", "out_axis")),
    "lbfgs": (
        lbfgs,
        {"lr": 0.1, "max_iter": 1, "history_size": 3},
        ("max_iter", "max_eval", "history_size"),
    ),
}
RNG = np.random.default_rng(0)
PARAMS = {"w": jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)}
GRADS = {"w": jnp.asarray(RNG.normal(size=(3, 4, 3)), jnp.float32)}


@pytest.fixture(params=MAKERS.values(), ids=MAKERS)
def maker(request):
    return request.param


@pytest.fixture(scope="module")
def expected():
    """The updates and the last state of each, by its function."""
    return {
        factory: jax.jit(run, static_argnums=0)(factory(**options), GRADS, PARAMS)
        for factory, options, _ in MAKERS.values()
    }


@pytest.fixture(autouse=True)
def _strict_promotion():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def run(optimizer, grads, params):
    """Take a step of each gradient in a row, in `lax.scan`."""

    def step(carry, grad):
        params, state = carry
        updates, state = optimizer.update(grad, state, params)
        return (optax.apply_updates(params, updates), state), updates

    (_, state), updates = jax.lax.scan(step, (params, optimizer.init(params)), grads)
    return updates, state


def assert_close(got, wanted, rtol=1e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-7), got, wanted
    )


def test_without_jit_the_steps_are_the_same(maker, expected):
    factory, options, _ = maker
    optimizer = factory(**options)
    params, state = PARAMS, optimizer.init(PARAMS)
    history = []
    for index in range(3):
        grads = {"w": GRADS["w"][index]}
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        history.append(updates["w"])
    updates, last = expected[factory]
    assert_close(jnp.stack(history), updates["w"])
    assert_close(state, last)


def test_vmap_steps_each_by_itself(maker):
    factory, options, _ = maker
    optimizer = factory(**options)
    two = {"w": jnp.stack([GRADS["w"], 2 * GRADS["w"][::-1]])}
    start = {"w": jnp.stack([PARAMS["w"], 3 * PARAMS["w"]])}
    together, _ = jax.jit(jax.vmap(lambda g, p: run(optimizer, g, p)))(two, start)
    one = jax.jit(lambda g, p: run(optimizer, g, p))
    for index in range(2):
        alone, _ = one({"w": two["w"][index]}, {"w": start["w"][index]})
        assert_close(together["w"][index], alone["w"], rtol=1e-4)


def test_bfloat16_parameters_have_float32_state(maker):
    factory, options, _ = maker
    optimizer = factory(**options)
    params = {"w": PARAMS["w"].astype(jnp.bfloat16)}
    before = optimizer.init(params)
    updates, after = jax.jit(optimizer.update)({"w": GRADS["w"][0]}, before, params)
    assert updates["w"].dtype == jnp.bfloat16
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(before)]
    assert dtypes == [leaf.dtype for leaf in jax.tree.leaves(after)]
    assert set(dtypes) == {jnp.dtype("int32"), jnp.dtype("float32")}


def test_in_masked_and_in_partition(maker, expected):
    factory, options, _ = maker
    params = PARAMS | {"b": jnp.ones(3)}
    grads = GRADS | {"b": jnp.ones((3, 3))}
    alone, _ = expected[factory]

    masked = optax.masked(factory(**options), {"w": True, "b": False})
    split = optax.partition(
        {"matrix": factory(**options), "other": adamw(0.01)},
        {"w": "matrix", "b": "other"},
    )
    # Optax's own arithmetic mixes dtypes.
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = jax.jit(run, static_argnums=0)(masked, grads, params)
        assert_close(updates["w"], alone["w"])
        np.testing.assert_array_equal(updates["b"], grads["b"])

        updates, _ = jax.jit(run, static_argnums=0)(split, grads, params)
        assert_close(updates["w"], alone["w"])
        assert (updates["b"] != grads["b"]).all()


def test_in_inject_hyperparams(maker, expected):
    factory, options, static = maker
    optimizer = optax.inject_hyperparams(factory, static)(**options)
    alone, _ = expected[factory]
    with jax.numpy_dtype_promotion("standard"):
        updates, state = jax.jit(run, static_argnums=0)(optimizer, GRADS, PARAMS)
    # Every number is an array of the parameters' dtype there.
    assert_close(updates["w"], alone["w"], rtol=1e-4)
    assert "lr" in state.hyperparams


def test_lr_may_be_a_schedule(maker):
    factory, options, _ = maker
    scheduled = factory(
        **options | {"lr": lambda count: jnp.float32([0.1, 0.05])[count]}
    )
    halved = factory(**options | {"lr": 0.05})
    _, state = jax.jit(run, static_argnums=0)(scheduled, {"w": GRADS["w"][:1]}, PARAMS)
    grads = {"w": GRADS["w"][1]}
    updates, _ = scheduled.update(grads, state, PARAMS)
    constant, _ = halved.update(grads, state, PARAMS)
    assert_close(updates, constant)


def test_shards_change_nothing_and_a_part_is_refused():
    """Run `sharded` where there are eight devices; it says what fails."""
    done = run_python("-m", "tests.optim.sharded", devices=8)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == ["adafactor", "muon", "lbfgs"]

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxclip import clip_metrics
from jaxclip._methods.clippy import clippy
from jaxclip.parity import assert_trees_close, assert_trees_equal

SHAPES = {"w": (5, 3), "b": (4,), "s": ()}


def draw(seed, size=1.0):
    generator = np.random.default_rng(seed)
    return {
        name: np.asarray(size * generator.normal(size=shape), np.float32)
        for name, shape in SHAPES.items()
    }


PARAMS = draw(0)


def steps(count):
    """Return steps around the threshold, with a spike every tenth."""
    for index in range(count):
        yield draw(index + 1, 5e-3 * (1e4 if index % 10 == 9 else 1.0))


def oracle(updates, params, relative=0.1, absolute=1e-7):
    """Return the scaled steps and each tensor's factor, element by element."""
    scaled, factors = {}, {}
    for name in updates:
        factor = 1.0
        steps, weights = np.float64(updates[name]), np.float64(params[name])
        for step, weight in zip(steps.ravel(), weights.ravel(), strict=True):
            if step != 0:
                allowed = relative * abs(weight) + absolute
                factor = min(factor, allowed / abs(step))
        scaled[name], factors[name] = steps * factor, factor
    return scaled, factors


def step(clip, updates, params=PARAMS):
    return clip.update(updates, clip.init(params), params)


def assert_close(got, expected, rtol=1e-6):
    assert got.keys() == expected.keys()
    for name in got:
        np.testing.assert_allclose(got[name], expected[name], rtol=rtol)


def test_it_is_the_formula_over_200_steps():
    clip = clippy()
    update, state = jax.jit(clip.update), clip.init(PARAMS)
    clipped = 0
    for updates in steps(200):
        got, state = update(updates, state, PARAMS)
        expected, factors = oracle(updates, PARAMS)
        assert_close(got, expected)
        np.testing.assert_allclose(state.clip_coef, min(factors.values()), rtol=1e-6)
        assert state.clipped_norm <= 1 + 1e-6
        clipped += min(factors.values()) < 1
    assert 20 < clipped < 200
    assert clip_metrics(state).clipped_count == clipped


def test_it_is_clippy_adagrad_over_200_steps():
    """Run Algorithm 1 of the paper in float64: Adagrad whose accumulators lag a step.

    ``rate * g / sqrt(accumulator + eps)``, clipped, and the accumulator takes the
    square of the gradient afterwards.
    """
    rate, eps, relative, absolute = 0.3, 1e-7, 0.5, 0.01
    clip = clippy(relative, absolute=absolute)
    with jax.enable_x64(True):
        weights = jax.tree.map(np.float64, PARAMS)
        ported = jax.tree.map(jnp.asarray, weights)
        accumulators = jax.tree.map(lambda x: np.full(x.shape, 0.1), weights)
        update, state = jax.jit(clip.update), clip.init(ported)
        for gradients in steps(200):
            raw = jax.tree.map(
                lambda g, a: -rate * np.float64(g) / np.sqrt(a + eps),
                gradients,
                accumulators,
            )
            deltas, _ = oracle(raw, weights, relative, absolute)
            weights = jax.tree.map(np.add, weights, deltas)
            updates, state = update(raw, state, ported)
            ported = optax.apply_updates(ported, updates)
            accumulators = jax.tree.map(
                lambda a, g: a + np.float64(g) ** 2, accumulators, gradients
            )
        assert_close(ported, weights, rtol=1e-9)
        assert clip_metrics(state).clipped_count > 10


def test_no_element_moves_further_than_it_may():
    updates, _ = step(clippy(), draw(1, 1e3))
    for name in SHAPES:
        allowed = 0.1 * np.abs(PARAMS[name]) + 1e-7
        moved = np.abs(updates[name])
        assert np.all(moved <= allowed * (1 + 1e-6))
        assert np.any(moved >= allowed * (1 - 1e-6))


def test_it_belongs_after_the_learning_rate():
    params = jnp.array([4.0, -2.0])
    optimizer = optax.chain(optax.sgd(0.5), clippy(0.25))
    updates, state = optimizer.update(
        jnp.array([1.0, 4.0]), optimizer.init(params), params
    )
    # A step of -2 where 0.5 is allowed.
    np.testing.assert_allclose(updates, [-0.125, -0.5], rtol=1e-6)
    np.testing.assert_allclose(clip_metrics(state).total_norm, 4.0, rtol=1e-6)


def test_a_parameter_of_0_moves_by_absolute():
    updates, _ = step(clippy(absolute=0.01), np.float32([1.0, 1.0]), jnp.zeros(2))
    np.testing.assert_allclose(updates, [0.01, 0.01], rtol=1e-6)


@pytest.mark.parametrize("size", [1e-30, 4e19, 3e38])
def test_steps_of_any_magnitude_keep_their_direction(size):
    params = np.float32([0.0, 1.0, -2.0]) * np.float32(min(1.0, size))
    updates = {"w": np.float32([-size / 4, size, 0.0]), "b": np.float32(2.0)}
    params = {"w": params, "b": np.float32(10.0)}
    absolute = 1e-32 if size < 1 else 1e-7
    got, state = step(clippy(absolute=absolute), updates, params)
    assert_close(got, oracle(updates, params, absolute=absolute)[0])
    assert (state.nonfinite_count, state.clipped_count) == (0, 1)


def test_zero_steps():
    with jax.debug_nans(True), jax.debug_infs(True):
        zeros = jax.tree.map(np.zeros_like, PARAMS)
        updates, state = step(clippy(), zeros, zeros)
        assert_trees_equal(updates, zeros)
        assert (state.total_norm, state.clip_coef) == (0.0, 1.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_leaf_that_is_not_finite_leaves_the_others_and_the_next_step_alone(bad):
    clip = clippy()
    updates, state = step(clip, draw(1) | {"s": np.float32(bad)})
    assert np.isnan(updates["s"])
    expected, _ = oracle(draw(1), PARAMS)
    for name in ("w", "b"):
        np.testing.assert_allclose(updates[name], expected[name], rtol=1e-6)
    assert state.nonfinite_count == 1
    after, state = clip.update(draw(2), state, PARAMS)
    fresh, fresh_state = step(clip, draw(2))
    assert_trees_equal(after, fresh)
    assert_trees_equal(state.total_norm, fresh_state.total_norm)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision(dtype):
    params, updates = jnp.full(3, 2.0, dtype), jnp.full(3, 6e4, dtype)
    got, state = step(clippy(), updates, params)
    assert got.dtype == dtype
    np.testing.assert_allclose(np.float32(got), 0.2, rtol=float(jnp.finfo(dtype).eps))
    assert state.nonfinite_count == 0


def test_complex_steps():
    updates = np.complex64([3 + 4j, 0.1])
    got, state = step(clippy(), updates, np.complex64([6 + 8j, 10.0]))
    np.testing.assert_allclose(got, updates / 5, rtol=1e-6)
    np.testing.assert_allclose(state.total_norm, 5.0, rtol=1e-6)


def test_a_schedule_and_leaves_that_hold_nothing():
    params = {"w": jnp.ones(2), "none": jnp.ones(1), "empty": jnp.ones((0, 2))}
    updates = {"w": jnp.ones(2), "none": None, "empty": jnp.ones((0, 2))}
    clip = clippy(optax.linear_schedule(1.0, 0.0, 2), absolute=1e-3)
    state = clip.init(params)
    for expected in (1.0, 0.501, 0.001):
        got, state = jax.jit(clip.update)(updates, state, params)
        np.testing.assert_allclose(got["w"], expected, rtol=1e-5)
        assert got["none"] is None


def test_in_inject_hyperparams():
    clip = optax.inject_hyperparams(clippy)(0.1)
    updates, _ = jax.jit(clip.update)(draw(1), clip.init(PARAMS), PARAMS)
    assert_close(updates, oracle(draw(1), PARAMS)[0])


def test_the_smallest_factor_of_all_shards_is_taken():
    # vmap names axes as a mesh does.
    updates, params = draw(1)["w"], PARAMS["w"]
    clip = clippy(axis_name="x")
    state = clip.init(params)

    def shard(updates, params):
        return clip.update(updates, state, params)

    got, sharded_state = jax.vmap(shard, axis_name="x")(updates, params)
    expected, expected_state = step(clippy(), updates, params)
    assert_trees_close(got, expected, rtol=1e-6, atol=0.0)
    np.testing.assert_allclose(
        sharded_state.clip_coef, [expected_state.clip_coef] * 5, rtol=1e-6
    )


def test_arguments_are_checked():
    with pytest.raises(
        ValueError, match=r"clippy\(relative=-0.1\): expected a number ≥"
    ):
        clippy(-0.1)
    with pytest.raises(
        ValueError, match=r"clippy\(absolute=0.0\): expected a finite n"
    ):
        clippy(absolute=0.0)
    with pytest.raises(ValueError, match="clippy: expected the parameters, got None"):
        clippy().update(draw(1), clippy().init(PARAMS))

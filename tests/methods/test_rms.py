import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from jaxclip import clip_metrics
from jaxclip._methods.rms import clip_by_block_rms, clip_by_update_rms
from jaxclip.parity import assert_trees_close, assert_trees_equal

SHAPES = {"w": (5, 3), "b": (4,), "s": ()}


def steps(count, seed):
    """Return updates around a root mean square of 1, with a spike every tenth step."""
    generator = np.random.default_rng(seed)
    for index in range(count):
        size = generator.lognormal() * (1e4 if index % 10 == 9 else 1.0)
        yield {
            name: np.float32(size * generator.normal(size=shape))
            for name, shape in SHAPES.items()
        }


def oracle(updates, threshold):
    """Return clipped updates, and the largest root mean square, in float64."""
    rms = {name: np.sqrt(np.mean(np.float64(u) ** 2)) for name, u in updates.items()}
    clipped = {
        name: np.float64(u) / max(1.0, rms[name] / threshold)
        for name, u in updates.items()
    }
    return clipped, max(rms.values())


def step(clip, updates):
    return clip.update(updates, clip.init(updates))


def assert_close(got, expected, rtol=5e-7):
    assert got.keys() == expected.keys()
    for name in got:
        np.testing.assert_allclose(got[name], expected[name], rtol=rtol)


@pytest.mark.parametrize(
    ("clip", "threshold"),
    [(clip_by_block_rms(0.7), 0.7), (clip_by_update_rms(), 1.0)],
    ids=["block", "update"],
)
def test_it_is_the_formula_over_200_steps(clip, threshold):
    update, state = jax.jit(clip.update), clip.init(next(steps(1, 0)))
    clipped = 0
    for updates in steps(200, seed=1):
        got, state = update(updates, state)
        expected, largest = oracle(updates, threshold)
        assert_close(got, expected)
        np.testing.assert_allclose(state.total_norm, largest, rtol=5e-7)
        np.testing.assert_allclose(
            state.clipped_norm, min(largest, threshold), rtol=5e-7
        )
        clipped += largest > threshold
    assert 20 < clipped < 200
    assert clip_metrics(state).clipped_count == clipped


def test_it_is_optax_s_over_200_steps():
    clip, peer = clip_by_block_rms(0.7), optax.clip_by_block_rms(0.7)
    update, peer_update = jax.jit(clip.update), jax.jit(peer.update)
    state = clip.init(next(steps(1, 0)))
    for updates in steps(200, seed=2):
        got, state = update(updates, state)
        assert_close(got, peer_update(updates, optax.EmptyState())[0])


def test_it_is_the_clipping_of_torch_s_adafactor_over_200_steps():
    """Give torch the same state and parameters with its clipping and without."""
    learning_rate, d = 0.05, 1.0
    generator = np.random.default_rng(3)
    start = generator.normal(size=(5, 3))
    clipped, free = (torch.nn.Parameter(torch.tensor(start)) for _ in range(2))
    optimizers = [
        torch.optim.Adafactor([p], lr=learning_rate, d=limit)
        for p, limit in ((clipped, d), (free, float("inf")))
    ]
    with jax.enable_x64(True):
        clip = clip_by_update_rms(d)
        update, state = jax.jit(clip.update), clip.init(start)
        for step_count, grads in enumerate(steps(200, seed=4), start=1):
            before = clipped.detach().numpy().copy()
            # The second moments, which are of gradients alone, stay the same.
            free.data = clipped.detach().clone()
            for parameter, optimizer in zip((clipped, free), optimizers, strict=True):
                parameter.grad = torch.tensor(np.float64(grads["w"]))
                optimizer.step()
            rate = min(learning_rate, 1 / np.sqrt(step_count))
            rate *= max(1e-3, np.sqrt(np.mean(before**2)))
            raw = (free.detach().numpy() - before) / -rate
            got, state = update(raw, state)
            expected = (clipped.detach().numpy() - before) / -rate
            # What the subtraction of parameters of 1 leaves of float64.
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)
        assert 10 < clip_metrics(state).clipped_count < 200


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    updates = {"w": jnp.full((1000,), 300.0, dtype)}
    got, state = step(clip_by_block_rms(2.0), updates)
    assert got["w"].dtype == dtype
    np.testing.assert_allclose(np.float32(got["w"]), 2.0, rtol=1e-7)
    np.testing.assert_allclose(state.total_norm, 300.0, rtol=1e-6)
    # Where Optax squares float16, which holds numbers up to 65504.
    if dtype == jnp.float16:
        eager = optax.clip_by_block_rms(2.0).update(updates, optax.EmptyState())[0]
        assert not eager["w"].any()


def test_an_array_for_a_threshold_keeps_dtypes_where_optax_promotes():
    updates = {"w": jnp.ones(3, jnp.bfloat16)}
    got, _ = step(clip_by_block_rms(jnp.float32(0.5)), updates)
    assert got["w"].dtype == jnp.bfloat16
    peer = optax.clip_by_block_rms(jnp.float32(0.5))
    assert peer.update(updates, optax.EmptyState())[0]["w"].dtype == jnp.float32


@pytest.mark.parametrize("size", [1e-30, 4e19, 3e38])
def test_updates_of_any_magnitude_keep_their_direction(size):
    updates = {"w": np.float32([size, -size / 2, 0.0])}
    threshold = 1e-32 if size < 1 else 1.0
    got, state = step(clip_by_block_rms(threshold), updates)
    assert_close(got, oracle(updates, threshold)[0], rtol=1e-6)
    np.testing.assert_allclose(state.total_norm, oracle(updates, 1.0)[1], rtol=1e-6)
    assert state.nonfinite_count == 0


def test_zeros_and_a_threshold_of_0():
    with jax.debug_nans(True):
        zeros = {"w": jnp.zeros(3)}
        got, state = step(clip_by_block_rms(0.0), zeros)
        assert_trees_equal(got, zeros)
        assert (state.total_norm, state.clip_coef) == (0.0, 1.0)
        got, _ = step(clip_by_block_rms(0.0), {"w": jnp.ones(3)})
        assert_trees_equal(got, zeros)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_leaf_that_is_not_finite_leaves_the_others_and_the_next_step_alone(bad):
    first, second = steps(2, seed=5)
    clip = clip_by_update_rms()
    got, state = step(clip, first | {"s": np.float32(bad)})
    assert np.isnan(got["s"])
    expected, _ = oracle(first, 1.0)
    assert_close({"w": got["w"], "b": got["b"]}, {n: expected[n] for n in "wb"})
    assert state.nonfinite_count == 1
    got, state = clip.update(second, state)
    fresh, fresh_state = step(clip, second)
    assert_trees_equal(got, fresh)
    assert_trees_equal(state.total_norm, fresh_state.total_norm)


def test_a_schedule_and_leaves_that_hold_nothing():
    updates = {"w": jnp.full(4, 2.0), "none": None, "empty": jnp.zeros((0, 2))}
    clip = clip_by_update_rms(optax.linear_schedule(1.0, 0.0, 2))
    state = clip.init(updates)
    for expected in (1.0, 0.5, 0.0):
        got, state = jax.jit(clip.update)(updates, state)
        np.testing.assert_allclose(got["w"], expected, rtol=1e-6)
        assert got["none"] is None


def test_a_mean_over_shards_is_that_of_the_whole():
    updates = next(steps(1, seed=6))["w"][:4]
    clip = clip_by_block_rms(0.5, axis_name="x")
    state = clip.init(updates)

    def shard(rows):
        return clip.update(rows, state)

    got, sharded_state = jax.vmap(shard, axis_name="x")(updates)
    expected, expected_state = step(clip_by_block_rms(0.5), updates)
    assert_trees_close(got, expected, rtol=5e-7, atol=0.0)
    np.testing.assert_allclose(
        sharded_state.total_norm, [expected_state.total_norm] * 4, rtol=5e-7
    )


def test_thresholds_are_checked():
    with pytest.raises(
        ValueError, match=r"clip_by_update_rms\(d=-1.0\): expected a num"
    ):
        clip_by_update_rms(-1.0)
    with pytest.raises(
        TypeError, match=r"clip_by_block_rms\(threshold='1'\): expected"
    ):
        clip_by_block_rms("1")

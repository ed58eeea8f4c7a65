"""`clip_metrics`: where it finds the state of a clip, and what it reads there."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxclip import ClipMetrics, ClipState, clip_by_global_norm, clip_metrics
from jaxclip.parity import assert_trees_close, assert_trees_equal

NAN = math.nan
PARAMS = {"w": jnp.zeros(2), "b": jnp.zeros(1)}
# Its norm is 5, that of its first leaf 4.
GRADS = {"w": jnp.array([4.0, 0.0]), "b": jnp.array([-3.0])}


def clip():
    return clip_by_global_norm(2.0, eps=0.0)


def assert_metrics(metrics, **expected):
    assert isinstance(metrics, ClipMetrics)
    for name, value in expected.items():
        got = getattr(metrics, name)
        assert got.shape == (), name
        np.testing.assert_allclose(got, value, rtol=1e-6, err_msg=name)


WRAPPED = {
    "alone": lambda: clip(),
    "chain": lambda: optax.chain(clip(), optax.adam(0.1)),
    "nested chains": lambda: optax.chain(
        optax.chain(optax.identity(), optax.chain(clip())), optax.sgd(0.1)
    ),
    "named_chain": lambda: optax.named_chain(("clip", clip()), ("sgd", optax.sgd(0.1))),
    "masked": lambda: optax.masked(clip(), {"w": True, "b": True}),
    "partition": lambda: optax.partition(
        {"clipped": clip(), "kept": optax.identity()}, {"w": "clipped", "b": "clipped"}
    ),
    "inject_hyperparams": lambda: optax.inject_hyperparams(clip_by_global_norm)(2.0),
    "injected optimizer": lambda: optax.inject_hyperparams(
        lambda rate: optax.chain(clip(), optax.sgd(rate))
    )(0.1),
    "MultiSteps": lambda: optax.MultiSteps(
        clip(), every_k_schedule=1
    ).gradient_transformation(),
    "apply_if_finite": lambda: optax.apply_if_finite(clip(), 3),
    "everything": lambda: optax.MultiSteps(
        optax.chain(
            optax.masked(optax.inject_hyperparams(clip_by_global_norm)(2.0), True),
            optax.adam(0.1),
        ),
        every_k_schedule=1,
    ).gradient_transformation(),
}


@pytest.mark.parametrize("make", WRAPPED.values(), ids=WRAPPED)
def test_the_state_is_found_wherever_it_is(make):
    optimizer = make()
    state = optimizer.init(PARAMS)
    assert_metrics(clip_metrics(state), total_norm=NAN, count=0)
    _, state = optimizer.update(GRADS, state, PARAMS)
    assert_metrics(
        clip_metrics(state),
        total_norm=5.0,
        clipped_norm=2.0,
        clip_coef=0.4,
        clipped=True,
        clipped_share=1.0,
        count=1,
        clipped_count=1,
        nonfinite_count=0,
    )


def test_the_state_is_found_in_an_optimizer_of_nnx():
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    tx = optax.chain(clip(), optax.sgd(0.1))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        grads = nnx.grad(lambda model: 100 * jnp.sum(model(jnp.ones(2))))(model)
        optimizer.update(model, grads)
        return clip_metrics(optimizer.opt_state)

    # The gradient is 100 for each of three parameters.
    norm = 100 * math.sqrt(3)
    metrics = step(model, optimizer)
    assert_metrics(metrics, total_norm=norm, clipped_norm=2.0, clip_coef=2 / norm)
    assert_trees_equal(clip_metrics(optimizer.opt_state), metrics)


def test_a_state_without_a_clip_is_an_error():
    for state in (optax.adam(0.1).init(PARAMS), (), None, {}):
        message = (
            f"clip_metrics: found no ClipState in this {type(state).__name__}. Expected"
        )
        with pytest.raises(ValueError, match=message):
            clip_metrics(state)


def test_two_clips_are_an_error_that_says_where_they_are():
    optimizer = optax.chain(
        optax.identity(), clip(), optax.named_chain(("second", clip()))
    )
    state = optimizer.init(PARAMS)
    message = (
        r"clip_metrics: found 2 ClipStates, expected one. Pass the one you mean: "
        r"opt_state\[1\], opt_state\[2\]\['second'\]."
    )
    with pytest.raises(ValueError, match=message):
        clip_metrics(state)
    assert_metrics(clip_metrics(state[2]["second"]), count=0)


def test_a_run_is_counted():
    optimizer = optax.chain(clip(), optax.sgd(0.1))
    # Clipped; inside the ball; zero; NaN; inf; clipped.
    scales = jnp.array([1.0, 0.1, 0.0, math.nan, math.inf, 2.0])

    def step(state, scale):
        grads = jax.tree.map(lambda leaf: leaf * scale, GRADS)
        _, state = optimizer.update(grads, state)
        return state, clip_metrics(state)

    run = jax.jit(lambda state: jax.lax.scan(step, state, scales)[1])
    run = run(optimizer.init(PARAMS))
    expected = {
        # The gradients have a 0, and 0 times inf is NaN.
        "total_norm": [5.0, 0.5, 0.0, NAN, NAN, 10.0],
        "clipped_norm": [2.0, 0.5, 0.0, NAN, NAN, 2.0],
        "clip_coef": [0.4, 1.0, 1.0, NAN, NAN, 0.2],
        "clipped": [True, False, False, False, False, True],
        "clipped_share": [1.0, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 2 / 6],
        "count": [1, 2, 3, 4, 5, 6],
        "clipped_count": [1, 1, 1, 1, 1, 2],
        "nonfinite_count": [0, 0, 0, 1, 2, 2],
        "last_finite_norm": [5.0, 0.5, 0.0, 0.0, 0.0, 10.0],
    }
    assert run._fields == (*expected, "leaf_norms")
    assert run.leaf_norms == {}
    for name, values in expected.items():
        np.testing.assert_allclose(getattr(run, name), values, rtol=1e-6, err_msg=name)


def test_there_is_no_last_finite_norm_before_the_first_finite_step():
    bad = GRADS | {"w": GRADS["w"] * jnp.nan}
    state = clip().init(PARAMS)
    _, state = clip().update(bad, state)
    assert jnp.isnan(clip_metrics(state).last_finite_norm)
    _, state = clip().update(GRADS, state)
    _, state = clip().update(bad, state)
    assert clip_metrics(state).last_finite_norm == 5.0


def test_the_last_finite_norm_of_finite_elements_may_exceed_its_dtype():
    huge = jax.tree.map(lambda leaf: jnp.full_like(leaf, 3e38), GRADS)
    _, state = clip().update(huge, clip().init(PARAMS))
    metrics = clip_metrics(state)
    assert (metrics.last_finite_norm, metrics.nonfinite_count) == (math.inf, 0)


def per_leaf_optimizer():
    return optax.chain(clip_by_global_norm(2.0, eps=0.0, per_leaf=True), optax.sgd(0.1))


def test_the_norm_of_each_leaf_is_read_by_its_path():
    params = {"a": [jnp.zeros(2), None, jnp.zeros(())], "b": {"w": jnp.zeros(3)}}
    grads = {
        "a": [jnp.array([3.0, 4.0]), None, jnp.array(-2.0)],
        "b": {"w": jnp.zeros(3)},
    }
    optimizer = per_leaf_optimizer()
    state = optimizer.init(params)
    before = clip_metrics(state, per_leaf=True).leaf_norms
    assert list(before) == ["a/0", "a/2", "b/w"]
    assert all(jnp.isnan(norm) for norm in before.values())

    updates, state = jax.jit(optimizer.update)(grads, state)
    metrics = clip_metrics(state, per_leaf=True)
    assert metrics.leaf_norms == {"a/0": 5.0, "a/2": 2.0, "b/w": 0.0}
    assert clip_metrics(state).leaf_norms == {}
    # The joint norm is what it is without.
    plain = optax.chain(clip_by_global_norm(2.0, eps=0.0), optax.sgd(0.1))
    expected, plain_state = plain.update(grads, plain.init(params))
    assert_trees_close(updates, expected, rtol=1e-6, atol=0.0)
    np.testing.assert_allclose(
        metrics.total_norm, clip_metrics(plain_state).total_norm, rtol=1e-6
    )


def test_the_norm_of_each_leaf_says_which_one_is_not_finite():
    optimizer = per_leaf_optimizer()
    bad = GRADS | {"w": GRADS["w"].at[0].set(jnp.nan)}
    _, state = optimizer.update(bad, optimizer.init(PARAMS))
    norms = clip_metrics(state, per_leaf=True).leaf_norms
    assert {path for path, norm in norms.items() if jnp.isnan(norm)} == {"w"}


def test_the_norms_of_leaves_are_kept_by_scan_and_by_masked():
    optimizer = optax.masked(per_leaf_optimizer(), {"w": True, "b": False})

    def step(state, _):
        return optimizer.update(GRADS, state)[1], None

    state, _ = jax.lax.scan(step, optimizer.init(PARAMS), length=3)
    norms = clip_metrics(state, per_leaf=True).leaf_norms
    assert list(norms) == ["w"]
    np.testing.assert_allclose(norms["w"], jnp.linalg.norm(GRADS["w"]), rtol=1e-6)


def test_norms_of_leaves_that_were_not_kept_cannot_be_read():
    with pytest.raises(ValueError, match=r"this clip keeps no norms of leaves\. Make"):
        clip_metrics(clip().init(PARAMS), per_leaf=True)


def test_norms_of_other_leaves_than_in_init_are_refused():
    optimizer = per_leaf_optimizer()
    with pytest.raises(ValueError, match="got updates with 1 leaves, expected 2, as m"):
        optimizer.update({"w": GRADS["w"]}, optimizer.init(PARAMS))


def test_counts_stay_at_the_largest_integer():
    largest = jnp.asarray(2**31 - 1, jnp.int32)
    state = clip().init(PARAMS)._replace(count=largest, clipped_count=largest)
    _, state = clip().update(GRADS, state)
    metrics = clip_metrics(state)
    assert_metrics(metrics, count=2**31 - 1, clipped_count=2**31 - 1, clipped_share=1.0)


def test_the_floats_are_float64_if_a_parameter_is():
    floats = ("total_norm", "clipped_norm", "clip_coef", "clipped_share")
    with jax.enable_x64(True):
        for dtype, expected in (
            (jnp.bfloat16, jnp.float32),
            (jnp.float16, jnp.float32),
            (jnp.float32, jnp.float32),
            (jnp.float64, jnp.float64),
            (jnp.complex64, jnp.float32),
            (jnp.complex128, jnp.float64),
            (jnp.int32, jnp.float32),
        ):
            state = clip().init({"w": jnp.zeros(2, dtype), "n": jnp.zeros(1, int)})
            metrics = clip_metrics(state)
            assert all(getattr(metrics, name).dtype == expected for name in floats)
            counts = (metrics.count, metrics.clipped_count, metrics.nonfinite_count)
            assert all(count.dtype == jnp.int32 for count in counts)
    # Parameters of NumPy's, whose floats are 64 bits wide, do not make it so.
    assert clip().init({"w": np.zeros(2)}).total_norm.dtype == jnp.float32


def test_a_state_that_was_saved_and_loaded_is_read():
    _, state = clip().update(GRADS, clip().init(PARAMS))
    loaded = jax.tree.map(np.asarray, state)
    assert_trees_equal(clip_metrics(loaded), clip_metrics(state))
    assert isinstance(clip_metrics(loaded).count, jax.Array)


def test_the_states_of_an_ensemble_are_read_together():
    grads = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf * 0.1]), GRADS)
    states = jax.vmap(clip().init)(grads)
    assert jnp.isnan(clip_metrics(states).total_norm).tolist() == [True, True]
    _, states = jax.vmap(clip().update)(grads, states)
    metrics = clip_metrics(states)
    np.testing.assert_allclose(metrics.total_norm, [5.0, 0.5], rtol=1e-6)
    assert metrics.clipped.tolist() == [True, False]


def test_no_two_fields_of_a_new_state_share_a_buffer():
    state = jax.tree.map(lambda x: x.unsafe_buffer_pointer(), clip().init(PARAMS))
    addresses = jax.tree.leaves(state)
    assert len(set(addresses)) == len(addresses) == len(ClipState._fields) - 1


def test_the_monitor_of_optax_cannot_be_scanned():
    monitor = optax.monitor({"norm": optax.tree.norm})

    def step(state, _):
        return monitor.update(GRADS, state)[1], None

    with pytest.raises(TypeError, match="carry"):
        jax.lax.scan(step, monitor.init(PARAMS), length=2)

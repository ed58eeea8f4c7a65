"""`clip_metrics`: where it finds the state of a clip, and what it reads there."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxclip import ClipMetrics, ClipState, clip_by_global_norm, clip_metrics
from jaxclip.parity import assert_trees_equal

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
    }
    assert run._fields == tuple(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(getattr(run, name), values, rtol=1e-6, err_msg=name)


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
    assert len(set(state)) == len(ClipState._fields)


def test_the_monitor_of_optax_cannot_be_scanned():
    monitor = optax.monitor({"norm": optax.tree.norm})

    def step(state, _):
        return monitor.update(GRADS, state)[1], None

    with pytest.raises(TypeError, match="carry"):
        jax.lax.scan(step, monitor.init(PARAMS), length=2)

"""What every method that learns keeps, whatever it learns."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxclip._monitoring import clip_metrics
from jaxclip.parity import assert_trees_close, assert_trees_equal
from tests.methods.cases import CASES
from tests.processes import run_pytest

DTYPES = {
    "bfloat16": (jnp.bfloat16,) * 3,
    "float16": (jnp.float16,) * 3,
    "float32": (jnp.float32,) * 3,
    "float64": (jnp.float64,) * 3,
    "mixed": (jnp.bfloat16, jnp.float32, jnp.float16),
}


@pytest.fixture(params=CASES)
def method(request):
    return request.param


@pytest.fixture(autouse=True)
def _strict_promotion(request):
    """Hold our own operations to JAX's strict rules, where Optax's do not stand by."""
    if "optax" in request.node.name:
        yield
        return
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def make(method, **more):
    factory, options = CASES[method]
    return factory(**options, **more)


def gradients(length, dtypes=DTYPES["float32"]):
    b, s, w = dtypes
    return {
        "w": jnp.asarray([[0.6, 0.1], [0.2, -0.7]], w) * jnp.asarray(length, w),
        "b": jnp.full((3,), 0.25, b) * jnp.asarray(length, b),
        "s": jnp.asarray(-0.125 * length, s),
    }


LENGTHS = [1.0, 1.5, 1.0, 2.0, 1.25, 1.5, 1.0, 500.0, 1.5, 40.0, 1.0, 1.25]
RUN = [gradients(length) for length in LENGTHS]


def run(clip, many, params=None):
    """Return the updates of each step, and the last state."""
    state = clip.init(many[0] if params is None else params)
    clipped = []
    for grads in many:
        updates, state = clip.update(grads, state, params)
        clipped.append(updates)
    return clipped, state


def stacked(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def shapes(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


def all_finite(tree):
    return all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


def learned(state):
    return state._replace(clip=None)


# Another program may round another way, and a run carries it on.
SAME = {"rtol": 2e-6, "atol": 0.0}


# ---- transformations of functions ----------------------------------------------------


def test_the_second_step_of_a_new_transformation_traces_nothing(method):
    clip = make(method)
    _, state = clip.update(RUN[0], clip.init(RUN[0]))
    with jax.no_tracing():
        make(method).update(RUN[1], state)


def test_scan_runs_the_same_steps_and_the_spikes_are_clipped(method):
    clip = make(method)

    def step(state, grads):
        updates, state = clip.update(grads, state)
        return state, (updates, clip_metrics(state).clip_coef)

    state, (updates, coefs) = jax.lax.scan(step, clip.init(RUN[0]), stacked(RUN))
    expected, expected_state = run(clip, RUN)
    assert_trees_close(updates, stacked(expected), **SAME)
    assert_trees_close(state, expected_state, **SAME)
    assert coefs[7] < 0.2
    assert coefs[9] < 0.4


def test_vmap_runs_each_alone(method):
    clip = make(method)
    _, state = run(clip, RUN)
    batch = [gradients(length) for length in (5.0, 0.01, 0.0, 1e-25, 1e25, np.nan)]
    got = jax.vmap(clip.update, in_axes=(0, None))(stacked(batch), state)
    expected = stacked([clip.update(grads, state) for grads in batch])
    assert_trees_close(got, expected, **SAME, equal_nan=True)


# ---- numbers and dtypes --------------------------------------------------------------


@pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES)
def test_shapes_and_dtypes_are_fixed_from_init_on(method, dtypes):
    with jax.enable_x64(True):
        clip = make(method)
        params = gradients(2.0, dtypes)
        state = clip.init(params)
        assert shapes(jax.eval_shape(clip.init, params)) == shapes(state)
        assert all_finite(state)
        for other in DTYPES.values():
            grads = gradients(1.0, other)
            updates, new_state = jax.eval_shape(clip.update, grads, state)
            assert shapes(updates) == shapes(grads)
            assert shapes(new_state) == shapes(state)


def test_narrow_gradients_are_clipped_as_wide_ones_and_rounded(method):
    narrow = [gradients(length, DTYPES["mixed"]) for length in LENGTHS]
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), narrow)
    got, state = run(make(method), narrow)
    expected, expected_state = run(make(method), wide)
    for name, leaf in narrow[0].items():
        eps = float(jnp.finfo(leaf.dtype).eps)
        for updates, want in zip(got, expected, strict=True):
            rounded = want[name].astype(leaf.dtype)
            assert_trees_close(updates[name], rounded, rtol=2 * eps, atol=0.0)
    assert_trees_close(state, expected_state, **SAME)


def test_norms_that_only_the_wider_of_two_dtypes_holds_keep_the_state_finite(method):
    with jax.enable_x64(True):
        wide = {"w": jnp.full(9, 1e300)}
        narrow = {"w": jnp.full(9, 3e38, jnp.float32)}
        for params, grads in [(wide, narrow), (narrow, wide)]:
            _, state = run(make(method), [grads] * 7, params=params)
            assert all_finite(learned(state))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_step_that_is_not_finite_is_as_if_it_had_not_been(method, bad):
    clip = make(method)
    broken = gradients(1.0) | {"s": jnp.float32(bad)}
    expected, expected_state = run(clip, RUN)
    got, state = run(clip, [either for grads in RUN for either in (broken, grads)])
    assert_trees_equal(got[1::2], expected)
    assert_trees_equal(learned(state), learned(expected_state))
    assert clip_metrics(state).nonfinite_count == len(RUN)
    assert clip_metrics(state).count == 2 * len(RUN)
    for updates in got[::2]:
        # An infinite element that is limited by itself is finite, as by its value.
        assert not all_finite(updates) or (method == "spam_clip" and np.isinf(bad))


@pytest.mark.parametrize("lengths", [[3e38] * 4, [1e-30] * 8, [1e-30, 3e38, 1.0] * 4])
def test_finite_gradients_of_any_size_keep_the_state_finite(method, lengths):
    grads = [gradients(length) for length in lengths]
    clipped, state = run(make(method), grads)
    assert all_finite(learned(state))
    assert all_finite(clipped)
    for before, after in zip(grads, clipped, strict=True):
        assert_trees_equal(*(jax.tree.map(jnp.sign, tree) for tree in (before, after)))


def test_norms_that_overflow_keep_the_state_finite(method):
    grads = {"w": jnp.full(9, 3e38), "b": jnp.full(2, 3e38)}
    clipped, state = run(make(method), [grads] * 8)
    assert all_finite(learned(state))
    assert all((leaf > 0).all() for leaf in jax.tree.leaves(clipped))


def test_zero_gradients_stay_zero_and_unclipped(method):
    clipped, state = run(make(method), [gradients(0.0)] * 7)
    assert_trees_equal(clipped[-1], gradients(0.0))
    assert clip_metrics(state).clipped_count == 0


def test_debug_nans_finds_none(method):
    with jax.debug_nans(True), jax.debug_infs(True):
        clip = make(method)
        state = jax.jit(clip.init)(RUN[0])
        for grads in (gradients(0.0), *RUN, gradients(1e30)):
            _, state = clip.update(grads, state)


# ---- trees ---------------------------------------------------------------------------


@pytest.mark.parametrize("tree", [{}, None, {"a": None, "b": ()}], ids=str)
def test_an_empty_tree_is_a_step_too(method, tree):
    clip = make(method)
    updates, state = clip.update(tree, clip.init(tree))
    assert updates == tree
    metrics = clip_metrics(state)
    assert (metrics.total_norm, metrics.clip_coef, metrics.count) == (0.0, 1.0, 1)


def test_leaves_without_elements_stay_as_they_are(method):
    empty = {
        "none": None,
        "masked": optax.MaskedNode(),
        "empty": jnp.zeros((0, 3), jnp.bfloat16),
        "integer": np.zeros(2, jax.dtypes.float0),
    }
    params = RUN[0] | empty | {"integer": jnp.arange(2)}
    clip = make(method)
    expected = clip.init(RUN[0])
    state = clip.init(params)
    for grads in RUN:
        want, expected = clip.update(grads, expected)
        got, state = clip.update(grads | empty, state)
        assert got["integer"] is empty["integer"]
        assert_trees_close({name: got[name] for name in want}, want, **SAME)
    assert clip_metrics(state).nonfinite_count == 0


def test_a_leaf_of_integers_is_named(method):
    clip = make(method)
    grads = {"w": jnp.ones(2), "n": [jnp.ones(2, jnp.int32)]}
    name = CASES[method][0].__name__
    with pytest.raises(
        TypeError, match=rf"{name}: the leaf \['n'\]\[0\] is of type in"
    ):
        clip.update(grads, clip.init(grads))


@pytest.mark.parametrize("name", ["zclip", "adagc"])
def test_complex_leaves_are_clipped_by_their_magnitudes(name):
    clip = make(name)
    real = [{"z": jnp.array([3.0, 4.0]) * length} for length in LENGTHS]
    turned = [{"z": grads["z"].astype(jnp.complex64) * (0.6 + 0.8j)} for grads in real]
    expected, _ = run(clip, real)
    got, _ = run(clip, turned)
    for updates, want in zip(got, expected, strict=True):
        assert_trees_close(jnp.abs(updates["z"]), want["z"], **SAME)


# ---- Optax ---------------------------------------------------------------------------


def test_in_optax_inject_hyperparams(method):
    factory, options = CASES[method]
    clip = optax.inject_hyperparams(factory)(**options)
    expected, _ = run(make(method), RUN)
    got, state = run(clip, RUN, params=RUN[0])
    # Numbers become float32 arrays before 1 is taken from them.
    assert_trees_close(got, expected, rtol=1e-4, atol=0.0)
    assert clip_metrics(state).count == len(RUN)


def test_with_the_tools_of_optax_for_states(method):
    optimizer = optax.chain(make(method), optax.scale(1.0))
    _, state = run(optimizer, RUN)
    assert clip_metrics(state).count == len(RUN)
    same = optax.tree.map_params(optimizer, lambda x: x + 1, state)
    if method != "spam_clip":  # which alone keeps something like the parameters
        assert_trees_equal(same, state)
    else:
        moved = jax.tree.map(lambda x: x + 1, state[0].rms)
        assert_trees_equal(same[0], state[0]._replace(rms=moved))


# ---- shards --------------------------------------------------------------------------


def test_shards_change_nothing():
    """Run `sharded` where there are four devices; it says which rows fail."""
    result = run_pytest(Path(__file__).with_name("sharded.py"), devices=4)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{3 * len(CASES)} passed" in result.stdout

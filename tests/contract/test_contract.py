"""What every transformation keeps, whatever else it does. A row is in `cases`."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxclip import clip_metrics
from jaxclip.parity import assert_trees_close, assert_trees_equal
from tests.contract.cases import ROWS
from tests.contract.runs import (
    DTYPES,
    PARAMS,
    RUN,
    gradients,
    shapes,
    stacked,
    steps,
    strict_promotion,
)


@pytest.fixture(params=ROWS)
def case(request):
    return request.param


@pytest.fixture(autouse=True)
def _strict_promotion(request):
    with strict_promotion(request.node.name):
        yield


def all_finite(tree):
    return all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


# ---- transformations of functions ----------------------------------------------------


def test_jit_changes_nothing(case):
    clip = case.make()
    state = clip.init(gradients())
    expected = clip.update(RUN[0], state, PARAMS)
    assert_trees_equal(jax.jit(clip.update)(RUN[0], state, PARAMS), expected)


def test_scan_runs_the_same_steps(case):
    clip = case.make()
    expected, expected_state = steps(clip, *RUN)

    def step(state, updates):
        updates, state = clip.update(updates, state, PARAMS)
        return state, updates

    state, updates = jax.lax.scan(step, clip.init(gradients()), stacked(RUN))
    assert_trees_equal(updates, stacked(expected))
    assert_trees_equal(state, expected_state)


def test_vmap_runs_each_alone(case):
    clip = case.make()
    # Small and large enough for sums of squares to underflow and overflow: under vmap
    # both sides of every conditional run.
    batch = [gradients(length) for length in (5.0, 0.01, 0.0, 1e-25, 1e25)]
    state = clip.init(gradients())
    expected = [clip.update(updates, state, PARAMS) for updates in batch]
    update = jax.vmap(clip.update, in_axes=(0, None, None))
    got = update(stacked(batch), state, PARAMS)
    assert_trees_close(got, stacked(expected), rtol=1e-6, atol=0.0)


def test_eval_shape_of_init_is_init(case):
    clip = case.make()
    assert shapes(jax.eval_shape(clip.init, gradients())) == shapes(
        clip.init(gradients())
    )


def test_the_second_call_traces_nothing(case):
    steps(case.make(), RUN[0])
    with jax.no_tracing():
        # Made anew, as some training loops do at each step. A schedule is the user's.
        clip = case.make()
        if not callable(case.threshold):
            clip.update(RUN[1], clip.init(PARAMS), PARAMS)


# ---- numbers and dtypes --------------------------------------------------------------


@pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES)
def test_dtypes_are_kept_and_numbers_are_those_of_float64(case, dtypes):
    clip = case.make()
    with jax.enable_x64(True):
        grads = gradients(5.0, dtypes)
        state = clip.init(grads)
        # XLA may leave out roundings to narrow dtypes; here it is to take them all.
        options = {"xla_allow_excess_precision": False}
        update = jax.jit(clip.update, compiler_options=options)
        params = gradients(1.0, dtypes)
        updates, new_state = update(grads, state, params)
        assert shapes(updates) == shapes(grads)
        assert shapes(new_state) == shapes(state)

        wide, params = jax.tree.map(lambda x: x.astype(float), (grads, params))
        exact, _ = clip.update(wide, clip.init(wide), params)
        for name, leaf in updates.items():
            # One rounding to the dtype, and the few that float32 makes before it.
            rtol = float(jnp.finfo(leaf.dtype).eps) / 2 + 4e-7
            np.testing.assert_allclose(leaf.astype(float), exact[name], rtol=rtol)


def test_state_is_as_wide_as_the_parameters_not_as_the_updates(case):
    clip = case.make()
    with jax.enable_x64(True):
        wide, narrow = gradients(5.0, DTYPES["float64"]), gradients()
        for params, updates in ((wide, narrow), (narrow, wide)):
            state = clip.init(params)
            new_state = jax.eval_shape(clip.update, updates, state, params)[1]
            assert shapes(new_state) == shapes(state)


def test_zero_gradients_stay_zero(case):
    (updates,), state = steps(case.make(), gradients(0.0))
    assert_trees_equal(updates, gradients(0.0))
    metrics = clip_metrics(state)
    assert (metrics.total_norm, metrics.clip_coef, metrics.clipped) == (0.0, 1.0, False)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_step_that_is_not_finite_is_counted_and_forgotten(case, bad):
    grads = gradients()
    grads["s"] = jnp.asarray(bad, jnp.float32)
    clip = case.make()
    (_, updates), state = steps(clip, grads, RUN[0])
    if not case.skips:
        assert clip_metrics(state).nonfinite_count == 1
    # As if it had not been; and where no step but the last counts, whatever it was.
    first = [] if case.learns else [RUN[2]]
    (*_, expected), expected_state = steps(clip, *first, RUN[0])
    assert_trees_equal(updates, expected)
    got, wanted = clip_metrics(state), clip_metrics(expected_state)
    for name in ("total_norm", "clipped_norm", "clip_coef"):
        assert_trees_equal(getattr(got, name), getattr(wanted, name))


@pytest.mark.parametrize("policy", ["zero", "raise"])
def test_the_policy_for_a_step_that_is_not_finite_is_kept(case, policy):
    if "nonfinite" not in inspect.signature(case.factory).parameters:
        pytest.skip("has no policy")
    clip = case.make(nonfinite=policy)
    bad = RUN[0] | {"s": jnp.asarray(jnp.nan)}
    if policy == "raise":
        with pytest.raises(
            RuntimeError, match=rf"{case.factory.__name__}: gradients are not .*\n.*'s'"
        ):
            steps(clip, bad)
    else:
        (updates,), state = steps(clip, bad)
        assert_trees_equal(updates, jax.tree.map(jnp.zeros_like, RUN[0]))
        assert clip_metrics(state).nonfinite_count == 1
    assert_trees_equal(steps(clip, RUN[0]), steps(case.make(), RUN[0]))


def test_finite_steps_are_finite(case):
    huge = [gradients(length) for length in (1e25, 3e38, 1e-30)]
    updates, state = steps(case.make(), *RUN, *huge)
    assert all_finite(updates)
    assert all_finite(clip_metrics(state))
    assert clip_metrics(state).nonfinite_count == 0


def test_metrics_are_nan_or_0_before_the_first_step(case):
    metrics = clip_metrics(case.make().init(gradients()))
    for name in ("total_norm", "clipped_norm", "clip_coef", "clipped_share"):
        assert jnp.isnan(getattr(metrics, name)), name
    assert (metrics.count, metrics.clipped_count, metrics.nonfinite_count) == (0, 0, 0)
    assert not metrics.clipped


def test_debug_nans_finds_none(case):
    with jax.debug_nans(True), jax.debug_infs(True):
        clip = case.make()
        state = jax.jit(clip.init)(gradients())
        for updates in (gradients(0.0), *RUN, gradients(1e30)):
            _, state = clip.update(updates, state, PARAMS)


# ---- trees ---------------------------------------------------------------------------


@pytest.mark.parametrize("tree", [{}, [], None, {"a": None, "b": ()}], ids=str)
def test_an_empty_tree_is_a_step_too(case, tree):
    clip = case.make()
    updates, state = clip.update(tree, clip.init(tree), tree)
    assert updates == tree
    assert (clip_metrics(state).total_norm, clip_metrics(state).count) == (0.0, 1)


def test_leaves_without_elements_stay_as_they_are(case):
    clip = case.make()
    (expected,), _ = steps(clip, RUN[0])
    grads = RUN[0] | {
        "none": None,
        "masked": optax.MaskedNode(),
        "empty": jnp.zeros((0, 3), jnp.bfloat16),
        "integer": np.zeros(2, jax.dtypes.float0),
    }
    (updates,), state = steps(clip, grads, params=grads | PARAMS)
    assert (updates.pop("none"), updates.pop("masked")) == (None, optax.MaskedNode())
    assert updates.pop("integer") is grads["integer"]
    assert shapes(updates.pop("empty")) == shapes(grads["empty"])
    assert_trees_close(updates, expected, rtol=1e-6, atol=0.0)
    assert clip_metrics(state).nonfinite_count == 0


def test_a_leaf_of_integers_is_named(case):
    clip = case.make()
    grads = {"w": jnp.ones(2), "n": [jnp.ones(2, jnp.int32)]}
    message = rf"{case.factory.__name__}: the leaf \['n'\]\[0\] is of type int32; expec"
    with pytest.raises(TypeError, match=message):
        clip.update(grads, clip.init(grads), grads)


# ---- arguments -----------------------------------------------------------------------


def test_extra_arguments_change_nothing_nor_do_parameters_that_are_not_needed(case):
    clip = case.make()
    state = clip.init(PARAMS)
    expected = clip.update(RUN[0], state, PARAMS)
    assert_trees_equal(clip.update(RUN[0], state, PARAMS, value=1.0, step=2), expected)
    if not case.needs_params:
        assert_trees_equal(clip.update(RUN[0], state), expected)
        assert_trees_equal(clip.update(RUN[0], state, RUN[1]), expected)
        return
    with pytest.raises(ValueError, match="expected the parameters, got None"):
        clip.update(RUN[0], state)


def test_inputs_are_neither_changed_nor_donated(case):
    clip = case.make()
    grads = jax.tree.map(np.array, RUN[0])
    state = jax.tree.map(np.array, clip.init(grads))
    params = jax.tree.map(np.array, PARAMS)
    before = jax.tree.map(np.copy, (grads, state, params))
    clip.update(grads, state, params)
    assert_trees_equal((grads, state, params), before)
    arrays = jax.tree.map(jnp.array, (grads, state, params))
    clip.update(*arrays)
    assert_trees_equal(arrays, before)


def test_inputs_can_be_donated(case):
    clip = case.make()
    expected, expected_state = steps(clip, *RUN)
    update = jax.jit(clip.update, donate_argnums=(0, 1))
    state = clip.init(gradients())
    for updates, clipped in zip(RUN, expected, strict=True):
        updates, state = update(jax.tree.map(jnp.copy, updates), state, PARAMS)
        assert_trees_equal(updates, clipped)
    assert_trees_equal(state, expected_state)


# ---- Optax ---------------------------------------------------------------------------


def test_in_an_optax_chain(case):
    clip = case.make()
    expected, _ = steps(clip, *RUN)
    updates, state = steps(optax.chain(optax.identity(), clip, optax.scale(-0.5)), *RUN)
    assert_trees_equal(updates, jax.tree.map(lambda x: x * jnp.float32(-0.5), expected))
    assert clip_metrics(state).count == 3


def test_in_optax_masked(case):
    clip = case.make()
    (expected,), _ = steps(clip, {"w": RUN[0]["w"]}, params={"w": PARAMS["w"]})
    grads = RUN[0] | {"n": jnp.arange(3)}
    mask = {"w": True, "b": False, "s": False, "n": False}
    (updates,), state = steps(optax.masked(clip, mask), grads, params=grads | PARAMS)
    assert_trees_equal(updates, grads | expected)
    assert clip_metrics(state).count == 1


def test_in_optax_partition(case):
    clip = case.make()
    (expected,), _ = steps(clip, {"w": RUN[0]["w"]}, params={"w": PARAMS["w"]})
    groups = {"clipped": clip, "kept": optax.identity()}
    labels = {"w": "clipped", "b": "kept", "s": "kept"}
    (updates,), state = steps(optax.partition(groups, labels), RUN[0])
    assert_trees_equal(updates, RUN[0] | expected)
    assert clip_metrics(state).count == 1


def test_in_optax_multi_steps(case):
    clip = case.make()
    (expected,), _ = steps(clip, RUN[0])
    optimizer = optax.MultiSteps(clip, every_k_schedule=2).gradient_transformation()
    update = jax.jit(optimizer.update)
    state = optimizer.init(gradients())
    first, state = update(RUN[0], state, PARAMS)
    second, state = update(RUN[0], state, PARAMS)
    assert_trees_close(first, gradients(0.0), rtol=0.0, atol=0.0)
    assert_trees_close(second, expected, rtol=1e-6, atol=0.0)
    assert clip_metrics(state).count == 1


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_in_optax_inject_hyperparams(case, jit):
    (expected,), expected_state = steps(case.make(), RUN[0])
    clip = case.inject()
    # Every number becomes an array of the parameters' dtype; under jit, a traced one.
    update = jax.jit(clip.update) if jit else clip.update
    state = clip.init(gradients())
    updates, new_state = update(RUN[0], state, PARAMS)
    assert_trees_close(updates, expected, rtol=1e-6, atol=0.0)
    assert shapes(new_state) == shapes(state)
    assert clip_metrics(new_state).clipped == clip_metrics(expected_state).clipped


def test_with_the_tools_of_optax_for_states(case):
    clip = case.make()
    _, state = steps(clip, *RUN)
    assert optax.tree.get(state, "total_norm") == clip_metrics(state).total_norm
    state = optax.tree.set(state, clipped_count=jnp.asarray(7, jnp.int32))
    assert clip_metrics(state).clipped_count == 7
    if case.keeps_tree:
        return
    # Nothing in the state has the shape of the parameters.
    same = optax.tree.map_params(clip, lambda x: x + 1, state)
    assert_trees_equal(same, state)

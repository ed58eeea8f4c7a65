"""What every optimizer keeps, whatever else it does. A row is in `optimizers`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import jaxclip
from jaxclip.parity import assert_trees_close, assert_trees_equal
from tests.contract.cases import CASES
from tests.contract.optimizers import OPTIMIZERS, QUICK
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


@pytest.fixture(params=OPTIMIZERS)
def row(request):
    return request.param


@pytest.fixture(autouse=True)
def _strict_promotion(request):
    with strict_promotion(request.node.name):
        yield


# ---- transformations of functions ----------------------------------------------------


def test_jit_changes_nothing(row):
    optimizer = row.make()
    state = optimizer.init(PARAMS)
    expected = optimizer.update(RUN[0], state, PARAMS)
    assert_trees_equal(jax.jit(optimizer.update)(RUN[0], state, PARAMS), expected)


def test_scan_runs_the_same_steps(row):
    optimizer = row.make()
    expected, expected_state = steps(optimizer, *RUN)

    def step(state, grads):
        updates, state = optimizer.update(grads, state, PARAMS)
        return state, updates

    state, updates = jax.lax.scan(step, optimizer.init(PARAMS), stacked(RUN))
    assert_trees_close(updates, stacked(expected), rtol=1e-6, atol=0.0)
    assert_trees_close(state, expected_state, rtol=1e-6, atol=0.0)


def test_vmap_runs_each_alone(row):
    optimizer = row.make()
    batch = [gradients(length) for length in (5.0, 0.01, 0.0, 1e-15, 1e15)]
    state = optimizer.init(PARAMS)
    expected = [optimizer.update(grads, state, PARAMS) for grads in batch]
    update = jax.vmap(optimizer.update, in_axes=(0, None, None))
    got = update(stacked(batch), state, PARAMS)
    assert_trees_close(got, stacked(expected), rtol=1e-6, atol=0.0)


def test_eval_shape_of_init_is_init(row):
    init = row.make().init
    assert shapes(jax.eval_shape(init, PARAMS)) == shapes(init(PARAMS))
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(init(PARAMS)))


def test_the_second_call_traces_nothing(row):
    if row.is_scheduled:
        pytest.skip("a schedule is the user's own function")
    _, state = steps(row.make(), RUN[0])
    with jax.no_tracing():
        # Made anew, as some training loops do at each step.
        row.make().update(RUN[1], state, PARAMS)


# ---- numbers and dtypes --------------------------------------------------------------


@pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES)
def test_dtypes_are_kept_and_numbers_are_those_of_float64(row, dtypes):
    optimizer = row.make()
    with jax.enable_x64(True):
        grads, params = gradients(5.0, dtypes), gradients(1.0, dtypes)
        state = optimizer.init(params)
        # XLA may leave out roundings to narrow dtypes; here it is to take them all.
        options = {"xla_allow_excess_precision": False}
        update = jax.jit(optimizer.update, compiler_options=options)
        updates, new_state = update(grads, state, params)
        assert shapes(new_state) == shapes(state)
        narrow = [x for x in jax.tree.leaves(state) if x.dtype.itemsize < 4]
        assert not narrow

        wide, wide_params = jax.tree.map(lambda x: x.astype(float), (grads, params))
        exact, _ = optimizer.update(wide, optimizer.init(wide_params), wide_params)
        for name, leaf in updates.items():
            assert leaf.dtype == params[name].dtype
            # One rounding to the dtype, and the few that float32 makes before it.
            rtol = float(jnp.finfo(leaf.dtype).eps) / 2 + 1e-6
            np.testing.assert_allclose(leaf.astype(float), exact[name], rtol=rtol)


def test_state_is_as_wide_as_the_parameters_not_as_the_updates(row):
    optimizer = row.make()
    with jax.enable_x64(True):
        wide, narrow = gradients(5.0, DTYPES["float64"]), gradients()
        for params, grads in ((wide, narrow), (narrow, wide)):
            state = optimizer.init(params)
            updates, new_state = jax.eval_shape(optimizer.update, grads, state, params)
            assert shapes(new_state) == shapes(state)
            assert jax.tree.map(lambda x: x.dtype, updates) == jax.tree.map(
                lambda x: x.dtype, params
            )


def test_debug_nans_finds_none(row):
    with jax.debug_nans(True), jax.debug_infs(True):
        optimizer = row.make()
        state = jax.jit(optimizer.init)(PARAMS)
        for grads in (gradients(0.0), *RUN):
            _, state = optimizer.update(grads, state, PARAMS)


# ---- trees ---------------------------------------------------------------------------


@pytest.mark.parametrize("tree", [{}, [], None, {"a": None, "b": ()}], ids=str)
def test_an_empty_tree_is_a_step_too(row, tree):
    optimizer = row.make()
    updates, state = optimizer.update(tree, optimizer.init(tree), tree)
    assert updates == tree
    assert state.count == 1


def test_leaves_without_elements_stay_as_they_are(row):
    optimizer = row.make()
    (expected,), _ = steps(optimizer, RUN[0])
    others = {
        "none": None,
        "masked": optax.MaskedNode(),
        "empty": jnp.zeros((0, 3), jnp.bfloat16),
        "integer": np.zeros(2, jax.dtypes.float0),
    }
    params = PARAMS | others | {"integer": np.arange(2)}
    (updates,), _ = steps(optimizer, RUN[0] | others, params=params)
    assert (updates.pop("none"), updates.pop("masked")) == (None, optax.MaskedNode())
    assert updates.pop("integer").dtype == jax.dtypes.float0
    assert shapes(updates.pop("empty")) == shapes(others["empty"])
    assert_trees_close(updates, expected, rtol=1e-6, atol=0.0)


def test_a_leaf_of_integers_is_named(row):
    optimizer = row.make()
    grads = {"w": jnp.ones(2), "n": [jnp.ones(2, jnp.int32)]}
    message = rf"{row.factory.__name__}: the leaf \['n'\]\[0\] is of type int32; expec"
    with pytest.raises(TypeError, match=message):
        optimizer.update(grads, optimizer.init(grads), grads)


def test_gradients_of_another_structure_are_refused(row):
    optimizer = row.make()
    state = optimizer.init(PARAMS)
    message = rf"^{row.factory.__name__}: expected gradients of the structure of the "
    with pytest.raises(ValueError, match=message):
        optimizer.update({"w": RUN[0]["w"]}, state, PARAMS)


def test_gradients_of_another_shape_are_refused(row):
    optimizer = row.make()
    grads = RUN[0] | {"b": jnp.ones((1,))}
    message = (
        rf"^{row.factory.__name__}: the gradient 'b' has the shape \(1,\), and its "
        r"parameter \(3,\); expected the same shape\."
    )
    with pytest.raises(ValueError, match=message):
        optimizer.update(grads, optimizer.init(PARAMS), PARAMS)


# ---- arguments -----------------------------------------------------------------------


def test_extra_arguments_change_nothing_nor_do_parameters_that_are_not_needed(row):
    optimizer = row.make()
    state = optimizer.init(PARAMS)
    expected = optimizer.update(RUN[0], state, PARAMS)
    got = optimizer.update(RUN[0], state, PARAMS, batch=1.0, step=2)
    assert_trees_equal(got, expected)
    if not row.needs_params:
        assert_trees_equal(optimizer.update(RUN[0], state), expected)
        assert_trees_equal(optimizer.update(RUN[0], state, RUN[1]), expected)
        return
    message = rf"^{row.factory.__name__}: expected the parameters, got None\. Call upd"
    with pytest.raises(ValueError, match=message):
        optimizer.update(RUN[0], state)


def test_inputs_are_neither_changed_nor_donated(row):
    optimizer = row.make()
    given = RUN[0], optimizer.init(PARAMS), PARAMS
    before = jax.tree.map(np.array, given)
    for kind in (np.array, jnp.array):
        arrays = jax.tree.map(kind, given)
        optimizer.update(*arrays)
        assert_trees_equal(jax.tree.map(np.array, arrays), before)


def test_inputs_can_be_donated(row):
    optimizer = row.make()
    expected, _ = steps(optimizer, *RUN)
    update = jax.jit(optimizer.update, donate_argnums=(0, 1))
    state = optimizer.init(PARAMS)
    for grads, wanted in zip(RUN, expected, strict=True):
        updates, state = update(jax.tree.map(jnp.copy, grads), state, PARAMS)
        assert_trees_equal(updates, wanted)


# ---- Optax ---------------------------------------------------------------------------


def test_in_an_optax_chain_after_a_clip(row):
    check_chain(CASES[0], row)


@pytest.mark.long
@pytest.mark.parametrize("clip", CASES[1:], ids=lambda case: case.name)
def test_in_an_optax_chain_after_every_clip(clip):
    check_chain(clip, QUICK[0])


def check_chain(clip, row):
    clipped, _ = steps(clip.make(), *RUN)
    expected, _ = steps(row.make(), *clipped)
    updates, state = steps(optax.chain(clip.make(), row.make()), *RUN)
    assert_trees_equal(updates, expected)
    assert jaxclip.clip_metrics(state).count == state[1].count == 3


def test_in_optax_masked_and_partition(row):
    optimizer = row.make()
    (expected,), _ = steps(optimizer, {"w": RUN[0]["w"]}, params={"w": PARAMS["w"]})
    mask = {"w": True, "b": False, "s": False}
    (updates,), _ = steps(optax.masked(optimizer, mask), RUN[0])
    assert_trees_equal(updates, RUN[0] | expected)
    groups = {"stepped": optimizer, "kept": optax.identity()}
    labels = {"w": "stepped", "b": "kept", "s": "kept"}
    (updates,), _ = steps(optax.partition(groups, labels), RUN[0])
    assert_trees_equal(updates, RUN[0] | expected)


def test_in_optax_multi_steps(row):
    optimizer = row.make()
    (expected,), _ = steps(optimizer, RUN[0])
    twice = optax.MultiSteps(optimizer, every_k_schedule=2).gradient_transformation()
    update = jax.jit(twice.update)
    state = twice.init(PARAMS)
    first, state = update(RUN[0], state, PARAMS)
    second, state = update(RUN[0], state, PARAMS)
    assert_trees_close(first, gradients(0.0), rtol=0.0, atol=0.0)
    assert_trees_close(second, expected, rtol=1e-6, atol=0.0)
    assert state.inner_opt_state.count == 1


def test_in_optax_inject_hyperparams(row):
    """Every number becomes an array, and the learning rate is changed by hand."""
    state = row.make(lr=0.1).init(PARAMS)
    _, state = row.make(lr=0.1).update(RUN[0], state, PARAMS)
    expected, _ = row.make(lr=0.05).update(RUN[1], state, PARAMS)
    optimizer = row.inject(lr=0.1)
    update = jax.jit(optimizer.update)
    state = optimizer.init(PARAMS)
    _, state = update(RUN[0], state, PARAMS)
    assert shapes(state) == shapes(optimizer.init(PARAMS))
    state.hyperparams["lr"] = jnp.asarray(0.05)
    updates, _ = update(RUN[1], state, PARAMS)
    # A number such as 0.99 is rounded when it becomes an array, and taken from 1.
    assert_trees_close(updates, expected, rtol=1e-5, atol=0.0)


def test_with_the_tools_of_optax_for_states(row):
    optimizer = row.make()
    _, state = steps(optimizer, RUN[0])
    moved = optax.tree.map_params(optimizer, lambda x: x + 1, state)
    like_params = {k: v for k, v in state._asdict().items() if isinstance(v, dict)}
    moved_by_hand = jax.tree.map(lambda x: x + 1, like_params)
    assert_trees_equal(moved, state._replace(**moved_by_hand))
    assert optax.tree.get(moved, "count") == 1


@pytest.mark.parametrize(
    "guard",
    [
        jaxclip.skip_nonfinite,
        lambda inner: jaxclip.skip_spikes(inner, window=6, watch="norm"),
        lambda inner: optax.apply_if_finite(inner, max_consecutive_errors=5),
    ],
    ids=["skip_nonfinite", "skip_spikes", "optax.apply_if_finite"],
)
def test_guards_leave_out_a_step_that_is_not_finite(row, guard):
    optimizer = row.make()
    expected, expected_state = steps(optimizer, *RUN[:2])
    bad = RUN[0] | {"s": jnp.asarray(jnp.nan)}
    updates, state = steps(guard(optimizer), RUN[0], bad, RUN[1])
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    for got, wanted in zip(updates, [expected[0], zeros, expected[1]], strict=True):
        assert_trees_close(got, wanted, rtol=1e-6, atol=0.0)
    assert_trees_close(state.inner_state, expected_state, rtol=1e-6, atol=0.0)


# ---- Flax ----------------------------------------------------------------------------


def test_in_an_nnx_optimizer():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    start = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))
    grads = jax.tree.map(jnp.ones_like, start)
    optimizer = nnx.Optimizer(model, QUICK[0].make(), wrt=nnx.Param)
    optimizer.update(model, grads)
    (updates,), _ = steps(QUICK[0].make(), grads, params=start)
    expected = optax.apply_updates(start, updates)
    assert_trees_close(
        nnx.to_pure_dict(nnx.state(model, nnx.Param)),
        nnx.to_pure_dict(expected),
        rtol=1e-6,
        atol=0.0,
    )


def test_in_a_flax_train_state():
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=QUICK[0].make())
    state = state.apply_gradients(grads=RUN[0])
    (updates,), expected = steps(QUICK[0].make(), RUN[0])
    assert_trees_equal(state.params, optax.apply_updates(PARAMS, updates))
    assert_trees_equal(state.opt_state, expected)

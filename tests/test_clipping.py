"""The transformations: their numbers, their state, schedules, and Optax beside them.

What they all keep is in `contract`; the formula and its limits in `test_clip_grad`.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxclip import (
    ClipState,
    clip_by_global_norm,
    clip_by_norm,
    clip_by_value,
    clip_grad_norm,
    clip_grad_value,
)
from jaxclip.parity import assert_trees_close, assert_trees_equal

INF = math.inf
TINY = float(np.finfo(np.float32).tiny)
FACTORIES = {
    "clip_by_global_norm": (clip_by_global_norm, "max_norm"),
    "clip_by_norm": (clip_by_norm, "max_norm"),
    "clip_by_value": (clip_by_value, "clip_value"),
}
GRADS = {"b": np.float32([0.6, -0.8]), "w": np.float32([[-3.0, 0.0], [0.0, 4.0]])}


def update(transformation, updates, state=None):
    state = transformation.init(updates) if state is None else state
    return transformation.update(updates, state)


def assert_state(state, **expected):
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(state, name), value, rtol=1e-6, err_msg=name)


# ---- numbers -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("norm_type", "eps"), [(1.0, 0.0), (2.0, 1e-6), (3.0, 1e-6), (INF, 1e-6)]
)
def test_the_transformation_and_the_function_agree_to_the_bit(norm_type, eps):
    clip = clip_by_global_norm(1.0, norm_type, eps=eps)
    updates, state = update(clip, GRADS)
    expected, norm = clip_grad_norm(GRADS, 1.0, norm_type, eps=eps)
    assert_trees_equal(updates, expected)
    assert_trees_equal(state.total_norm, norm)

    each, _ = update(clip_by_norm(1.0, norm_type, eps=eps), GRADS)
    for name, leaf in GRADS.items():
        assert_trees_equal(each[name], clip_grad_norm(leaf, 1.0, norm_type, eps=eps)[0])

    updates, _ = update(clip_by_value(1.0), GRADS)
    assert_trees_equal(updates, clip_grad_value(GRADS, 1.0))


def test_the_state_of_clip_by_global_norm():
    _, state = update(clip_by_global_norm(2.0, eps=0.0), GRADS)
    norm = math.sqrt(26)
    assert_state(state, total_norm=norm, clipped_norm=2.0, clip_coef=2 / norm)
    assert_state(state, count=1, clipped_count=1, nonfinite_count=0)
    _, state = update(clip_by_global_norm(10.0), GRADS, state)
    assert_state(state, total_norm=norm, clipped_norm=norm, clip_coef=1.0)
    assert_state(state, count=2, clipped_count=1, nonfinite_count=0)


def test_the_state_of_clip_by_norm_is_of_the_leaf_that_is_clipped_most():
    _, state = update(clip_by_norm(2.0, eps=0.0), GRADS)
    assert_state(state, total_norm=5.0, clipped_norm=2.0, clip_coef=0.4)
    _, state = update(clip_by_norm(5.0, eps=0.0), GRADS, state)
    assert_state(state, total_norm=5.0, clipped_norm=5.0, clip_coef=1.0)
    assert_state(state, count=2, clipped_count=1)


def test_the_state_of_clip_by_value_is_of_the_largest_element():
    _, state = update(clip_by_value(2.0), GRADS)
    assert_state(state, total_norm=4.0, clipped_norm=2.0, clip_coef=0.5)
    _, state = update(clip_by_value(4.0), GRADS, state)
    assert_state(state, total_norm=4.0, clipped_norm=4.0, clip_coef=1.0)
    assert_state(state, count=2, clipped_count=1)


def test_the_state_where_elements_are_not_finite():
    grads = {"w": np.float32([INF, 1.0])}
    for clip in (clip_by_global_norm(1.0), clip_by_norm(1.0)):
        updates, state = update(clip, grads)
        assert_trees_equal(updates, {"w": np.float32([np.nan, 0.0])}, equal_nan=True)
        assert_state(state, total_norm=INF, clipped_norm=np.nan, clip_coef=0.0)
        assert_state(state, clipped_count=1, nonfinite_count=1)
    # This one makes them finite.
    updates, state = update(clip_by_value(1.0), grads)
    assert_trees_equal(updates, {"w": np.float32([1.0, 1.0])})
    assert_state(state, total_norm=INF, clipped_norm=1.0, clip_coef=0.0)
    assert_state(state, clipped_count=1, nonfinite_count=1)

    grads = {"w": np.float32([np.nan, 3.0])}
    for factory, _ in FACTORIES.values():
        _, state = update(factory(1.0), grads)
        assert_state(state, total_norm=np.nan, clipped_norm=np.nan, clip_coef=np.nan)
        assert_state(state, count=1, clipped_count=0, nonfinite_count=1)


def test_a_finite_step_whose_norm_overflows_counts_as_finite():
    grads = {"w": np.float32([3e38, -3e38])}
    for clip in (clip_by_global_norm(1.0), clip_by_norm(1.0)):
        updates, state = update(clip, grads)
        np.testing.assert_allclose(updates["w"], [0.5**0.5, -(0.5**0.5)], rtol=1e-6)
        assert_state(state, total_norm=INF, clipped_norm=1.0, clip_coef=0.0)
        assert_state(state, clipped_count=1, nonfinite_count=0)


numbers = st.floats(-1e4, 1e4, width=32, allow_subnormal=False)
extreme = st.sampled_from([0.0, TINY, 1e-30, -1e-20, 1.9e19, -4e19, 1e30, 3e38])
pairs = st.lists(numbers | extreme, min_size=2, max_size=2)


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, INF])
@settings(max_examples=60)
@given(
    groups=st.tuples(pairs, pairs, pairs),
    max_norm=st.floats(1e-3, 1e6) | st.sampled_from([1e-32, 1e-22, 1e-15]),
)
def test_clip_by_norm_clips_each_leaf_alone_at_every_magnitude(
    norm_type, groups, max_norm
):
    grads = [np.float32(group) for group in groups]
    updates, state = update(clip_by_norm(max_norm, norm_type, eps=0.0), grads)
    norms = []
    for leaf, clipped in zip(grads, updates, strict=True):
        wide = np.abs(leaf.astype(np.float64))
        norm = max(wide)
        if norm_type != INF:
            norm = sum(wide**norm_type) ** (1 / norm_type)
        norms.append(norm)
        coef = 1.0 if norm <= max_norm else max_norm / norm
        # Beside 1e38, numbers below 1 are flushed to zero before they are scaled.
        floor = TINY * max(1.0, max_norm)
        np.testing.assert_allclose(clipped, leaf * coef, rtol=3e-6, atol=floor)
    # Norms far below the threshold may be reported as 0.
    with np.errstate(over="ignore"):
        largest = np.float32(max(norms))
    np.testing.assert_allclose(state.total_norm, largest, rtol=3e-6, atol=1e-6)
    assert state.nonfinite_count == 0
    assert state.clipped_count == (state.clip_coef < 1)


# ---- thresholds ----------------------------------------------------------------------


@pytest.mark.parametrize(("factory", "name"), FACTORIES.values(), ids=FACTORIES)
def test_a_threshold_out_of_range_is_refused_when_it_is_given(factory, name):
    for limit in (-1.0, math.nan, np.float32(-1.0), jnp.array(-1.0)):
        message = rf"{factory.__name__}\({name}={float(limit)}\): expected a number ≥ 0"
        with pytest.raises(ValueError, match=message):
            factory(limit)
    for limit in (np.ones(1), jnp.ones((2, 3))):
        message = rf"{factory.__name__}\({name}=...\): got an array of shape \([12],"
        with pytest.raises(TypeError, match=message):
            factory(limit)
    with pytest.raises(TypeError, match=rf"{name}='1'\): expected a real number"):
        factory("1")


@pytest.mark.parametrize("factory", [clip_by_global_norm, clip_by_norm])
def test_a_norm_type_or_eps_out_of_range_is_refused_when_it_is_given(factory):
    name = factory.__name__
    with pytest.raises(ValueError, match=rf"{name}\(norm_type=-2.0\): expected a pos"):
        factory(1.0, -2.0)
    with pytest.raises(ValueError, match=rf"{name}\(eps=-1.0\): expected a finite num"):
        factory(1.0, eps=-1.0)


@pytest.mark.parametrize("factory", [f for f, _ in FACTORIES.values()], ids=FACTORIES)
def test_a_schedule_is_called_with_the_number_of_steps_so_far(factory):
    thresholds = jnp.array([2.0, 0.5, INF, 0.0])
    clip = factory(lambda count: thresholds[count])
    state = clip.init(GRADS)
    jitted = jax.jit(clip.update)
    for limit in (2.0, 0.5, INF, 0.0):
        expected, _ = update(factory(limit), GRADS)
        traced, _ = jitted(GRADS, state)
        updates, state = clip.update(GRADS, state)
        assert_trees_equal(updates, expected)
        assert_trees_equal(traced, expected)
    assert state.count == 4


@pytest.mark.parametrize(("factory", "name"), FACTORIES.values(), ids=FACTORIES)
def test_a_schedule_that_leaves_the_range_is_refused_or_gives_nan(factory, name):
    clip = factory(lambda count: 0.5 - count)
    state = clip.init(GRADS)
    _, state = clip.update(GRADS, state)
    message = rf"{factory.__name__}\({name}=-0.5\): expected a number ≥ 0"
    with pytest.raises(ValueError, match=message):
        clip.update(GRADS, state)
    updates, state = jax.jit(clip.update)(GRADS, state)
    assert all(jnp.isnan(leaf).all() for leaf in updates.values())
    assert_state(state, count=2, clipped_count=1, nonfinite_count=0)

    clip = factory(lambda count: jnp.ones(2))
    with pytest.raises(TypeError, match=r"got an array of shape \(2,\)"):
        clip.update(GRADS, clip.init(GRADS))


def test_a_value_clip_refuses_complex_leaves():
    grads = {"c": jnp.ones(2, jnp.complex64)}
    clip = clip_by_value(1.0)
    message = r"clip_by_value: the leaf \['c'\] is of type complex64, and complex numb"
    with pytest.raises(TypeError, match=message):
        clip.update(grads, clip.init(grads))


# ---- Optax beside them ---------------------------------------------------------------


def test_it_stands_in_where_optaxs_stood():
    grads = jax.tree.map(jnp.asarray, GRADS)
    for max_norm in (1.0, 5.0, 100.0):
        ours, _ = update(clip_by_global_norm(max_norm, eps=0.0), grads)
        theirs, _ = update(optax.clip_by_global_norm(max_norm), grads)
        assert_trees_close(ours, theirs, rtol=3e-7, atol=0.0)
        ours, _ = update(clip_by_value(max_norm), grads)
        theirs, _ = update(optax.clip(max_norm), grads)
        assert_trees_equal(ours, theirs)


def test_updates_whose_norm_is_max_norm_shrink_and_stay_in_optax():
    grads = {"w": jnp.array([3.0, 4.0])}
    theirs, _ = update(optax.clip_by_global_norm(5.0), grads)
    assert_trees_equal(theirs, grads)
    ours, _ = update(clip_by_global_norm(5.0), grads)
    assert_trees_equal(ours, {"w": np.float32([2.9999993, 3.9999990])})


def test_a_threshold_injected_into_optaxs_fails_on_narrow_updates():
    grads = {"w": jnp.array([3.0, 4.0], jnp.bfloat16)}
    schedule = optax.constant_schedule(jnp.float32(1.0))
    theirs = optax.inject_hyperparams(
        optax.clip_by_global_norm, hyperparam_dtype=jnp.float32
    )(schedule)
    with pytest.raises(TypeError, match="select"):
        theirs.update(grads, theirs.init(grads))
    ours = optax.inject_hyperparams(clip_by_global_norm, hyperparam_dtype=jnp.float32)(
        schedule
    )
    updates, _ = jax.jit(ours.update)(grads, ours.init(grads), grads)
    assert_trees_equal(updates, {"w": jnp.array([0.6, 0.8], jnp.bfloat16)})


def test_an_array_as_clip_value_widens_narrow_updates_in_optax():
    grads = {"w": jnp.array([3.0, 4.0], jnp.bfloat16)}
    theirs, _ = update(optax.clip(jnp.float32(1.0)), grads)
    assert theirs["w"].dtype == jnp.float32
    ours, _ = update(clip_by_value(jnp.float32(1.0)), grads)
    assert_trees_equal(ours, {"w": jnp.ones(2, jnp.bfloat16)})


def test_a_negative_clip_value_sets_every_element_in_optax():
    theirs, _ = update(optax.clip(-2.0), {"w": jnp.array([3.0, 0.0])})
    assert_trees_equal(theirs, {"w": jnp.array([-2.0, -2.0])})


def test_two_groups_of_a_partition_are_clipped_each_alone():
    grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    for factory in (optax.clip_by_global_norm, clip_by_global_norm):
        groups = {"a": factory(1.0), "b": factory(1.0)}
        updates, _ = update(optax.partition(groups, {"a": "a", "b": "b"}), grads)
        np.testing.assert_allclose(optax.tree.norm(updates), math.sqrt(2), rtol=1e-6)


def test_multi_steps_clips_the_mean():
    clip = optax.MultiSteps(clip_by_global_norm(1.0, eps=0.0), every_k_schedule=2)
    state = clip.init(jnp.zeros(2))
    for grads in (jnp.array([6.0, 0.0]), jnp.array([0.0, 8.0])):
        updates, state = clip.update(grads, state, jnp.zeros(2))
    np.testing.assert_allclose(updates, [0.6, 0.8], rtol=1e-6)


# ---- what it costs -------------------------------------------------------------------


def equations(jaxpr):
    """Yield every equation of a jaxpr, inside of conditionals and calls too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(
            equation.params, is_leaf=lambda x: hasattr(x, "jaxpr") or hasattr(x, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


@pytest.mark.parametrize("factory", [clip_by_global_norm, clip_by_norm])
@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, INF])
def test_leaves_are_never_divided(norm_type, factory):
    # XLA duplicates a product into the optimizer, and keeps a copy of a quotient.
    clip = factory(1.0, norm_type)
    grads = {"w": jnp.ones((8, 9)), "b": jnp.ones(8, jnp.bfloat16)}
    jaxpr = jax.make_jaxpr(clip.update)(grads, clip.init(grads)).jaxpr
    divided = [
        equation.outvars[0].aval.shape
        for equation in equations(jaxpr)
        if equation.primitive.name == "div"
    ]
    assert divided, "the reciprocal of the norm is a division"
    assert all(math.prod(shape) <= len(grads) for shape in divided), divided


def test_clipped_leaves_do_not_come_out_of_a_conditional():
    clip = clip_by_global_norm(1.0)
    grads = {"w": jnp.ones((8, 9)), "b": jnp.ones(8, jnp.bfloat16)}
    jaxpr = jax.make_jaxpr(clip.update)(grads, clip.init(grads)).jaxpr
    conditionals = [e for e in equations(jaxpr) if e.primitive.name == "cond"]
    assert conditionals, "the norm has one"
    for equation in conditionals:
        assert all(out.aval.size == 1 for out in equation.outvars)


def test_the_state_is_a_clip_state():
    for factory, _ in FACTORIES.values():
        assert isinstance(factory(1.0).init(GRADS), ClipState)

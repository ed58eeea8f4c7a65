"""The clipping functions against torch, float64, Dive into Deep Learning and Optax."""

import functools
import logging
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import torchref.grad_clipping
from jaxclip import (
    clip_by_global_norm,
    clip_grad_norm,
    clip_grad_value,
    clip_grads_with_norm,
    global_norm,
)
from jaxclip.parity import assert_trees_close, assert_trees_equal
from tests.golden import NOTEBOOK_ATOL, NOTEBOOK_CLIPPED, NOTEBOOK_GRADIENTS

INF = math.inf
TINY = float(np.finfo(np.float32).tiny)
# Two float32 programs for the same formula differ by a rounding or two for each of its
# steps: the terms of the sum, the root, the reciprocal, the products.
FEW_ULPS = 8 * 2.0**-24

# Eight numbers, for leaves of fixed shapes: another shape is another compilation.
SHAPES = {"b": (), "v": (3,), "w": (2, 2)}
ordinary = st.floats(-1e4, 1e4, width=32, allow_subnormal=False)
extreme = st.sampled_from([0.0, TINY, 1e-30, -1e-23, 1e-10, 1.9e19, -4e19, 1e30, 3e38])
eights = st.lists(ordinary, min_size=8, max_size=8)
extreme_eights = st.lists(ordinary | extreme, min_size=8, max_size=8)


def tree_of(numbers, dtype=np.float32):
    numbers = np.asarray(numbers, dtype)
    parts = dict(zip(SHAPES, (numbers[:1], numbers[1:4], numbers[4:]), strict=True))
    return {name: part.reshape(SHAPES[name]) for name, part in parts.items()}


def flat(tree):
    """Return all elements in float64."""
    leaves = [np.asarray(x).astype(np.float64).ravel() for x in jax.tree.leaves(tree)]
    return np.concatenate(leaves)


def naive_norm(tree, power=2.0):
    magnitudes = np.abs(flat(tree))
    return max(magnitudes) if power == INF else np.sum(magnitudes**power) ** (1 / power)


def naive_clip(tree, max_norm, power=2.0, eps=0.0):
    """Return the clipped elements in float64."""
    length = naive_norm(tree, power) + eps
    return flat(tree) * (1.0 if length <= max_norm else max_norm / length)


def torch_params(tree):
    """Make a parameter for each leaf, whose gradient is the leaf."""
    params = []
    for leaf in jax.tree.leaves(tree):
        # torch knows no bfloat16 of NumPy's, and shares no memory here.
        grad = torch.tensor(np.asarray(leaf, np.float64)).to(
            getattr(torch, str(leaf.dtype))
        )
        params.append(torch.zeros_like(grad).requires_grad_())
        params[-1].grad = grad
    return params


def torch_grads(params, like):
    leaves, treedef = jax.tree.flatten(like)
    grads = [p.grad.double().numpy() for p in params]
    grads = [x.astype(leaf.dtype) for x, leaf in zip(grads, leaves, strict=True)]
    return jax.tree.unflatten(treedef, grads)


def torch_clip_grad_norm(tree, *args, **kwargs):
    params = torch_params(tree)
    norm = torch.nn.utils.clip_grad_norm_(params, *args, **kwargs)
    return torch_grads(params, tree), norm.item()


# ---- the notebook's numbers ----------------------------------------------------------


def updates_of(transformation):
    return lambda grads: transformation.update(grads, transformation.init(grads))[0]


WAYS = {
    "clip_grad_norm": lambda grads: clip_grad_norm(grads, 1.0)[0],
    "clip_grad_norm, eps=0": lambda grads: clip_grad_norm(grads, 1.0, eps=0.0)[0],
    "clip_grads_with_norm": lambda grads: clip_grads_with_norm(
        grads, 1.0, global_norm(grads)
    ),
    "clip_by_global_norm": updates_of(clip_by_global_norm(1.0)),
    "clip_by_global_norm, eps=0": updates_of(clip_by_global_norm(1.0, eps=0.0)),
    "optax.clip_by_global_norm": updates_of(optax.clip_by_global_norm(1.0)),
}


@pytest.mark.parametrize("clip", WAYS.values(), ids=WAYS)
def test_every_way_to_clip_gives_the_numbers_that_the_notebook_printed(clip):
    clipped = clip(jax.tree.map(jnp.asarray, NOTEBOOK_GRADIENTS))
    assert_trees_close(clipped, NOTEBOOK_CLIPPED, rtol=0.0, atol=NOTEBOOK_ATOL)


def test_the_norm_of_the_notebooks_gradients():
    _, norm = clip_grad_norm(NOTEBOOK_GRADIENTS, 1.0)
    np.testing.assert_allclose(norm, 25.35308, rtol=1e-6)


# ---- torch ---------------------------------------------------------------------------


def full_floats(low, high):
    """Draw float32 numbers whose last bits are not 0, as `st.floats` likes them."""
    mantissas, exponents = st.integers(2**23, 2**24 - 1), st.integers(low, high)
    return st.builds(math.ldexp, mantissas, exponents.map(lambda x: x - 24))


# Coefficients are normal numbers then; about others see the test after the next one.
max_norms = full_floats(-20, 20)
total_norms = st.just(0.0) | full_floats(-40, 100)
signed = st.tuples(full_floats(-10, 10), st.sampled_from([1, -1])).map(math.prod)
COMPILED = {
    "eager": clip_grads_with_norm,
    "jit": jax.jit(clip_grads_with_norm),
    "jit, max_norm=0.3": jax.jit(lambda g, _, n: clip_grads_with_norm(g, 0.3, n)),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("how", COMPILED)
@given(
    numbers=st.lists(signed, min_size=8, max_size=8),
    max_norm=max_norms,
    total_norm=total_norms,
)
# Where a number times its reciprocal is not 1: in float32, and in float64.
@example([3.0] * 8, 41.0, 41.0)
@example([3.0] * 8, 49.0, 49.0)
def test_clip_grads_with_norm_is_torchs_to_the_bit(
    how, dtype, numbers, max_norm, total_norm
):
    if "0.3" in how:
        max_norm = 0.3
    grads = tree_of(numbers, dtype)
    params = torch_params(grads)
    torch.nn.utils.clip_grads_with_norm_(
        params, max_norm, torch.tensor(total_norm, dtype=getattr(torch, dtype))
    )
    expected = torch_grads(params, grads)
    # XLA flushes subnormal numbers to zero, with their sign; torch keeps them.
    for leaf in expected.values():
        leaf[np.abs(leaf) < np.finfo(dtype).tiny] *= 0.0
    with jax.enable_x64(dtype == "float64"):
        norm = np.asarray(total_norm, dtype)
        assert_trees_equal(COMPILED[how](grads, max_norm, norm), expected)


@settings(max_examples=50)
@given(eights, full_floats(-125, -60))
def test_coefficients_below_the_normal_numbers_lose_no_digits(numbers, max_norm):
    # They are down to 1e-53; torch loses digits of the subnormal ones, and XLA all.
    grads = tree_of(np.float32(1e14) + np.float32(1e9) * np.float32(numbers))
    expected = naive_clip(grads, max_norm)
    norm = np.float32(naive_norm(grads))
    for clipped in (
        clip_grads_with_norm(grads, max_norm, norm, eps=0.0),
        clip_grad_norm(grads, max_norm, eps=0.0)[0],
    ):
        np.testing.assert_allclose(flat(clipped), expected, rtol=FEW_ULPS, atol=TINY)


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, INF])
@settings(max_examples=50)
@given(numbers=eights, max_norm=max_norms)
def test_clip_grad_norm_is_torchs(norm_type, numbers, max_norm):
    grads = tree_of(numbers)
    clipped, norm = clip_grad_norm(grads, max_norm, norm_type)
    expected, expected_norm = torch_clip_grad_norm(grads, max_norm, norm_type)
    np.testing.assert_allclose(norm, expected_norm, rtol=2e-6, atol=TINY)
    assert_trees_close(clipped, expected, rtol=2e-6, atol=TINY)


def test_three_and_four_at_five_shrink_as_in_torch_and_not_without_eps():
    grads = {"w": np.float32([3.0, 4.0])}
    shrunk = {"w": np.float32([2.9999993, 3.9999990])}
    assert_trees_equal(torch_clip_grad_norm(grads, 5.0)[0], shrunk)
    assert_trees_equal(clip_grad_norm(grads, 5.0)[0], shrunk)
    assert_trees_equal(clip_grad_norm(grads, 5.0, eps=0.0)[0], grads)


def test_a_norm_equal_to_max_norm_clips_nothing_without_eps():
    # 49 * (1 / 49) is less than 1, in float32 and in float64.
    for number in (49.0, 41.0, 0.1, 1e-30, 3e38):
        grads = [np.float32([number])]
        assert_trees_equal(clip_grad_norm(grads, number, eps=0.0)[0], grads)
        assert_trees_equal(
            clip_grads_with_norm(grads, number, np.float32(number), eps=0.0), grads
        )


# Differs from `clip_grad_norm_`, one line of the docstring after the other.


def test_torch_changes_its_gradients_and_this_does_not():
    grads = {"w": np.float32([3.0, 4.0])}
    before = {"w": grads["w"].copy()}
    clip_grad_norm(grads, 1.0)
    clip_grads_with_norm(grads, 1.0, 5.0)
    clip_grad_value(grads, 1.0)
    assert_trees_equal(grads, before)


def test_torch_rounds_the_norm_of_narrow_gradients_and_this_does_not():
    grads = {"w": np.ones((8, 75), jnp.bfloat16)}
    _, norm = clip_grad_norm(grads, 1.0)
    np.testing.assert_allclose(norm, math.sqrt(600), rtol=FEW_ULPS)
    assert torch_clip_grad_norm(grads, 1.0)[1] == 24.5


def test_torch_zeroes_finite_gradients_with_an_infinite_norm_and_this_clips_them():
    grads = {"w": np.float32([3e38, -3e38])}
    assert not torch_clip_grad_norm(grads, 1.0)[0]["w"].any()
    clipped, norm = clip_grad_norm(grads, 1.0)
    assert norm == INF
    np.testing.assert_allclose(clipped["w"], [0.5**0.5, -(0.5**0.5)], rtol=FEW_ULPS)


@pytest.mark.parametrize("norm_type", [1.0, 2.0])
def test_max_norm_inf_changes_nothing_and_gives_nan_in_torch(norm_type):
    grads = {"w": np.float32([3e38, -3e38])}
    assert np.isnan(torch_clip_grad_norm(grads, INF, norm_type)[0]["w"]).all()
    assert_trees_equal(clip_grad_norm(grads, INF, norm_type)[0], grads)
    traced = jax.jit(lambda grads, m: clip_grad_norm(grads, m, norm_type)[0])
    assert_trees_equal(traced(grads, INF), grads)
    nan = {"w": np.float32([np.nan, INF, 1.0])}
    assert_trees_equal(clip_grad_norm(nan, INF, norm_type)[0], nan, equal_nan=True)


def test_an_infinite_total_norm_gives_what_torch_gives():
    grads = {"w": np.float32([3e38, 1.0, -2.0])}
    params = torch_params(grads)
    torch.nn.utils.clip_grads_with_norm_(params, 1.0, torch.tensor(INF))
    clipped = clip_grads_with_norm(grads, 1.0, INF)
    assert_trees_equal(clipped, torch_grads(params, grads))
    assert_trees_equal(clip_grads_with_norm(grads, INF, INF), grads)


def test_nan_and_inf_elements_go_through_the_norm_as_in_torch():
    for elements in ([np.nan, 1.0], [INF, 1.0], [-INF, np.nan]):
        grads = {"w": np.float32(elements), "v": np.float32([2.0])}
        expected, _ = torch_clip_grad_norm(grads, 1.0)
        assert_trees_equal(clip_grad_norm(grads, 1.0)[0], expected, equal_nan=True)


def test_torch_changes_the_sign_for_a_negative_max_norm_and_this_refuses_it():
    grads = {"w": np.float32([3.0, 4.0])}
    assert torch_clip_grad_norm(grads, -1.0)[0]["w"][0] < 0
    with pytest.raises(ValueError, match=r"clip_grad_norm\(max_norm=-1.0\): expected"):
        clip_grad_norm(grads, -1.0)


# ---- the formula ---------------------------------------------------------------------


@settings(max_examples=60)
@given(eights, max_norms)
def test_without_eps_it_is_the_books_and_optaxs_formula(numbers, max_norm):
    grads = tree_of(numbers)
    clipped, norm = clip_grad_norm(grads, max_norm, eps=0.0)

    params = torch_params(grads)
    book_norm = torchref.grad_clipping.grad_clipping(
        SimpleNamespace(params=params), max_norm
    )
    np.testing.assert_allclose(norm, book_norm, rtol=FEW_ULPS, atol=1e-19)
    # Below 1e-19 the sum of squares of the book and of Optax underflows.
    if norm > 1e-15:
        # Where rounding decides whether to clip, it clips by a rounding.
        assert_trees_close(clipped, torch_grads(params, grads), rtol=2e-6, atol=TINY)
        optax_clipped = updates_of(optax.clip_by_global_norm(max_norm))
        optax_clipped = optax_clipped(jax.tree.map(jnp.asarray, grads))
        assert_trees_close(clipped, optax_clipped, rtol=2e-6, atol=TINY)


thresholds = st.sampled_from([0.0, 1e-30, 1e-9, 1.0, 100.0, 1e25, 3e38, INF])


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, INF])
@pytest.mark.parametrize("eps", [0.0, 1e-6])
@settings(max_examples=60)
@given(numbers=extreme_eights, max_norm=thresholds | max_norms)
@example([1e-30] * 4 + [1e20] * 4, 1.0)
@example([3e38] * 8, 1.0)
@example([1.5e19] * 8, 1e-9)
@example([0.0] * 8, 0.0)
def test_finite_gradients_of_any_magnitude_are_clipped(
    norm_type, eps, numbers, max_norm
):
    grads = tree_of(numbers)
    clipped, _ = clip_grad_norm(grads, max_norm, norm_type, eps=eps)
    expected = naive_clip(grads, max_norm, norm_type, float(np.float32(eps)))
    # Numbers below TINY are flushed to zero; and beside 1e38, before they are scaled.
    floor = TINY * max(1.0, max_norm) if max_norm < INF else 0.0
    np.testing.assert_allclose(flat(clipped), expected, rtol=3e-6, atol=floor)


@pytest.mark.parametrize("norm_type", [1.0, 2.0, INF])
@settings(max_examples=60)
@given(numbers=extreme_eights, max_norm=max_norms)
def test_the_norm_stays_below_the_threshold_and_the_second_clip_does_nothing(
    norm_type, numbers, max_norm
):
    grads = tree_of(numbers)
    once, norm = clip_grad_norm(grads, max_norm, norm_type, eps=0.0)
    assert naive_norm(once, norm_type) <= max_norm * (1 + FEW_ULPS)
    if norm <= max_norm:
        assert_trees_equal(once, grads)
    twice, _ = clip_grad_norm(once, max_norm, norm_type, eps=0.0)
    assert_trees_close(twice, once, rtol=FEW_ULPS, atol=TINY)
    # One coefficient for all: no element gains on another.
    a, b = flat(grads), flat(once)
    largest = np.argmax(np.abs(a))
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(
            b / b[largest],
            a / a[largest],
            rtol=FEW_ULPS,
            atol=TINY * max(1.0, 4 / max_norm),
        )


def test_a_threshold_of_0_gives_0_and_nan_in_optax():
    for numbers in ([0.0] * 8, [3.0] * 8, [1e38] * 8):
        for eps in (0.0, 1e-6):
            clipped, _ = clip_grad_norm(tree_of(numbers), 0.0, eps=eps)
            assert_trees_equal(clipped, tree_of([0.0] * 8))
    zeros = jnp.zeros(2)
    assert jnp.isnan(updates_of(optax.clip_by_global_norm(0.0))(zeros)).all()


# ---- dtypes and leaves ---------------------------------------------------------------

KINDS = ["float", "numpy scalar", "numpy array", "array", "traced", "traced array"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bf16", "f16"])
def test_narrow_gradients_keep_their_dtype_whatever_the_threshold_is(dtype, kind):
    # 300 is a number whose square float16 cannot hold.
    grads = {"w": jnp.array([300.0, 400.0], dtype), "b": jnp.zeros((), dtype)}
    make = {
        "numpy scalar": np.float64,
        "numpy array": lambda x: np.array(x, np.float64),
        "array": lambda x: jnp.array(x, jnp.float32),
        "traced array": lambda x: jnp.array(x, jnp.float32),
    }
    max_norm = make.get(kind, float)(1.0)
    clip = {
        "norm": lambda grads, limit: clip_grad_norm(grads, limit)[0],
        "with_norm": lambda grads, limit: clip_grads_with_norm(grads, limit, 500.0),
        "value": clip_grad_value,
    }
    for name, function in clip.items():
        function = jax.jit(function) if "traced" in kind else function
        expected = [1.0, 1.0] if name == "value" else [0.6, 0.8]
        expected = {"w": jnp.array(expected, dtype), "b": grads["b"]}
        assert_trees_equal(function(grads, max_norm), expected)


def test_optax_fails_on_a_traced_threshold_for_narrow_gradients():
    grads = jnp.array([3.0, 4.0], jnp.bfloat16)
    update = jax.jit(lambda g, m: updates_of(optax.clip_by_global_norm(m))(g))
    with pytest.raises(TypeError, match="select"):
        update(grads, jnp.float32(1.0))


def test_optax_zeroes_a_float16_gradient_of_300_and_this_clips_it():
    grads = [jnp.array([300.0], jnp.float16), jnp.array([400.0], jnp.float16)]
    zeroed = updates_of(optax.clip_by_global_norm(1.0))(grads)
    assert_trees_equal(zeroed, [jnp.zeros(1, jnp.float16)] * 2)
    expected = [jnp.array([x], jnp.float16) for x in (0.6, 0.8)]
    assert_trees_equal(clip_grad_norm(grads, 1.0)[0], expected)


def test_mixed_trees_share_one_norm_and_keep_their_dtypes():
    with jax.enable_x64(True):
        grads = {
            "f64": jnp.float64([3.0]),
            "f32": jnp.float32([4.0]),
            "bf16": jnp.bfloat16([12.0]),
            "f16": jnp.float16([0.0, 84.0]),
            "c64": jnp.complex64([132.0j]),
            "empty": jnp.zeros((0, 2)),
        }
        clipped, norm = clip_grad_norm(grads, 157.0 / 2, eps=0.0)
        assert (norm.dtype, float(norm)) == (np.float64, 157.0)
        assert_trees_equal(clipped, jax.tree.map(lambda x: x * 0.5, grads))


def test_complex_gradients_are_scaled_by_a_real_number():
    grads = [np.complex64([3.0 + 4.0j, 0.0]), np.complex64(12.0j)]
    clipped, norm = clip_grad_norm(grads, 6.5, eps=0.0)
    assert float(norm) == 13.0
    assert_trees_equal(clipped, [grads[0] / 2, grads[1] / 2])
    # No part of an infinite element becomes NaN by the other one.
    clipped = clip_grads_with_norm([np.complex64(complex(INF, 1.0))], 1.0, 2.0)
    assert clipped[0] == complex(INF, 0.49999976)


def test_what_is_no_array_stays_where_it_is():
    float0 = np.zeros(2, jax.dtypes.float0)
    tree = {"w": np.float32([3.0]), "x": 4.0, "n": None, "m": optax.MaskedNode()}
    tree["i"] = float0
    for clipped in (
        clip_grad_norm(tree, 1.0, eps=0.0)[0],
        clip_grads_with_norm(tree, 1.0, 5.0, eps=0.0),
        clip_grad_value(tree, 0.5),
    ):
        assert clipped.keys() == tree.keys()
        assert clipped["i"] is float0
        assert (clipped["n"], clipped["m"]) == (None, optax.MaskedNode())
        assert clipped["x"].dtype == clipped["w"].dtype == np.float32


@pytest.mark.parametrize("tree", [{}, None, [None], np.zeros((0, 3), np.float32)])
def test_a_tree_without_elements_has_nothing_to_clip(tree):
    for max_norm in (0.0, 1.0, INF):
        clipped, norm = clip_grad_norm(tree, max_norm)
        assert norm == 0.0
        assert jax.tree.structure(clipped) == jax.tree.structure(tree)
        clip_grad_value(tree, max_norm)
        clip_grads_with_norm(tree, max_norm, 0.0)


FUNCTIONS = {
    "clip_grad_norm": lambda g, limit=1.0, **kw: clip_grad_norm(g, limit, **kw)[0],
    "clip_grads_with_norm": lambda g, limit=1.0, **kw: clip_grads_with_norm(
        g, limit, 5.0, **kw
    ),
    "clip_grad_value": lambda g, limit=1.0: clip_grad_value(g, limit),
}
LIMITS = {
    "clip_grad_norm": "max_norm",
    "clip_grads_with_norm": "max_norm",
    "clip_grad_value": "clip_value",
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_leaf_that_cannot_be_clipped_is_named(name):
    for bad, kind in ((np.int32([1]), "int32"), (True, "bool"), ("1", "str")):
        message = rf"{name}: the leaf \['w'\]\[0\] is of type {kind}; expected a real"
        with pytest.raises(TypeError, match=message):
            FUNCTIONS[name]({"v": np.ones(1), "w": [bad]})


# ---- thresholds ----------------------------------------------------------------------


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("limit", [-1.0, -INF, math.nan, np.float32(-1), jnp.array(-1)])
def test_a_threshold_below_0_is_refused(name, limit):
    message = rf"{name}\({LIMITS[name]}={float(limit)}\): expected a number ≥ 0. Use"
    with pytest.raises(ValueError, match=message):
        FUNCTIONS[name]([1.0], limit)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_threshold_below_0_gives_nan_where_it_is_traced(name):
    for limit in (-1.0, math.nan):
        for tree in (np.float32([3.0, 0.0]), jnp.bfloat16([3.0, 0.0])):
            assert jnp.isnan(jax.jit(FUNCTIONS[name])(tree, limit)).all()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_threshold_that_is_no_scalar_is_refused(name):
    for limit in (np.ones(1), jnp.ones((1, 2)), np.ones(0)):
        message = rf"{name}\({LIMITS[name]}=...\): got an array of shape \("
        with pytest.raises(TypeError, match=message):
            FUNCTIONS[name]([1.0], limit)
        with pytest.raises(TypeError, match=message):
            jax.jit(FUNCTIONS[name])([1.0], limit)
    for limit, kind in (("1", "str"), (None, "NoneType"), (1j, "complex"), ([1], "li")):
        message = rf"{name}\({LIMITS[name]}=.*\): expected a real number .*, got {kind}"
        with pytest.raises(TypeError, match=message):
            FUNCTIONS[name]([1.0], limit)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_threshold_is_any_real_number(name):
    grads = np.float32([3.0, -4.0])
    expected = FUNCTIONS[name](grads, 2.0)
    for limit in (2, np.int64(2), np.array(2.0), jnp.array(2), torch.tensor(2.0)):
        assert_trees_equal(FUNCTIONS[name](grads, limit), expected)
    assert_trees_equal(FUNCTIONS[name](grads, 10**20), grads)


def test_a_total_norm_that_is_no_scalar_is_refused():
    message = r"clip_grads_with_norm\(total_norm=...\): got an array of shape \(1,\)"
    with pytest.raises(TypeError, match=message):
        clip_grads_with_norm([1.0], 1.0, np.ones(1))
    with pytest.raises(TypeError, match=r"total_norm=None\): expected a real number"):
        clip_grads_with_norm([1.0], 1.0, None)


@pytest.mark.parametrize("name", ["clip_grad_norm", "clip_grads_with_norm"])
@pytest.mark.parametrize("eps", [-1e-6, INF, math.nan])
def test_an_eps_that_is_no_small_number_is_refused(name, eps):
    with pytest.raises(ValueError, match=rf"{name}\(eps={eps}\): expected a finite"):
        FUNCTIONS[name]([1.0], eps=eps)


def test_a_norm_type_that_bounds_nothing_is_refused():
    with pytest.raises(ValueError, match=r"clip_grad_norm\(norm_type=0\): expected a"):
        clip_grad_norm([1.0], 1.0, 0)


def test_eps_may_be_traced():
    grads = np.float32([3.0, 4.0])
    clip = jax.jit(lambda grads, eps: clip_grad_norm(grads, 5.0, eps=eps)[0])
    for eps in (0.0, 1e-6, 5.0):
        assert_trees_equal(clip(grads, eps), clip_grad_norm(grads, 5.0, eps=eps)[0])


# ---- by value ------------------------------------------------------------------------


@given(extreme_eights, thresholds | max_norms)
def test_clip_grad_value_is_torchs_to_the_bit(numbers, clip_value):
    grads = tree_of(numbers)
    params = torch_params(grads)
    torch.nn.utils.clip_grad_value_(params, clip_value)
    assert_trees_equal(clip_grad_value(grads, clip_value), torch_grads(params, grads))


def test_clip_grad_value_keeps_nan_and_bounds_inf():
    clipped = clip_grad_value(np.float32([np.nan, INF, -INF, 0.5]), 1.0)
    np.testing.assert_array_equal(clipped, [np.nan, 1.0, -1.0, 0.5])


def test_clip_grad_value_takes_more_than_float16_holds():
    grads = jnp.array([6e4, -1.0], jnp.float16)
    assert_trees_equal(clip_grad_value(grads, 1e6), grads)


def test_clip_grad_value_refuses_complex_leaves():
    message = r"clip_grad_value: the leaf \['c'\] is of type complex64, and complex num"
    with pytest.raises(TypeError, match=message):
        clip_grad_value({"a": 1.0, "c": jnp.ones(1, jnp.complex64)}, 1.0)


# ---- derivatives ---------------------------------------------------------------------


def naive_derivative(x, weights, max_norm, power, eps):
    """Return the derivative of ``sum(weights * clipped x)`` in float64."""
    x, norm = np.asarray(x, np.float64), naive_norm(x, power)
    if norm + eps <= max_norm:
        return weights
    if power == INF:
        direction = np.where(np.abs(x) == norm, np.sign(x), 0.0)
    else:
        direction = np.sign(x) * (np.abs(x) / norm) ** (power - 1)
    coef = max_norm / (norm + eps)
    return coef * (weights - (weights @ x) / (norm + eps) * direction)


def finite_differences(function, x, step=1e-6):
    """Return the Jacobian of a function by central differences."""
    return np.stack(
        [
            (function(x + h) - function(x - h)) / (2 * step)
            for h in step * np.eye(len(x))
        ],
        axis=-1,
    )


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, INF])
def test_the_derivatives_are_those_of_finite_differences(norm_type):
    # The last one is the threshold.
    arguments = np.array([3.0, -2.0, 0.5, -1.5, 1.0])

    def clip(arguments):
        v, w, max_norm = jnp.split(arguments, [2, 4])
        (v, w), norm = clip_grad_norm([v, w[:, None]], max_norm[0], norm_type)
        return jnp.concatenate([v, w.ravel(), norm[None]])

    def naive(arguments):
        grads, max_norm = arguments[:4], arguments[4]
        clipped = naive_clip(grads, max_norm, norm_type, eps=1e-6)
        return np.append(clipped, naive_norm(grads, norm_type))

    with jax.enable_x64(True):
        expected = finite_differences(naive, arguments)
        both = jax.jit(lambda x: (jax.jacfwd(clip)(x), jax.jacrev(clip)(x)))
        for got in both(arguments):
            np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-8)
        if norm_type == 2.0:
            second = jax.jit(jax.jacfwd(jax.jacrev(clip)))(arguments)
            expected = finite_differences(lambda x: both(x)[1], arguments)
            np.testing.assert_allclose(second, expected, rtol=1e-8, atol=1e-8)


WEIGHTS = np.array([1.0, -0.5, 2.0])


def weighted_clip(x, max_norm, norm_type, eps):
    clipped, _ = clip_grad_norm([x], max_norm, norm_type, eps=eps)
    return jnp.sum(clipped[0] * WEIGHTS.astype(clipped[0].dtype))


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, INF])
def test_the_derivative_is_right_at_every_magnitude(norm_type):
    gradient = jax.jit(
        lambda x, max_norm, eps: jax.grad(weighted_clip)(x, max_norm, norm_type, eps)
    )
    for scale in (1e-33, 1e-20, 1e-10, 1.0, 1e10, 1e18, 1e25, 1e37):
        for share in (0.5, 1e-3, 2.0):
            x = np.float32([3.0, -4.0, 0.5]) * np.float32(scale)
            max_norm = float(np.float32(share * scale))
            for eps in (0.0, float(np.float32(1e-6))):
                got = gradient(x, max_norm, eps)
                expected = naive_derivative(x, WEIGHTS, max_norm, norm_type, eps)
                # Terms cancel, the largest of which is about `share`.
                np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6 * share)


MAGNITUDES = [0.0, TINY, 1e-30, 1e-20, 1.0, 1e20, 1e30, 3e38]


@pytest.mark.parametrize("mode", [jax.jacrev, jax.jacfwd], ids=["reverse", "forward"])
@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, INF])
def test_the_derivatives_of_finite_gradients_are_finite(norm_type, mode):
    def jacobian(x, max_norm, eps):
        return mode(lambda x: clip_grad_norm(x, max_norm, norm_type, eps=eps)[0])(x)

    batch = np.float32(MAGNITUDES)[:, None] * np.float32([1.0, -0.5, 0.0])
    batched = jax.jit(jax.vmap(jacobian, in_axes=(0, None, None)))
    for max_norm in (0.0, 1e-21, 1.0, 3e38, INF):
        for eps in (0.0, 1e-6):
            assert jnp.isfinite(batched(batch, max_norm, eps)).all()


def test_the_derivative_of_each_in_a_batch_is_the_derivative_of_it_alone():
    gradient = jax.grad(lambda x: weighted_clip(x, 1.0, 2.0, 1e-6))
    batch = np.float32(MAGNITUDES)[:, None] * np.float32([1.0, -0.5, 0.0])
    together, alone = jax.jit(jax.vmap(gradient))(batch), jax.jit(gradient)
    expected = np.stack([alone(x) for x in batch])
    np.testing.assert_allclose(together, expected, rtol=1e-6, atol=TINY)


@pytest.mark.parametrize("norm_type", [1.0, 2.0, INF])
def test_at_zero_gradients_the_clip_is_a_multiplication(norm_type):
    def clip(x, eps):
        return clip_grad_norm(x, 1e-7, norm_type, eps=eps)[0]

    jacobian = jax.jit(jax.jacobian(clip))
    zeros = np.zeros(2, np.float32)
    # By max_norm / (0 + eps) with eps, by 1 without.
    for eps, coefficient in ((1e-6, 0.1), (0.0, 1.0)):
        np.testing.assert_allclose(
            jacobian(zeros, eps), coefficient * np.eye(2), rtol=FEW_ULPS
        )
    if norm_type == 2.0:
        assert jnp.isfinite(jax.jit(jax.hessian(clip))(zeros, 1e-6)).all()


def test_in_optax_the_derivative_at_zero_gradients_is_nan():
    clip = updates_of(optax.clip_by_global_norm(1.0))
    assert jnp.isnan(jax.jit(jax.jacobian(clip))(jnp.zeros(2))).any()


def test_a_step_of_meta_learning_from_zero_gradients():
    def loss_after_a_step(w):
        grad = jax.grad(lambda w: jnp.sum(w**2))(w)
        return jnp.sum((w - 0.1 * clip_grad_norm(grad, 1.0)[0] - 1.0) ** 2)

    gradient = jax.jit(jax.grad(loss_after_a_step))(np.zeros(2, np.float32))
    np.testing.assert_allclose(gradient, [-1.6, -1.6], rtol=1e-6)


# ---- the modes of JAX ----------------------------------------------------------------


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, INF])
def test_finite_gradients_trouble_neither_debug_nans_nor_debug_infs(norm_type):
    @jax.jit
    def clip_and_differentiate(x, max_norm):
        clipped, norm = clip_grad_norm([x], max_norm, norm_type)
        gradient = jax.grad(weighted_clip)(x, max_norm, norm_type, 0.0)
        return clipped, gradient, clip_grads_with_norm([x], max_norm, norm)

    with jax.debug_nans(True), jax.debug_infs(True):
        for magnitude in (0.0, TINY, 1e-30, 1.0, 1e20, 1e38):
            x = np.float32([1.0, -0.5, 0.0]) * np.float32(magnitude)
            for max_norm in (0.0, 1.0):
                clip_grad_norm([x], max_norm, norm_type)
                jax.block_until_ready(clip_and_differentiate(x, max_norm))


def test_gradients_that_are_not_finite_are_found_by_debug_nans():
    with jax.debug_nans(True), pytest.raises(FloatingPointError, match="nan"):
        clip_grad_norm([np.float32([np.nan])], 1.0)


def test_optax_troubles_debug_nans_with_zero_gradients():
    with jax.debug_nans(True), pytest.raises(FloatingPointError, match="nan"):
        updates_of(optax.clip_by_global_norm(1.0))(jnp.zeros(2))


@pytest.mark.parametrize("x64", [False, True], ids=["x32", "x64"])
def test_strict_promotion_of_dtypes_and_ranks_is_kept(x64):
    with (
        jax.enable_x64(x64),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
    ):
        grads = {
            "bf16": jnp.ones((2, 3), jnp.bfloat16),
            "f16": jnp.ones(3, jnp.float16),
            "f32": jnp.ones((), jnp.float32),
            "wide": jnp.ones((1, 2), float),
        }

        def trace(function, *args):
            # The rules hold while a function is traced.
            jax.eval_shape(function, *args)

        for limit in (1.0, jnp.float32(1.0), jnp.bfloat16(1.0)):
            for norm_type in (1.0, 2.0, 3.0, INF):
                clip = functools.partial(clip_grad_norm, norm_type=norm_type)
                trace(clip, grads, limit)
            trace(lambda g, m, p: clip_grad_norm(g, m, p, eps=p), grads, limit, limit)
            trace(clip_grads_with_norm, grads, limit, limit)
            trace(clip_grad_value, grads, limit)
        trace(jax.grad(lambda g: clip_grad_norm(g, 1.0)[0]["f32"]), grads)
        grads["complex"] = jnp.ones(2, complex)
        clip_grad_norm(grads, np.float64(1.0))
        clip_grad_norm(grads, 1, error_if_nonfinite=True)


@pytest.mark.parametrize("norm_type", [1.0, 2.0, INF])
def test_jit_and_eager_calls_agree_to_the_bit(norm_type):
    jitted = jax.jit(lambda grads, m: clip_grad_norm(grads, m, norm_type))
    for scale in (1e-30, 1.0, 1e30):
        grads = tree_of(np.random.default_rng(0).normal(size=8) * scale)
        assert_trees_equal(jitted(grads, 1.0), clip_grad_norm(grads, 1.0, norm_type))


def test_an_eager_call_compiles_one_program_once(caplog):
    grads = [jnp.ones(n) for n in range(1, 5)]
    calls = {
        "global_norm": lambda scale: global_norm(grads),
        "clip_grad_norm": lambda scale: clip_grad_norm(grads, scale),
        "clip_grads_with_norm": lambda scale: clip_grads_with_norm(grads, scale, 5.0),
        "clip_grad_value": lambda scale: clip_grad_value(grads, scale),
    }
    jax.clear_caches()  # Single operations would be compiled already.
    with jax.log_compiles(True), caplog.at_level(logging.WARNING, logger="jax"):
        for name, call in calls.items():
            caplog.clear()
            call(1.0)
            compiled = [r for r in caplog.messages if r.startswith("Compiling")]
            assert len(compiled) == 1, f"{name}: {compiled}"
            with jax.no_tracing():
                call(1.0)
                call(2.0)

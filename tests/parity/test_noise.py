"""Ulps by counting, the noise rule on cases worked out by hand, its calibration."""

import math
import re
import subprocess
import sys
from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from jaxclip.parity import (
    ParityError,
    assert_trees_close,
    assert_trees_equal,
    compare_to_noise,
    compare_trees,
    ulp_distance,
)

BFLOAT16 = np.dtype(jnp.bfloat16)
EPS = float(np.finfo(np.float32).eps)
TINY = float(np.finfo(np.float32).tiny)
FARTHEST = 2**64 - 1

# ---- ulps ----------------------------------------------------------------------------


def all_numbers(dtype):
    """Every number of a 16-bit dtype but NaN, in ascending order, zero once."""
    patterns = np.arange(2**16, dtype=np.uint16).view(dtype)
    with np.errstate(invalid="ignore"):  # which a signalling NaN raises
        return np.unique(patterns[~np.isnan(patterns)].astype(np.float64)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16], ids=str)
def test_ulps_count_the_numbers_in_between(dtype):
    numbers = all_numbers(dtype)
    rank = np.arange(len(numbers), dtype=np.uint64)
    assert (ulp_distance(numbers, np.full_like(numbers, -np.inf)) == rank).all()
    assert (ulp_distance(numbers[1:], numbers[:-1]) == 1).all()
    i, j = np.random.default_rng(0).integers(len(numbers), size=(2, 10_000))
    assert (ulp_distance(numbers[i], numbers[j]) == np.abs(i - j)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(data=st.data())
def test_the_next_float_is_one_ulp_away(dtype, data):
    width = np.dtype(dtype).itemsize * 8
    x = dtype(data.draw(st.floats(allow_nan=False, allow_infinity=False, width=width)))
    with np.errstate(over="ignore"):  # the next float of the last one is infinity
        above, below = (np.nextafter(x, dtype(inf)) for inf in (np.inf, -np.inf))
    assert ulp_distance(x, above) == ulp_distance(below, x) == 1
    assert ulp_distance(below, above) == 2


@given(st.lists(st.floats(allow_nan=False), min_size=3, max_size=3).map(sorted))
@example([-np.inf, -0.0, np.inf])
@example([-np.inf, 0.0, np.inf])
def test_ulps_add_up_along_the_line(points):
    a, b, c = np.array(points)
    through = int(ulp_distance(a, b)) + int(ulp_distance(b, c))
    assert through == int(ulp_distance(a, c)) == int(ulp_distance(c, a)) < FARTHEST


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16, np.float32, np.float64])
def test_ulps_at_zero_infinity_and_nan(dtype):
    dtype = np.dtype(dtype)
    zero, inf, nan = (np.array(x, dtype) for x in (0.0, np.inf, np.nan))
    assert ulp_distance(zero, -zero) == 0
    assert ulp_distance(inf, inf) == 0
    assert ulp_distance(np.array(jnp.finfo(dtype).max, dtype), inf) == 1
    smallest = np.array(jnp.finfo(dtype).smallest_subnormal, dtype)
    assert ulp_distance(smallest, -smallest) == 2
    assert ulp_distance(inf, -inf) == 2 * int(inf.view(f"u{dtype.itemsize}"))
    for other in (nan, -nan, zero, inf):
        assert ulp_distance(nan, other) == ulp_distance(other, nan) == FARTHEST


def test_ulps_of_strided_and_empty_arrays():
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert ulp_distance(x.T, x.T[::-1]).shape == (4, 3)
    assert ulp_distance(x[:0], x[:0]).shape == (0, 4)


@pytest.mark.parametrize("dtype", [np.complex64, np.int32, np.bool_])
def test_ulps_are_refused_where_there_are_none(dtype):
    message = f"no ulps in {np.dtype(dtype)}, only in float16, bfloat16, float32, float"
    with pytest.raises(TypeError, match=message):
        ulp_distance(np.zeros(2, dtype), np.zeros(2, dtype))


def test_ulps_are_refused_between_different_shapes_and_dtypes():
    x = np.zeros(2, np.float32)
    with pytest.raises(
        ValueError, match=r"a is float32 .* \(2,\) and b is float32 .* "
    ):
        ulp_distance(x, x[:1])
    with pytest.raises(ValueError, match=r"and b is float64 of shape \(2,\)"):
        ulp_distance(x, x.astype(np.float64))


# ---- the rule ------------------------------------------------------------------------


def test_the_figures_are_those_of_the_formula():
    rng = np.random.default_rng(2)
    exact = rng.normal(size=(5, 7))
    candidate = (exact * (1 + 2e-6 * rng.normal(size=exact.shape))).astype(np.float32)
    reference = (exact * (1 + 5e-6 * rng.normal(size=exact.shape))).astype(np.float32)
    t, j, e = (x.astype(np.float64).ravel() for x in (reference, candidate, exact))
    noise = math.sqrt(sum((j - e) ** 2))
    assert noise > 4 * EPS * math.sqrt(sum(e**2))  # above the floor

    got = compare_to_noise(reference, candidate, exact, name="w", factor=3.0)
    assert (got.name, got.passed) == ("w", True)
    assert got.shapes == ((5, 7),) * 3
    assert got.dtypes == (np.float32, np.float32, np.float64)
    assert got.reference_error == pytest.approx(math.sqrt(sum((t - e) ** 2)))
    assert got.candidate_error == pytest.approx(noise)
    assert got.allowed == pytest.approx(3 * noise)
    assert got.ratio == pytest.approx(got.reference_error / noise)
    assert got.peak_ratio == pytest.approx(max(abs(t - e)) / max(abs(j - e)))
    assert got.max_abs_diff == max(abs(t - j))
    assert got.max_abs_index == np.unravel_index(np.argmax(abs(t - j)), (5, 7))
    assert got.max_rel_diff == max(abs(t - j) / abs(t))
    assert got.max_ulps == max(ulp_distance(reference, candidate).ravel())


def test_the_floor_is_some_ulps_of_the_exact_elements():
    exact = np.full(100, 3.0)
    port = exact.astype(np.float32)
    got = compare_to_noise(port + np.float32(1e-6), port, exact, floor_ulps=2.0)
    assert got.candidate_error == 0
    assert got.allowed == pytest.approx(4 * 2 * EPS * 3 * math.sqrt(100))
    assert got.ratio == pytest.approx(got.reference_error / (2 * EPS * 3 * 10))


@pytest.mark.parametrize(("errors", "passes"), [(15.9, True), (16.1, False)])
def test_a_scalar_may_be_sixteen_ulps_off(errors, passes):
    got = compare_to_noise(np.float32(1), np.float32(1), np.float64(1 + errors * EPS))
    assert got.ratio == pytest.approx(1, rel=1e-6)  # both are off, and alike
    reference = np.nextafter(np.float32(1), np.float32(2))
    for _ in range(math.floor(errors)):
        reference = np.nextafter(reference, np.float32(2))
    got = compare_to_noise(reference, np.float32(1), np.float64(1))
    assert got.passed == passes


def test_zero_is_zero_but_for_what_is_flushed():
    zeros = np.zeros((2, 2), np.float32)
    got = compare_to_noise(zeros, zeros, zeros.astype(np.float64))
    assert (got.passed, got.ratio, got.peak_ratio, got.candidate_ratio) == (
        True,
        0,
        0,
        0,
    )
    subnormal = np.full((2, 2), 1e-39, np.float32)
    assert compare_to_noise(subnormal, zeros, subnormal.astype(np.float64))
    assert compare_to_noise(zeros, subnormal, subnormal.astype(np.float64))
    assert not compare_to_noise(zeros + np.float32(1e-30), zeros, zeros.astype(float))


def test_noise_around_a_vanishing_gradient_is_compared_with_noise():
    # What float64 shows to be zero is rounding in float32: in a bias before a norm.
    rng = np.random.default_rng(3)
    exact = 1e-17 * rng.normal(size=50)
    reference, candidate = (1e-9 * rng.normal(size=(2, 50))).astype(np.float32)
    assert compare_to_noise(reference, candidate, exact)
    assert not compare_to_noise(10 * reference, candidate, exact)


def test_noise_that_lets_zeros_pass_fails():
    rng = np.random.default_rng(4)
    one, other = rng.normal(size=(2, 50))
    port = one.astype(np.float32)
    got = compare_to_noise(port, port, other)
    assert got.ratio == 1
    assert not got
    assert "noise leaves nothing to compare, or exact had another input" in str(got)


def test_a_port_that_is_right_in_float64_alone_fails():
    exact = np.random.default_rng(5).normal(size=50)
    reference = exact.astype(np.float32)
    candidate = exact.astype(BFLOAT16).astype(np.float32)
    got = compare_to_noise(reference, candidate, exact)
    assert got.ratio < 1 < 100 < got.candidate_ratio
    assert not got
    assert "candidate loses digits that reference keeps" in str(got)
    assert compare_to_noise(reference, candidate, exact, candidate_factor=1e5)


def test_a_small_error_everywhere_fails_below_a_peak_of_noise():
    exact = np.ones(10_000)
    reference = np.full(10_000, 1 + 2e-5, np.float32)
    candidate = np.where(np.arange(10_000) == 7, 1 + 1e-4, 1).astype(np.float32)
    got = compare_to_noise(reference, candidate, exact)
    assert got.peak_ratio < 1 < 4 < got.ratio
    assert not got


@pytest.mark.parametrize("side", ["reference", "candidate"])
def test_one_wrong_element_fails_below_the_floor_of_the_norm(side):
    exact = np.ones(1_000_000)
    sides = {name: exact.astype(np.float32) for name in ("reference", "candidate")}
    sides[side][42] += {"reference": 1e-3, "candidate": 1e-2}[side]
    got = compare_to_noise(**sides, exact=exact)
    assert got.ratio < 4
    assert got.candidate_error / (got.allowed / 4) <= 100
    assert not got


def test_subnormals_of_float16_are_numbers():
    exact = np.full(10, 1e-5)
    candidate = exact.astype(np.float16)
    assert compare_to_noise(candidate, candidate, exact)
    assert not compare_to_noise(3 * candidate, candidate, exact)


def test_equal_nans_are_no_ulps_apart():
    x = np.array([1, np.nan], np.float32)
    got = compare_to_noise(x, x, x.astype(np.float64), equal_nan=True)
    assert got.passed
    assert got.max_abs_diff == got.max_rel_diff == got.max_ulps == 0


def test_huge_values_do_not_overflow_into_a_pass():
    reference, candidate = np.full((2, 3), 1e38, np.float32)
    got = compare_to_noise(reference, candidate, np.full(3, 1e300))
    assert math.isfinite(got.reference_error)
    assert not got


def test_an_overflow_of_both_float32_sides_fails():
    inf = np.array([1, np.inf], np.float32)
    got = compare_to_noise(inf, inf, np.array([1, 1e39]))
    assert not got
    assert (
        "1 of 2 elements are not finite and differ, first at (1,): inf in ref"
        in str(got)
    )


def test_integers_and_booleans_must_be_equal():
    ids, mask = np.array([1, 2], np.int32), np.array([True, False])
    assert compare_to_noise(ids, ids, ids.astype(np.int64)).passed
    assert compare_to_noise(mask, mask, mask).passed
    assert "int32 does not round" in str(compare_to_noise(ids, ids, ids[::-1]))
    assert "dtype differs" in str(compare_to_noise(ids, ids, ids.astype(np.float64)))


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16], ids=str)
def test_narrower_floats_have_wider_floors(dtype):
    exact = np.random.default_rng(6).normal(size=1000)
    candidate = exact.astype(dtype)
    eps = float(jnp.finfo(dtype).eps)
    assert compare_to_noise((exact * (1 + eps)).astype(dtype), candidate, exact)
    assert not compare_to_noise(
        (exact * (1 + 20 * eps)).astype(dtype), candidate, exact
    )


@pytest.mark.parametrize("name", ["factor", "candidate_factor", "floor_ulps"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_a_factor_that_allows_all_or_nothing_is_refused(name, value):
    x = np.ones(2, np.float32)
    with pytest.raises(ValueError, match=f"{name}={value} must be more than 0"):
        compare_trees(x, x, x.astype(np.float64), **{name: value})


@pytest.mark.parametrize(("rtol", "atol"), [(-1.0, 0), (0, math.nan), (math.inf, 0)])
def test_a_tolerance_that_is_none_is_refused(rtol, atol):
    with pytest.raises(ValueError, match=r"[ar]tol=.* is no tolerance: give 0"):
        assert_trees_close(1.0, 1.0, rtol=rtol, atol=atol)


def test_a_tree_in_place_of_a_tensor_is_refused():
    x = np.ones(2, np.float32)
    with pytest.raises(TypeError, match="exact is a dict, not a tensor or an array"):
        compare_to_noise(x, x, {"x": x})


# ---- trees and reports ---------------------------------------------------------------


def test_containers_are_not_compared_but_paths_are():
    x, y = np.ones(2), np.zeros(3)
    assert_trees_equal(OrderedDict(b=(x, None), a=y), {"a": y, "b": [x]})
    with pytest.raises(ParityError, match=r"\['b'\]\[1\]: structure differs"):
        assert_trees_equal({"b": [x, x]}, {"b": [x]})


def test_keys_of_different_types_are_different_paths():
    with pytest.raises(ParityError, match=r"2 of 2 tensors FAIL"):
        assert_trees_equal({1: np.ones(2)}, {"1": np.ones(2)})


def test_the_report_of_a_failure():
    expected = {"w": np.array([[1, 2], [4, 4]], np.float32), "b": np.float32(1)}
    actual = {"w": np.array([[1, 3], [5, 4]], np.float32), "c": np.float32(1)}
    with pytest.raises(ParityError) as caught:
        assert_trees_close(actual, expected, rtol=0.1, atol=0.0)
    assert str(caught.value) == (
        "3 of 3 tensors FAIL, at worst ['b']:\n"
        "  FAIL ['w']: 2 of 4 elements differ by more than rtol=0.1, atol=0, 5 times "
        "at worst, first at (0, 1): 2.0 in expected, 3.0 in actual; "
        "greatest difference 1 at (0, 1), relative 0.5, 4194304 ulps\n"
        "  FAIL ['b']: structure differs: an array in expected, nothing in actual\n"
        "  FAIL ['c']: structure differs: nothing in expected, an array in actual"
    )


def test_the_report_of_noise():
    exact = {"a": np.full(4, 2.0), "b": np.full(4, 3.0)}
    port = {name: x.astype(np.float32) for name, x in exact.items()}
    right = compare_trees(port, port, exact)
    assert right.worst.name == "['a']"
    assert str(right) == (
        "all 2 tensors pass, at worst:\n  pass ['a']: within noise: reference is 0 and "
        "candidate 0 from exact, which has norm 4; ratio 0, peak ratio 0 (up to 4), "
        "candidate ratio 0 (up to 100); greatest difference 0 at (0,), relative 0, "
        "0 ulps"
    )
    wrong = compare_trees(port | {"b": port["b"] + np.float32(0.5)}, port, exact)
    assert [tensor.name for tensor in wrong.failures] == ["['b']"]
    assert wrong.worst is wrong.failures[0]
    assert not wrong.passed
    assert str(wrong) == (
        "1 of 2 tensors FAIL, at worst ['b']:\n  FAIL ['b']: more than noise, or an "
        "inaccurate reference (run it in float64): reference is 1 and candidate 0 from "
        "exact, which has norm 6; ratio 3.5e+05, peak ratio 3.5e+05 (up to 4), "
        "candidate ratio 0 (up to 100); greatest difference 0.5 at (0,), "
        "relative 0.143, 2097152 ulps"
    )
    with pytest.raises(ParityError, match=re.escape(str(wrong))):
        wrong.raise_if_different()
    right.raise_if_different()


def test_a_comparison_is_true_if_it_passed():
    x = np.ones(2, np.float32)
    assert compare_trees(x, x, x.astype(np.float64))
    assert not compare_trees(2 * x, x, x.astype(np.float64))


# ---- torch ---------------------------------------------------------------------------


def test_torch_tensors_are_read_as_they_are():
    base = torch.arange(6, dtype=torch.float32).reshape(2, 3) / 7
    cases = {
        "leaf": base.clone().requires_grad_(),
        "strided": base.T,
        "half": base.half(),
        "bfloat16": base.bfloat16().T,
        "scalar": base[1, 1].bfloat16(),
        "double": base.double(),
        "long": base.long(),
        "bool": base > 0.5,
        "conjugate": torch.complex(base, base).conj(),
        "negated": torch.complex(base, base).conj().imag,
    }
    x = base.numpy()
    expected = {
        "leaf": x,
        "strided": x.T,
        "half": x.astype(np.float16),
        "bfloat16": jnp.asarray(x, jnp.bfloat16).T,
        "scalar": jnp.asarray(x, jnp.bfloat16)[1, 1],
        "double": x.astype(np.float64),
        "long": x.astype(np.int64),
        "bool": x > 0.5,
        "conjugate": np.conj((x + 1j * x).astype(np.complex64)),
        "negated": -x,
    }
    assert_trees_equal(cases, expected)
    assert cases["leaf"].requires_grad


def test_what_cannot_be_read_is_named():
    with pytest.raises(TypeError, match=r"actual\[.w.\] cannot be read as a dense"):
        assert_trees_equal({"w": torch.ones(2).to_sparse()}, {"w": np.ones(2)})
    with pytest.raises(TypeError, match=r"expected\[.k.\] cannot be read as a dense"):
        assert_trees_equal({"k": np.ones(2)}, {"k": jax.random.key(0)})


def imports_torch(statement):
    code = f"import sys; {statement}; sys.exit('torch' in sys.modules)"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode == 1


def test_torch_is_not_imported():
    assert not imports_torch("import jaxclip.parity")
    assert imports_torch("import torch")  # the check can fail


# ---- calibration ---------------------------------------------------------------------
# h = tanh(x U + h W + b) over the steps; the loss is the mean square of the last h.


def recurrent_net(seed, steps, radius, hidden=32, features=8, batch=64):
    """Weights, the recurrent ones of this spectral radius, and a batch, time first."""
    rng = np.random.default_rng(seed)
    weights = {
        "W": radius * rng.normal(size=(hidden, hidden)) / math.sqrt(hidden),
        "U": rng.normal(size=(features, hidden)) / math.sqrt(features),
        "b": 0.1 * rng.normal(size=hidden),
    }
    x = rng.normal(size=(steps, batch, features))
    return {k: v.astype(np.float32) for k, v in weights.items()}, x.astype(np.float32)


def numpy_net(weights, x):
    """One framework: a NumPy loop, with backpropagation through time by hand."""
    W, U, b = weights["W"], weights["U"], weights["b"]
    hs = [np.zeros((x.shape[1], len(W)), x.dtype)]
    for x_t in x:
        hs.append(np.tanh(x_t @ U + b + hs[-1] @ W))
    loss = np.mean(hs[-1] ** 2)
    grads = {k: np.zeros_like(v) for k, v in weights.items()}
    d_h = hs[-1] * np.float32(2 / hs[-1].size)
    for x_t, h_before, h in zip(x[::-1], hs[-2::-1], hs[:0:-1], strict=True):
        d_z = d_h * (1 - h**2)
        grads["W"] += h_before.T @ d_z
        grads["U"] += x_t.T @ d_z
        grads["b"] += d_z.sum(0)
        d_h = d_z @ W.T
    return {"h": hs[-1], "loss": loss, "grads": grads}


@jax.jit
def jax_loss_and_grads(weights, x, slip):
    def loss(weights):
        def step(h, x_t):
            recurrent = h @ weights["W"] * (1 + slip)
            return jnp.tanh(recurrent + (x_t @ weights["U"] + weights["b"])), None

        h, _ = jax.lax.scan(
            step, jnp.zeros((x.shape[1], len(weights["W"])), x.dtype), x
        )
        return jnp.mean(h**2), h

    (value, h), grads = jax.value_and_grad(loss, has_aux=True)(weights)
    return {"h": h, "loss": value, "grads": grads}


def jax_net(weights, x, dtype, slip):
    """The other framework: a scan, differentiated; `slip` is the planted error."""
    with jax.enable_x64(True):
        arguments = jax.tree.map(lambda v: jnp.asarray(v, dtype), (weights, x, slip))
        return jax.tree.map(np.asarray, jax_loss_and_grads(*arguments))


def compared(seed, steps, radius, slip=0.0):
    """The comparison, and the raw relative difference of what a tolerance would see."""
    weights, x = recurrent_net(seed, steps, radius)
    reference = numpy_net(weights, x)
    candidate = jax_net(weights, x, np.float32, slip)
    exact = jax_net(weights, x, np.float64, slip)

    def relative(a, b):
        return np.linalg.norm(np.float64(a) - b) / np.linalg.norm(np.float64(a))

    raw = max(jax.tree.leaves(jax.tree.map(relative, reference, candidate)))
    return compare_trees(reference, candidate, exact), raw


NETS = [
    (seed, steps, radius)
    for seed in range(3)
    for steps, radius in [(5, 0.9), (200, 0.9), (50, 1.6), (20, 2.0), (50, 2.0)]
]


def test_noise_tells_ports_from_slips_where_no_tolerance_does():
    ports = [compared(*net) for net in NETS]
    slips = [compared(*net, slip=1e-5) for net in NETS]
    for comparison, _ in ports:
        assert comparison.passed, str(comparison)
        assert 0.1 < comparison.worst.ratio < 4
    for comparison, _ in slips:
        assert not comparison.passed, str(comparison)
        assert comparison.worst.ratio > 8
    # A tolerance that lets every port pass lets some slips pass, by a wide margin.
    assert max(raw for _, raw in ports) > 5 * min(raw for _, raw in slips)


def test_a_net_that_keeps_no_digit_is_not_passed():
    for slip in (0.0, 1e-5):
        comparison, raw = compared(seed=0, steps=200, radius=2.5, slip=slip)
        assert raw > 0.1
        assert "noise leaves nothing to compare" in str(comparison)

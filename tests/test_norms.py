"""`global_norm` against NumPy in float64: dtypes, magnitudes, leaves, norm types."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxclip import global_norm
from jaxclip._core.sums import unstack

INF = math.inf
MAX, TINY = (float(getattr(np.finfo(np.float32), name)) for name in ("max", "tiny"))
POWERS = [0.5, 1.0, 1.5, 2.0, 3.0, INF]
FLOAT0 = np.zeros(3, jax.dtypes.float0)


def naive_norm(leaves, power):
    """Return the p-norm in float64, whose range the powers of narrower floats fit."""
    wide = [np.abs(np.asarray(x).astype(np.complex128)).ravel() for x in leaves]
    magnitudes = np.concatenate([np.zeros(1), *wide])
    if power == INF:
        return np.max(magnitudes)
    return np.sum(magnitudes**power) ** (1 / power)


def assert_norm(norm, expected, rtol=1e-6, dtype=np.float32):
    """Assert a norm's dtype, shape and value; the default allows 8 ulps of float32.

    A sum of a few terms takes a rounding for each, and a power costs some ulps more.
    """
    assert (norm.dtype, norm.shape) == (dtype, ())
    with np.errstate(over="ignore"):
        expected = np.asarray(expected).astype(dtype)
    np.testing.assert_allclose(norm, expected, rtol=rtol, atol=0)


# Eight numbers, for leaves of fixed shapes: another shape is another compilation.
ordinary = st.floats(-1e4, 1e4, width=32, allow_subnormal=False)
extreme = st.sampled_from([0.0, TINY, 1e-30, -1e-23, 1e-10, 1.9e19, -4e19, 1e30, 1e38])
finite = st.floats(-(2.0**126), 2.0**126, width=32, allow_subnormal=False)
eight = st.lists(ordinary | extreme | finite, min_size=8, max_size=8)
any_power = st.sampled_from(POWERS) | st.floats(0.25, 8.0)


def leaves_of(numbers, dtypes=(np.float32,) * 3):
    parts = (numbers[:1], numbers[1:4], numbers[4:])
    shapes = ((), (3,), (2, 2))
    return [
        jnp.asarray(np.reshape(part, shape), dtype)
        for part, shape, dtype in zip(parts, shapes, dtypes, strict=True)
    ]


# ---- values --------------------------------------------------------------------------


@pytest.mark.parametrize("power", POWERS)
@settings(max_examples=40)
@given(eight)
@example([1e-30] * 4 + [1e20] * 4)
@example([0.0] * 8)
@example([1e38] * 8)
@example([TINY] * 8)
def test_every_finite_tree_has_the_norm_of_the_oracle(power, numbers):
    leaves = leaves_of(numbers)
    assert_norm(global_norm(leaves, power), naive_norm(leaves, power))


traced_norm = jax.jit(global_norm)


@settings(max_examples=80)
@given(eight, any_power)
@example([41.0] * 8, INF)  # 41 * (1 / 41) is less than 1
@example([1e38] * 8, 0.5)
@example([1e38] * 8, 2.0)
@example([0.0] * 8, 3.0)
def test_the_norm_type_may_be_traced(numbers, power):
    leaves = leaves_of(numbers)
    # The oracle gets the power as it is in float32.
    expected = naive_norm(leaves, float(np.float32(power)))
    assert_norm(traced_norm(leaves, power), expected, rtol=3e-6)


def test_a_traced_norm_type_that_bounds_nothing_gives_nan():
    for power in (0.0, -2.0, math.nan):
        assert jnp.isnan(traced_norm(leaves_of([1.0] * 8), power))


MIXED = {
    "bfloat16": (jnp.bfloat16,) * 3,
    "float16": (jnp.float16,) * 3,
    "float16, bfloat16, float32": (jnp.float16, jnp.bfloat16, jnp.float32),
    "complex64": (jnp.complex64,) * 3,
    "float16, complex64": (jnp.complex64, jnp.float16, jnp.complex64),
}


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0, INF])
@pytest.mark.parametrize("dtypes", MIXED.values(), ids=MIXED)
def test_narrow_and_complex_leaves_have_float32_norms(dtypes, power):
    leaves = leaves_of(np.random.default_rng(0).normal(size=8), dtypes)
    leaves = [x * (3 - 4j) if jnp.iscomplexobj(x) else x for x in leaves]
    assert_norm(global_norm(leaves, power), naive_norm(leaves, power))


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0, INF])
@pytest.mark.parametrize(
    "dtypes",
    [(np.float64,) * 3, (np.float32, jnp.bfloat16, np.float64), (np.complex128,) * 3],
    ids=["float64", "mixed", "complex128"],
)
def test_one_leaf_of_float64_makes_a_float64_norm(dtypes, power):
    numbers = np.random.default_rng(1).normal(size=8)
    with jax.enable_x64(True):
        leaves = leaves_of(numbers, dtypes)
        norm = global_norm(leaves, power)
        assert_norm(norm, naive_norm(leaves, power), rtol=1e-14, dtype=np.float64)


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1.0, 1e160, 1e307])
@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_float64_norms_neither_overflow_nor_underflow(power, scale):
    expected = {1.0: 7.0, 2.0: 5.0, 3.0: 91 ** (1 / 3)}[power]
    with jax.enable_x64(True):
        norm = global_norm([jnp.float64(3 * scale), jnp.float64([4 * scale])], power)
        assert_norm(norm, expected * scale, rtol=1e-14, dtype=np.float64)


@pytest.mark.parametrize(
    ("leaves", "power", "expected"),
    [
        ([np.float16([300.0])], 2.0, 300.0),
        ([np.float16([6e4, 6e4])], 2.0, 6e4 * math.sqrt(2)),
        ([np.float32([1e-23] * 4)], 2.0, 2e-23),
        ([np.float32([1e-30] * 4)], 2.0, 2e-30),
        ([np.float32([TINY])], 2.0, TINY),
        ([np.float32([1.9e19, 0.0])], 2.0, 1.9e19),
        ([np.float32([4e19, 1.0])], 2.0, 4e19),
        ([np.float32([1.5e19]), np.float32([1.5e19])], 2.0, 1.5e19 * math.sqrt(2)),
        ([np.float32([3e38])], 2.0, 3e38),
        ([np.float32([MAX])], 2.0, MAX),
        ([np.float32([3e38])], 3.0, 3e38),
        ([np.float32([3e38])], 100.0, 3e38),
        ([np.float32([2e38, 1e38])], 1.0, 3e38),
        ([np.float32([8e37, 8e37])], 0.5, 3.2e38),
        ([np.float32([3e38]), np.float32([3e38])], 2.0, INF),
        ([np.float32([3e38]), np.float32([3e38])], 1.0, INF),
        ([np.float32([3e38]), np.float32([3e38])], INF, 3e38),
        ([np.float32([1e20]), np.float32([1e-30])], 2.0, 1e20),
    ],
)
def test_the_norm_is_infinite_only_where_its_dtype_cannot_hold_it(
    leaves, power, expected
):
    assert_norm(global_norm(leaves, power), expected)


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ([math.nan, 1.0], math.nan),
        ([INF, 1.0], INF),
        ([-INF, 1e30], INF),
        ([math.nan, INF], math.nan),
        ([math.nan, 3e38], math.nan),
    ],
)
def test_nan_and_inf_reach_the_norm(elements, expected, power):
    for leaves in ([np.float32(elements)], [np.float32([x]) for x in elements]):
        np.testing.assert_equal(float(global_norm(leaves, power)), expected)


# ---- narrow sums ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bf16", "f16"])
@pytest.mark.parametrize("power", [1.0, 2.0])
def test_long_narrow_leaves_are_summed_in_float32(dtype, power):
    leaf = np.random.default_rng(2).uniform(0.5, 1.0, 10_000).astype(dtype)
    # The error of float32 sums grows with their length: 1e-6 holds some 8 ulps.
    assert_norm(global_norm([leaf], power), naive_norm([leaf], power))


@pytest.mark.parametrize(
    ("dtype", "count"), [("float16", 1), ("float16", 300), ("bfloat16", 1000)]
)
def test_a_sum_over_many_narrow_leaves_does_not_stagnate(dtype, count):
    # From 256 on, a bfloat16 does not grow by adding 1.
    leaves = [np.ones((), dtype)] * count
    assert_norm(global_norm(leaves), math.sqrt(count), rtol=2e-7)


def test_in_the_same_places_optax_stagnates_overflows_and_underflows():
    assert float(optax.tree.norm([jnp.ones((), jnp.bfloat16)] * 300)) == 16.0
    assert float(optax.tree.norm([jnp.float32([1.9e19, 0.0])])) == INF
    assert float(optax.tree.norm([jnp.float32([1e-23] * 4)])) == 0.0


# ---- leaves --------------------------------------------------------------------------


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize(
    "tree",
    [
        {},
        [],
        None,
        [None, {"a": ()}],
        [optax.MaskedNode()],
        [FLOAT0],
        [np.zeros(0, np.float32)],
        [np.zeros((2, 0, 3), np.float32), None],
    ],
    ids=str,
)
def test_a_tree_without_elements_has_norm_0(tree, power):
    assert_norm(global_norm(tree, power), 0.0)


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0, INF])
def test_what_has_no_elements_does_not_count(power):
    tree = {
        "array": np.float32([3.0]),
        "none": None,
        "masked": optax.MaskedNode(),
        "integer": FLOAT0,
        "empty": np.zeros((0, 2), np.float32),
        "number": 4.0,
    }
    assert_norm(global_norm(tree, power), naive_norm([3.0, 4.0], power))


def test_numbers_are_leaves():
    assert_norm(global_norm([3.0, 4.0]), 5.0)
    assert_norm(global_norm(-3.0), 3.0)
    assert_norm(global_norm(3.0 + 4.0j), 5.0)
    with jax.enable_x64(True):
        assert_norm(global_norm(np.float32(3.0)), 3.0)


def test_numpy_float64_leaves_without_x64():
    assert_norm(global_norm([np.float64([3.0, 4.0])]), 5.0)
    assert_norm(jax.jit(lambda p: global_norm([np.float64([3.0, 4.0])], p))(2.0), 5.0)


BAD_LEAVES = {
    "int32": (np.int32([1]), "int32"),
    "bool": (np.array([True]), "bool"),
    "key": (jax.random.key(0), "key<fry>"),
    "python int": (1, "int"),
    "python bool": (True, "bool"),
    "string": ("1.0", "str"),
    "object": (object(), "object"),
}


@pytest.mark.parametrize(("leaf", "given"), BAD_LEAVES.values(), ids=BAD_LEAVES)
def test_a_leaf_that_has_no_norm_is_named(leaf, given):
    message = rf"global_norm: the leaf \['w'\]\[1\] is of type {given}; expected a real"
    with pytest.raises(TypeError, match=message):
        global_norm({"v": 1.0, "w": [np.ones(2, np.float32), leaf]})
    with pytest.raises(TypeError, match="global_norm: the leaf given is of type"):
        global_norm(leaf)


def test_a_torch_tensor_is_named():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"the leaf \['w'\] is of type torch.float32"):
        global_norm({"w": torch.ones(2)})


# ---- norm types ----------------------------------------------------------------------


@pytest.mark.parametrize("norm_type", [0, 0.0, -1.0, -INF, math.nan])
def test_a_norm_type_that_bounds_nothing_is_refused(norm_type):
    message = (
        rf"global_norm\(norm_type={norm_type}\): expected a positive number or inf"
    )
    with pytest.raises(ValueError, match=message):
        global_norm([1.0], norm_type)


@pytest.mark.parametrize(
    "norm_type", [3, 3.0, np.float32(3.0), np.array(3), jnp.array(3.0), "3"], ids=repr
)
def test_a_norm_type_is_any_number(norm_type):
    assert_norm(global_norm([1.0, 2.0], norm_type), 9 ** (1 / 3))


# ---- derivatives ---------------------------------------------------------------------


def direction(leaf, power):
    """Return the derivative of the p-norm of one leaf, in float64."""
    x = np.asarray(leaf, np.float64)
    return np.sign(x) * (np.abs(x) / naive_norm([x], power)) ** (power - 1)


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0, 3.0])
def test_the_derivative_is_right_at_every_magnitude(power):
    gradient = jax.jit(jax.grad(lambda x: global_norm([x], power)))
    for scale in (1e-35, 1e-30, 1e-20, 1.0, 1e18, 1e20, 1e37):
        leaf = np.float32([3.0, -4.0, 0.5]) * np.float32(scale)
        np.testing.assert_allclose(gradient(leaf), direction(leaf, power), rtol=3e-6)


@pytest.mark.parametrize(
    ("power", "dtype"), [*((power, "float32") for power in POWERS), (2.0, "complex64")]
)
def test_the_derivative_at_zero_is_zero(power, dtype):
    gradient = jax.jit(jax.grad(lambda x: global_norm([x], power)))
    assert not gradient(np.zeros(3, dtype)).any()


def test_the_derivative_for_elements_of_zero_is_zero():
    gradient = jax.grad(lambda x: global_norm([x], 1.0))(np.float32([0.0, -2.0]))
    np.testing.assert_array_equal(gradient, [0.0, -1.0])


def test_where_several_elements_are_the_largest_they_share_the_derivative():
    gradient = jax.grad(lambda x: global_norm([x], INF))(np.float32([2.0, -2.0, 1.0]))
    np.testing.assert_array_equal(gradient, [0.5, -0.5, 0.0])


@pytest.mark.parametrize("length", [0, 1, 2, 5, 16, 17, 300])
def test_elements_taken_from_the_rows_of_a_square_are_those_of_the_array(length):
    values = np.arange(length, dtype=np.float32) - 2
    for array in (values, np.ones(length, np.float32)):
        for kinds in ((), "abcab" * length):
            got = jax.jit(lambda x, kinds=kinds: unstack(x, kinds[:length]))(array)
            np.testing.assert_array_equal(np.array(got, np.float32), array)
    batch = np.stack([values, np.ones(length, np.float32)])
    for element, column in zip(jax.vmap(unstack)(batch), batch.T, strict=True):
        np.testing.assert_array_equal(element, column)


@pytest.mark.parametrize("dtype", [bool, jnp.int32, jnp.bfloat16])
def test_elements_of_any_dtype_are_taken_under_strict_promotion(dtype):
    array = jnp.array([0, 1, 1], dtype)
    with jax.numpy_dtype_promotion("strict"):
        got = unstack(array)
    assert [x.dtype for x in got] == [array.dtype] * 3
    np.testing.assert_array_equal(np.array(got, np.float32), [0, 1, 1])

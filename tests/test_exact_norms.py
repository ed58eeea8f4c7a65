"""The norms that no magnitude spoils: in float64, and of scaled elements."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip._core.exact_norms import exact_norms, scaled_norms
from jaxclip._core.sums import Groups
from tests.processes import run_python

POWERS = [0.5, 1.0, 1.5, 2.0, 3.0, 6.0]
# Elements below 1e-38 are subnormal, and flushed to 0.
MAGNITUDES = [1e-33, 1e-23, 1e-10, 1.0, 1e10, 1.9e19, 3e38]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def groups(*members):
    return Groups.of(members, ())


def oracle(leaves, power):
    flat = np.concatenate(
        [np.abs(np.asarray(x, np.complex128)).ravel() for x in leaves]
    )
    largest = flat.max(initial=0.0)
    if largest == 0:
        return 0.0
    return float(largest * np.sum((flat / largest) ** power) ** (1 / power))


def value(norms, index=0):
    """Return a norm in float64, where its product does not overflow."""
    return float(norms.scale[index]) * float(norms.ratio[index])


@pytest.mark.parametrize("magnitude", MAGNITUDES)
@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("norms", [exact_norms, scaled_norms])
def test_it_is_the_norm_of_float64(norms, power, magnitude, rng):
    parts = [
        rng.choice([-1, 1]) * rng.uniform(1e-3, 1, shape)
        for shape in ((4, 5), (), (7,), (4, 5))
    ]
    leaves = [jnp.asarray(part * magnitude, jnp.float32) for part in parts]
    got = jax.jit(lambda leaves: norms(groups(leaves), power))(leaves)
    assert (got.scale.dtype, got.ratio.dtype) == (jnp.float32, jnp.float32)
    np.testing.assert_allclose(value(got), oracle(leaves, power), rtol=2e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.complex64])
@pytest.mark.parametrize("power", [1.5, 2.0, 3.0])
def test_it_takes_every_dtype(dtype, power, rng):
    leaf = jnp.asarray(rng.uniform(-300, 300, (2, 50)), dtype)
    if dtype == jnp.complex64:
        leaf = leaf * (1e30 + 2e30j)
    got = exact_norms(groups([leaf], [leaf[:1]], []), power)
    for index, leaves in enumerate(([leaf], [leaf[:1]], [])):
        wide = [np.asarray(x).astype(np.complex128) for x in leaves] or [np.zeros(0)]
        np.testing.assert_allclose(value(got, index), oracle(wide, power), rtol=2e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("power", POWERS)
def test_an_element_that_is_not_finite_shows(bad, power):
    got = exact_norms(groups([jnp.array([1.0, bad])], [jnp.array([1.0])]), power)
    assert got.finite.tolist() == [False, True]


@pytest.mark.parametrize("magnitude", [0.0, 1e-30, 1.0, 1e30])
@pytest.mark.parametrize("power", [1.0, 1.5, 2.0, 3.0])
def test_derivatives_are_those_of_scaled_norms(power, magnitude, rng):
    x = jnp.asarray(rng.uniform(0.5, 1.0, 5) * magnitude, jnp.float32)
    dx = jnp.asarray(rng.uniform(-1, 1, 5), jnp.float32)

    def derivatives(norms):
        def norm(x):
            return norms(groups([x]), power).value[0]

        _, tangent = jax.jvp(norm, (x,), (dx,))
        return jax.grad(norm)(x), tangent, jax.jit(jax.vmap(jax.grad(norm)))(x[None])

    if magnitude == 0:
        got = derivatives(exact_norms)
        assert not any(np.any(part) for part in got)
        return
    got, expected = derivatives(exact_norms), derivatives(scaled_norms)
    # The tangent is a sum of five terms of up to 1, of both signs.
    for part, other, atol in zip(got, expected, (0.0, 1e-6, 0.0), strict=True):
        np.testing.assert_allclose(part, other, rtol=1e-5, atol=atol)


def test_second_derivatives_are_right():
    x = jnp.array([3.0, 4.0])

    def norm(x):
        return exact_norms(groups([x]), 2.0).value[0]

    # I/n - x xᵀ/n³, of which the part along x is 0.
    expected = np.eye(2) / 5 - np.outer(x, x) / 125
    np.testing.assert_allclose(jax.hessian(norm)(x), expected, rtol=1e-5, atol=1e-7)
    assert np.isfinite(jax.hessian(norm)(jnp.zeros(2))).all()


def test_transformations_of_functions_leave_it_what_it_is(rng):
    xs = jnp.asarray(rng.uniform(-1e25, 1e25, (3, 8)), jnp.float32)

    def norm(x):
        return exact_norms(groups([x]), 3.0).value[0]

    expected = [oracle([x], 3.0) for x in xs]
    many = [
        jax.vmap(norm)(xs),
        jax.vmap(jax.jit(norm))(xs),
        jax.jit(jax.vmap(norm))(xs),
        jax.lax.map(norm, xs),
        jax.vmap(jax.checkpoint(norm))(xs),
        jax.vmap(lambda x: jax.value_and_grad(norm)(x)[0])(xs),
    ]
    for got in many:
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, expected, rtol=1e-6)


def lowered(platform):
    def norm(x):
        return exact_norms(groups([x]), 2.0).value

    traced = jax.jit(norm).trace(jax.ShapeDtypeStruct((8,), jnp.float32))
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("platform", ["cpu", "cuda", "rocm"])
def test_where_there_is_float64_it_is_used_and_nothing_is_scaled(platform):
    text = lowered(platform)
    assert "f64" in text
    assert "stablehlo.maximum" not in text


def test_a_tpu_is_given_no_float64():
    text = lowered("tpu")
    assert "f64" not in text
    assert "stablehlo.maximum" in text


def test_small_leaves_of_one_shape_are_summed_together_and_large_ones_are_not():
    def norm(leaves):
        return exact_norms(groups(leaves), 2.0).value

    def sums(size):
        leaf = jax.ShapeDtypeStruct((size,), jnp.float32)
        return str(jax.make_jaxpr(norm)([leaf] * 32)).count("reduce_sum")

    # Once for each way to form a norm, and so twice.
    assert sums(100) == 2 * 2
    assert sums(2**14 + 1) == 2 * 32


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, PartitionSpec as P
from jaxclip._core.exact_norms import exact_norms
from jaxclip._core.sums import Groups

mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))
x = np.linspace(-3e37, 3e37, 16, dtype=np.float32)
expected = np.linalg.norm(x.astype(float)) * np.sqrt(2)
for checked, names in ((True, ()), (False, ("x",))):
    def norm(x, y):
        return exact_norms(Groups.of([[x, y]], names), 2.0).value[0]
    sharded = jax.shard_map(
        norm, mesh=mesh, in_specs=(P("x"), P("x")), out_specs=P(), check_vma=checked
    )
    np.testing.assert_allclose(jax.jit(sharded)(x, x), expected, rtol=1e-6)
print("right")
"""


def test_it_is_right_inside_shard_map():
    run = run_python("-c", SHARDED, devices=4)
    assert run.stdout == "right\n", run.stderr

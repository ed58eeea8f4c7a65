"""The clips on a GPU, against torch's on CUDA and against float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxclip

if jax.default_backend() != "gpu":
    pytest.skip(
        f"JAX's default backend is {jax.default_backend()!r}, not 'gpu'",
        allow_module_level=True,
    )

INF = math.inf
FEW_ULPS = 8 * 2.0**-24
"""Four ulps of float32: a root and a rounding on either side, and some to spare."""

EPS = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}
SHAPES = ((33, 65), (1000,), (7, 3, 5), (), (128, 256))


def drawn(dtype="float32", scale=1.0, seed=0):
    """Draw gradients for JAX, the same for torch on CUDA, and in float64."""
    rng = np.random.default_rng(seed)
    arrays = [np.asarray(scale * rng.standard_normal(shape)) for shape in SHAPES]
    grads = [jnp.asarray(array, dtype) for array in arrays]
    exact = [np.asarray(grad).astype(np.float64) for grad in grads]
    return grads, on_cuda(exact, getattr(torch, dtype)), exact


def on_cuda(arrays, dtype):
    params = []
    for array in arrays:
        params.append(torch.zeros(array.shape, dtype=dtype, device="cuda"))
        params[-1].grad = torch.tensor(array, dtype=dtype, device="cuda")
    return params


def wide(leaves):
    return [np.asarray(leaf).astype(np.float64) for leaf in leaves]


def of_torch(params):
    return [p.grad.double().cpu().numpy() for p in params]


def naive_norm(exact, power):
    flat = np.abs(np.concatenate([leaf.ravel() for leaf in exact]))
    return flat.max() if power == INF else (flat**power).sum() ** (1 / power)


def assert_near(ours, theirs, rtol):
    for own, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(own, other, rtol=rtol, atol=0)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("power", [1.0, 2.0, 3.0, INF])
def test_the_norm_and_the_clip_are_torchs(power, scale, compiled, cuda):
    grads, params, exact = drawn(scale=scale)
    clip = jax.jit(jaxclip.clip_grad_norm) if compiled else jaxclip.clip_grad_norm
    clipped, norm = clip(grads, 1.0, power)
    theirs = torch.nn.utils.clip_grad_norm_(params, 1.0, power)
    # Of the powers but these, float32 makes a rounding or two each.
    rtol = FEW_ULPS if power in (2.0, INF) else 1e-5
    np.testing.assert_allclose(norm, naive_norm(exact, power), rtol=rtol)
    np.testing.assert_allclose(norm, theirs.item(), rtol=rtol)
    assert_near(wide(clipped), of_torch(params), rtol=2 * rtol)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_low_precision_is_right_to_a_rounding(dtype, max_norm, cuda):
    grads, params, exact = drawn(dtype)
    clipped, norm = jaxclip.clip_grad_norm(grads, max_norm)
    truth = naive_norm(exact, 2.0)
    assert norm.dtype == jnp.float32
    np.testing.assert_allclose(norm, truth, rtol=FEW_ULPS)
    # A correct rounding is half an ulp off, and what is near 0 a subnormal of float16.
    # torch rounds its norm and its factor to the dtype, too.
    right = [leaf * min(1.0, max_norm / (truth + 1e-6)) for leaf in exact]
    for own, leaf in zip(wide(clipped), right, strict=True):
        np.testing.assert_allclose(own, leaf, rtol=1.01 * EPS[dtype], atol=1e-7)
    torch.nn.utils.clip_grad_norm_(params, max_norm)
    for other, leaf in zip(of_torch(params), right, strict=True):
        np.testing.assert_allclose(other, leaf, rtol=8 * EPS[dtype], atol=1e-6)


def test_the_norm_of_ten_million_elements(cuda):
    array = np.random.default_rng(0).standard_normal(10**7, np.float32)
    truth = np.linalg.norm(array.astype(np.float64))
    norm = jaxclip.global_norm([jnp.asarray(array)])
    np.testing.assert_allclose(norm, truth, rtol=4 * EPS["float32"])
    [param] = on_cuda([array], torch.float32)
    theirs = torch.nn.utils.clip_grad_norm_([param], 1.0)
    # torch adds up float32 in blocks, which is off by some ulps more.
    np.testing.assert_allclose(norm, theirs.item(), rtol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, INF, -INF])
def test_what_is_not_finite_is_as_torch_leaves_it(bad, cuda):
    grads, params, _ = drawn()
    grads[1] = grads[1].at[3].set(bad)
    params[1].grad[3] = bad
    clipped, norm = jaxclip.clip_grad_norm(grads, 1.0)
    theirs = torch.nn.utils.clip_grad_norm_(params, 1.0)
    np.testing.assert_equal(float(norm), theirs.item())
    for own, other in zip(wide(clipped), of_torch(params), strict=True):
        np.testing.assert_array_equal(own, other)


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_no_finite_gradient_overflows_or_vanishes(scale, cuda):
    grads, _, exact = drawn(scale=scale)
    clipped, norm = jaxclip.clip_grad_norm(grads, scale, eps=0.0)
    np.testing.assert_allclose(norm, naive_norm(exact, 2.0), rtol=FEW_ULPS)
    total = naive_norm(wide(clipped), 2.0)
    np.testing.assert_allclose(total, np.float32(scale), rtol=FEW_ULPS)


def test_a_clip_by_value_is_torchs_to_the_bit(cuda):
    grads, params, _ = drawn()
    clipped = jaxclip.clip_grad_value(grads, 0.5)
    torch.nn.utils.clip_grad_value_(params, 0.5)
    for own, other in zip(wide(clipped), of_torch(params), strict=True):
        np.testing.assert_array_equal(own, other)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_transformation_clips_as_the_function(dtype, cuda):
    grads, _, _ = drawn(dtype)
    clip = jaxclip.clip_by_global_norm(1.0)
    updates, state = jax.jit(clip.update)(grads, clip.init(grads))
    clipped, norm = jaxclip.clip_grad_norm(grads, 1.0)
    np.testing.assert_allclose(state.total_norm, norm, rtol=FEW_ULPS)
    # XLA may multiply in another order in one program than in two: an ulp.
    assert_near(wide(updates), wide(clipped), rtol=2 * EPS[dtype])

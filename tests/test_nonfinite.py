"""`error_if_nonfinite`: which leaves it names, where it raises, and where not."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from jaxclip import clip_grad_norm
from jaxclip.parity import assert_trees_equal

INF, NAN = math.inf, math.nan
GOOD = {"b": np.float32(0.5), "w": [np.float32([1.0, 2.0]), np.float32([3.0, 4.0])]}
BAD = {"b": np.float32(INF), "w": [np.float32([1.0, 2.0]), np.float32([NAN, -INF])]}
REPORT = (
    "clip_grad_norm: gradients are not finite, in 2 of 3 leaves:\n"
    "  ['b']: 0 NaN, 1 infinite\n"
    "  ['w'][1]: 1 NaN, 1 infinite"
)


def clip(grads, norm_type=2.0):
    return clip_grad_norm(grads, 1.0, norm_type, error_if_nonfinite=True)


jitted = jax.jit(clip)


def test_the_error_names_the_leaves_and_counts_their_elements():
    with pytest.raises(RuntimeError) as caught:
        clip(BAD)
    assert str(caught.value) == REPORT


def test_under_jit_the_error_comes_when_the_program_runs():
    with pytest.raises(jax.errors.JaxRuntimeError, match=re.escape(REPORT)):
        jax.block_until_ready(jitted(BAD))
    # And the next step is one like any other.
    assert_trees_equal(jitted(GOOD), clip(GOOD))


def test_torch_names_nothing():
    param = torch.zeros(2).requires_grad_()
    param.grad = torch.tensor([NAN, 1.0])
    with pytest.raises(RuntimeError, match=r"The total norm of order 2\.0 for"):
        torch.nn.utils.clip_grad_norm_([param], 1.0, error_if_nonfinite=True)


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, INF])
def test_finite_gradients_raise_nothing(norm_type):
    huge = {"b": np.float32(3e38), "w": [np.float32([3e38, -3e38]), np.float32([0, 1])]}
    for grads in (GOOD, huge, {}, None, {"w": np.zeros((0, 2), np.float32)}):
        expected = clip_grad_norm(grads, 1.0, norm_type)
        clipped, norm = clip(grads, norm_type)
        assert norm == expected[1]
        assert jax.tree.all(jax.tree.map(np.array_equal, clipped, expected[0]))
    jax.block_until_ready(jax.jit(clip, static_argnums=1)(huge, norm_type))


def test_torch_raises_for_finite_gradients_whose_norm_overflows():
    param = torch.zeros(2).requires_grad_()
    param.grad = torch.tensor([3e38, -3e38])
    with pytest.raises(RuntimeError, match="non-finite"):
        torch.nn.utils.clip_grad_norm_([param], 1.0, error_if_nonfinite=True)


def test_an_empty_tree_raises_nothing_under_jit():
    clipped, norm = jitted({"a": None})
    assert (clipped, norm) == ({"a": None}, 0.0)


def test_in_vmap_only_an_example_that_is_not_finite_raises():
    good = np.float32([[1.0, 2.0], [3e38, 3e38], [0.0, 0.0]])
    _, norms = jax.vmap(clip)(good)
    np.testing.assert_allclose(norms, [5**0.5, INF, 0.0], rtol=1e-6)
    bad = np.float32([[1.0, 2.0], [NAN, INF], [0.0, 1.0]])
    message = re.escape("in 1 of 1 leaves:\n  the tree itself: 1 NaN, 1 infinite")
    with pytest.raises(RuntimeError, match=message):
        jax.block_until_ready(jax.jit(jax.vmap(clip))(bad))


def test_in_scan_the_first_bad_step_raises():
    def step(total, grads):
        return total + clip(grads)[1], None

    run = jax.jit(lambda steps: jax.lax.scan(step, 0.0, steps))
    steps = np.float32([[3.0, 4.0], [0.0, 0.0], [6.0, 8.0]])
    assert run(steps)[0] == 15.0
    steps[1] = [INF, 0.0]
    with pytest.raises(jax.errors.JaxRuntimeError, match="0 NaN, 1 infinite"):
        jax.block_until_ready(run(steps))


@pytest.mark.parametrize("transform", [jax.grad, jax.jacfwd])
def test_it_can_be_differentiated(transform):
    def checked(x):
        return jnp.sum(clip(x)[0] ** 3)

    def unchecked(x):
        return jnp.sum(clip_grad_norm(x, 1.0)[0] ** 3)

    x = np.float32([3.0, 4.0])
    assert_trees_equal(transform(checked)(x), transform(unchecked)(x))
    with pytest.raises(RuntimeError, match="1 NaN, 0 infinite"):
        transform(checked)(np.float32([NAN, 1.0]))


def test_leaves_that_are_skipped_are_not_counted():
    grads = {
        "a": None,
        "b": optax.MaskedNode(),
        "c": np.zeros(2, jax.dtypes.float0),
        "d": 1.0,
        "e": jnp.array([NAN, 1.0, NAN], jnp.bfloat16),
        "f": np.complex64([complex(1.0, INF)]),
    }
    with pytest.raises(RuntimeError) as caught:
        clip(grads)
    assert str(caught.value) == (
        "clip_grad_norm: gradients are not finite, in 2 of 3 leaves:\n"
        "  ['e']: 2 NaN, 0 infinite\n"
        "  ['f']: 0 NaN, 1 infinite"
    )


def test_without_the_flag_nothing_is_raised():
    _, norm = jax.jit(lambda grads: clip_grad_norm(grads, 1.0))(BAD)
    assert jnp.isnan(norm)

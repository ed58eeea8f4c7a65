"""Numbers that optimizers have in common, with all the digits that there are."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def bias_correction(beta: Any, step: jax.Array) -> jax.Array:
    r"""Return :math:`1 - \beta^t` to rounding.

    Its plain form loses what it subtracts: for a β of 0.999, four digits at the first
    step. A β that is a Python number has tables, made in float64, of
    :math:`1 - \beta^{256^k d}` for each digit d of t. They are put together by
    :math:`1 - xy = (1 - x) + (1 - y)\,x`, in which nothing is subtracted from what it
    is almost equal to.

    Args:
        beta: In [0, 1).
        step: t, whole and at least 1, below 2^31.
    """
    if isinstance(beta, jax.Array):
        # Exact but for the rounding that beta came with: beta - 1 has no error.
        return -jnp.expm1(step * jnp.log1p(beta - 1))
    if beta == 0:
        return jnp.ones_like(step)
    whole = step.astype(jnp.int32)
    rest = jnp.zeros_like(step)
    for place in range(0, 31, 8):
        exponents = 2.0**place * np.arange(256)
        table = jnp.asarray(-np.expm1(exponents * math.log(beta)), step.dtype)
        digit = table[(whole >> place) & 255]
        rest = rest + digit * (1 - rest)
    return rest


def lerp(start: jax.Array, end: jax.Array, weight: Any) -> jax.Array:
    """Return ``start + weight · (end - start)``, as ``torch.lerp``: from the nearer.

    From the farther one, a large ``start`` would take the digits of a small ``end``.
    """
    near = weight < 0.5
    step = end - start
    moved: jax.Array
    if isinstance(near, bool):
        moved = start + weight * step if near else end - (1 - weight) * step
    else:
        weight = jnp.where(near, weight, weight - 1)
        moved = jnp.where(near, start, end) + weight * step
    return moved


def average_square(average: jax.Array, grad: jax.Array, beta: Any) -> jax.Array:
    """Return the moving average of the squares of gradients, one gradient later."""
    moved: jax.Array = beta * average + (1 - beta) * (grad * grad)
    return moved


def decayed(grad: jax.Array, param: Any, weight_decay: Any) -> jax.Array:
    """Add the gradient of ``weight_decay / 2 · ‖param‖²``, unless it is known as 0."""
    if is_zero(weight_decay):
        return grad
    total: jax.Array = grad + weight_decay * param
    return total


def decay_weights(
    update: jax.Array, param: Any, lr: Any, weight_decay: Any
) -> jax.Array:
    """Take ``lr · weight_decay · param`` as well, unless the decay is known as 0."""
    if is_zero(weight_decay):
        return update
    total: jax.Array = update - lr * weight_decay * param
    return total


def is_zero(value: Any) -> bool:
    """Whether a hyperparameter is known to be 0, so that its part can be left out."""
    return isinstance(value, int | float) and value == 0

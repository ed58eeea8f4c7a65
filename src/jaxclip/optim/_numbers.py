"""Numbers that optimizers have in common, with all the digits that there are."""

import math
from typing import Any

import jax
import jax.numpy as jnp


def bias_correction(beta: Any, step: jax.Array) -> jax.Array:
    r"""Return :math:`1 - \beta^t` to rounding.

    Its plain form loses what it subtracts: for a β of 0.999, four digits at the first
    step. Here it is :math:`-\mathrm{expm1}(t \log \beta)`, and for a β that is a
    Python number the logarithm has the digits of float64, in two parts.

    Args:
        beta: In [0, 1).
        step: t, at least 1.
    """
    if isinstance(beta, jax.Array):
        # Exact but for the rounding that beta came with: beta - 1 has no error.
        return -jnp.expm1(step * jnp.log1p(beta - 1))
    if beta == 0:
        return jnp.ones_like(step)
    logarithm = math.log(beta)
    # Few enough digits that their product with a step below 2^12 is exact in float32,
    # and rounded up, so that the rest is negative and grows to no infinity.
    mantissa, exponent = math.frexp(logarithm)
    high = math.ldexp(math.ceil(mantissa * 2**12), exponent - 12)
    power = step * high
    return -jnp.expm1(power) - jnp.exp(power) * jnp.expm1(step * (logarithm - high))


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

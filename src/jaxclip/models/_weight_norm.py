"""A layer whose weights are a direction and a length, in Flax NNX."""

from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx


class Layer(Protocol):
    """What has a kernel with its outputs last: ``nnx.Linear``, ``nnx.Conv``."""

    kernel: nnx.Param[jax.Array]

    def __call__(self, inputs: jax.Array) -> jax.Array: ...


def lengths(kernel: jax.Array) -> jax.Array:
    """Return the norm of what leads to each output."""
    return jnp.sqrt(jnp.sum(jnp.square(kernel), axis=tuple(range(kernel.ndim - 1))))


class WeightNorm(nnx.Module):
    r"""A layer whose weights learn their length apart, as torch's ``weight_norm``.

    .. math:: w_o = g_o \frac{v_o}{\lVert v_o \rVert}

    for every output o, in the place of the layer's kernel; ``v`` is that kernel.

    Differs from ``nnx.WeightNorm``: there ``g`` is no variable, so that it does not
    learn, and every call overwrites the kernel.

    Args:
        layer: An ``nnx.Linear`` or ``nnx.Conv``. It computes at first what it did.

    Attributes:
        layer: The layer, whose kernel is ``v``.
        scale: ``g``, of shape ``(outputs,)``.

    Example:
        >>> layer = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        >>> normed = WeightNorm(layer)
        >>> bool(jnp.allclose(normed(jnp.ones(3)), layer(jnp.ones(3)), atol=1e-6))
        True
        >>> normed.scale.shape
        (2,)
    """

    def __init__(self, layer: Layer) -> None:
        """Take the lengths from the kernel."""
        self.layer = layer
        self.scale = nnx.Param(lengths(layer.kernel[...]))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Call the layer with the weights that direction and length make."""
        kernel = self.layer.kernel[...]
        layer: Layer = nnx.clone(self.layer)
        layer.kernel[...] = kernel * (self.scale[...] / lengths(kernel))
        return layer(x)

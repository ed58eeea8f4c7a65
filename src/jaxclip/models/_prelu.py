"""The rectifier of torch that learns a slope for each channel, in Flax NNX."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxclip.models._checks import check_channels, check_sizes


def prelu(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Scale what is not positive; ``weight`` is for the last axis, or for all.

    Raises:
        ValueError: If there are several slopes, and not for the last axis.
    """
    if weight.size > 1:
        check_channels(x, weight.size)
    return jnp.where(x > 0, x, weight * x)


class PReLU(nnx.Module):
    r"""A rectifier that learns its slope, as ``torch.nn.PReLU``, channels last.

    .. math:: y = x \text{ where } x > 0 \text{, else } w x

    Differs from ``nnx.PReLU``: that has one slope, of 0.01 at first, and its
    derivative at 0 is 1, not the slope.

    Args:
        num_parameters: One slope for all channels, or as many as there are channels.
        init_slope: The slope at first.
        param_dtype: The dtype of the slopes.
        rngs: Taken as Flax's layers take it; nothing is drawn.

    Attributes:
        weight: ``(num_parameters,)``.

    Raises:
        ValueError: If ``num_parameters`` is less than 1.

    Example:
        >>> PReLU(2)(jnp.array([[-4.0, 4.0]]))
        Array([[-1.,  4.]], dtype=float32)
    """

    def __init__(
        self,
        num_parameters: int = 1,
        *,
        init_slope: float = 0.25,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs | None = None,
    ) -> None:
        """Make the slopes."""
        del rngs
        check_sizes(num_parameters=num_parameters)
        self.weight = nnx.Param(jnp.full(num_parameters, init_slope, param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the slopes to ``x``, of shape ``(..., channels)``."""
        return prelu(x, self.weight[...])

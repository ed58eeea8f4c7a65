"""The rectifier of torch that learns a slope for each channel, in Flax Linen."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxclip.models._checks import check_sizes
from jaxclip.models._prelu import prelu


class PReLU(nn.Module):
    """A rectifier that learns its slope, as ``torch.nn.PReLU``, channels last.

    See ``jaxclip.models.PReLU`` for the formula, and for what differs from Flax's own
    layer.

    Attributes:
        num_parameters: One slope for all channels, or as many as there are channels.
        init_slope: The slope at first.
        param_dtype: The dtype of the slopes.

    Example:
        >>> layer, x = PReLU(2), jnp.array([[-4.0, 4.0]])
        >>> layer.init_with_output(jax.random.key(0), x)[0]
        Array([[-1.,  4.]], dtype=float32)
    """

    num_parameters: int = 1
    init_slope: float = 0.25
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        """Make the slopes."""
        check_sizes(num_parameters=self.num_parameters)
        init = nn.initializers.constant(self.init_slope)
        shape = (self.num_parameters,)
        self.weight = self.param("weight", init, shape, self.param_dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the slopes to ``x``, of shape ``(..., channels)``."""
        return prelu(x, self.weight)

"""The bilinear layer of torch, in Flax Linen."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxclip.models import _init
from jaxclip.models._bilinear import bilinear
from jaxclip.models._checks import check_sizes


class Bilinear(nn.Module):
    """A bilinear form for each output, as ``torch.nn.Bilinear``.

    See ``jaxclip.models.Bilinear`` for the formula, and for the shapes of the
    parameters.

    Attributes:
        in1_features: The length of the first input.
        in2_features: The length of the second.
        out_features: The length of the output.
        use_bias: Whether a bias is added.
        param_dtype: The dtype of the parameters.

    Example:
        >>> layer, x1, x2 = Bilinear(3, 4, 2), jnp.ones((5, 3)), jnp.ones((5, 4))
        >>> y, variables = layer.init_with_output(jax.random.key(0), x1, x2)
        >>> y.shape, variables["params"]["weight"].shape
        ((5, 2), (2, 3, 4))
    """

    in1_features: int
    in2_features: int
    out_features: int
    use_bias: bool = True
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        """Make the parameters."""
        first, second, out = self.in1_features, self.in2_features, self.out_features
        check_sizes(in1_features=first, in2_features=second, out_features=out)
        init, dtype = _init.uniform(first), self.param_dtype
        self.weight = self.param("weight", init, (out, first, second), dtype)
        self.bias = self.param("bias", init, (out,), dtype) if self.use_bias else None

    def __call__(self, x1: jax.Array, x2: jax.Array) -> jax.Array:
        """Map ``(..., I)`` and ``(..., J)`` to ``(..., O)``."""
        return bilinear(x1, x2, self.weight, self.bias)

"""The bilinear layer of torch, in Flax NNX."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxclip.models import _init
from jaxclip.models._checks import check_sizes


def bilinear(
    x1: jax.Array, x2: jax.Array, weight: jax.Array, bias: jax.Array | None
) -> jax.Array:
    """Contract two vectors with each matrix of a weight."""
    y = jnp.einsum("...i,oij,...j->...o", x1, weight, x2)
    return y if bias is None else y + bias


class Bilinear(nnx.Module):
    r"""A bilinear form for each output, as ``torch.nn.Bilinear``.

    .. math:: y_o = x_1^T W_o x_2 + b_o

    Args:
        in1_features: ``I``, the length of the first input.
        in2_features: ``J``, the length of the second.
        out_features: ``O``, the length of the output.
        use_bias: Whether a bias is added.
        param_dtype: The dtype of the parameters.
        rngs: Where the parameters are drawn from: ``U(-1/√I, 1/√I)``, as torch does.

    Attributes:
        weight: ``(O, I, J)``.
        bias: ``(O,)``, or None.

    Raises:
        ValueError: If a size is less than 1.

    Example:
        >>> layer = Bilinear(3, 4, 2, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((5, 3)), jnp.ones((5, 4))).shape
        (5, 2)
    """

    def __init__(
        self,
        in1_features: int,
        in2_features: int,
        out_features: int,
        *,
        use_bias: bool = True,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Draw the parameters; see the class for their shapes."""
        check_sizes(
            in1_features=in1_features,
            in2_features=in2_features,
            out_features=out_features,
        )
        init, shape = _init.uniform(in1_features), (in1_features, in2_features)
        weight = init(rngs.params(), (out_features, *shape), param_dtype)
        bias = init(rngs.params(), (out_features,), param_dtype) if use_bias else None
        self.weight = nnx.Param(weight)
        self.bias = nnx.data(None if bias is None else nnx.Param(bias))

    def __call__(self, x1: jax.Array, x2: jax.Array) -> jax.Array:
        """Map ``(..., I)`` and ``(..., J)`` to ``(..., O)``."""
        bias = None if self.bias is None else self.bias[...]
        return bilinear(x1, x2, self.weight[...], bias)

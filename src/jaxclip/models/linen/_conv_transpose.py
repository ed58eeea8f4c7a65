"""The transposed convolution of torch, groups and all, in Flax Linen."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxclip.models._conv_transpose import Window, conv_transpose, geometry


class ConvTranspose(nn.Module):
    """The transposed convolution, as ``torch.nn.ConvTranspose1d``, ``2d`` and ``3d``.

    See ``jaxclip.models.ConvTranspose`` for the formula, and for the names and shapes
    of the parameters, which are torch's.

    Attributes:
        in_features: The number of input channels.
        out_features: The number of output channels.
        kernel_size: The length of the window along each spatial axis.
        strides: How far apart the inputs are spread, on each axis or on all.
        padding: How much of the output is left away at both ends.
        output_padding: How much longer the output is at the far end.
        kernel_dilation: How far apart the elements of the window are.
        feature_group_count: In how many groups the channels are taken.
        use_bias: Whether a bias is added.
        param_dtype: The dtype of the parameters.

    Example:
        >>> layer = ConvTranspose(4, 6, (3, 3), strides=2, feature_group_count=2)
        >>> x = jnp.ones((1, 5, 5, 4))
        >>> y, variables = layer.init_with_output(jax.random.key(0), x)
        >>> y.shape, variables["params"]["weight"].shape
        ((1, 11, 11, 6), (4, 3, 3, 3))
    """

    in_features: int
    out_features: int
    kernel_size: Window
    strides: Window = 1
    padding: Window = 0
    output_padding: Window = 0
    kernel_dilation: Window = 1
    feature_group_count: int = 1
    use_bias: bool = True
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        """Make the parameters; see the class for their shapes."""
        self.window = geometry(
            self.in_features,
            self.out_features,
            self.kernel_size,
            strides=self.strides,
            padding=self.padding,
            output_padding=self.output_padding,
            kernel_dilation=self.kernel_dilation,
            feature_group_count=self.feature_group_count,
        )
        init, outputs = self.window.init(self.out_features), self.out_features
        shape = self.window.weight_shape(self.in_features, outputs)
        self.weight = self.param("weight", init, shape, self.param_dtype)
        self.bias = (
            self.param("bias", init, (outputs,), self.param_dtype)
            if self.use_bias
            else None
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``(..., *spatial, in_features)`` to ``(..., *spatial, out_features)``."""
        return conv_transpose(x, self.weight, self.bias, self.window)

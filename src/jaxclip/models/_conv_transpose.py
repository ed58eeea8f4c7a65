"""The transposed convolution of torch, groups and all, in Flax NNX."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxclip.models import _init
from jaxclip.models._checks import check_channels, check_sizes

Window = int | Sequence[int]
"""A number for each spatial axis, or one for all."""


class Geometry(NamedTuple):
    """How the window of a transposed convolution moves, for each spatial axis."""

    kernel_size: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[int, ...]
    output_padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def weight_shape(self, in_features: int, out_features: int) -> tuple[int, ...]:
        """Return the shape of the weight, which is torch's."""
        return (in_features, out_features // self.groups, *self.kernel_size)

    def init(self, out_features: int) -> _init.Initializer:
        """Return what torch draws both arrays from: its fan counts the outputs."""
        return _init.uniform(out_features // self.groups * math.prod(self.kernel_size))


def geometry(
    in_features: int,
    out_features: int,
    kernel_size: Window,
    *,
    strides: Window,
    padding: Window,
    output_padding: Window,
    kernel_dilation: Window,
    feature_group_count: int,
) -> Geometry:
    """Check the arguments of a transposed convolution, and spell them out.

    Raises:
        ValueError: If a size is below 1, groups do not divide the features, a number
            of values is not that of the axes, or ``output_padding`` is too large.
    """
    groups = feature_group_count
    check_sizes(
        in_features=in_features, out_features=out_features, feature_group_count=groups
    )
    if in_features % groups or out_features % groups:
        raise ValueError(
            f"feature_group_count is {groups}; it must divide in_features, "
            f"{in_features}, and out_features, {out_features}."
        )
    sizes = (kernel_size,) if isinstance(kernel_size, int) else tuple(kernel_size)

    def spread(name: str, value: Window, least: int) -> tuple[int, ...]:
        values = (value,) * len(sizes) if isinstance(value, int) else tuple(value)
        if len(values) != len(sizes) or any(number < least for number in values):
            raise ValueError(
                f"{name} is {value!r}; it must be an integer of at least {least}, or "
                f"one for each of the {len(sizes)} axes of the kernel."
            )
        return values

    result = Geometry(
        spread("kernel_size", sizes, 1),
        spread("strides", strides, 1),
        spread("padding", padding, 0),
        spread("output_padding", output_padding, 0),
        spread("kernel_dilation", kernel_dilation, 1),
        groups,
    )
    for extra, stride, dilation in zip(
        result.output_padding, result.strides, result.dilation, strict=True
    ):
        if extra >= max(stride, dilation):
            raise ValueError(
                f"output_padding is {output_padding!r}; on each axis it must be less "
                f"than the stride, {strides!r}, or the dilation, {kernel_dilation!r}."
            )
    return result


def conv_transpose(
    x: jax.Array, weight: jax.Array, bias: jax.Array | None, window: Geometry
) -> jax.Array:
    """Transpose a convolution: spread the input out, and convolve it.

    Args:
        x: ``(..., *spatial, in_features)``.
        weight: ``(in_features, out_features / groups, *kernel_size)``.
        bias: ``(out_features,)`` or None.
        window: How the window moves.

    Returns:
        ``(..., *spatial, out_features)``.

    Raises:
        ValueError: If the last axis of ``x`` is not the channels.
    """
    check_channels(x, weight.shape[0])
    ndim, groups = len(window.kernel_size), window.groups
    batch, (inputs, outputs) = x.shape[: -ndim - 1], weight.shape[:2]
    dtype = jnp.result_type(x, weight)

    # A convolution has its input features by group: (I / groups, O, *kernel_size).
    kernel = weight.reshape(groups, inputs // groups, outputs, *window.kernel_size)
    kernel = kernel.swapaxes(0, 1).reshape(inputs // groups, -1, *window.kernel_size)
    kernel = jnp.flip(kernel, range(2, ndim + 2))

    padding = []
    for k, d, p, extra in zip(
        window.kernel_size,
        window.dilation,
        window.padding,
        window.output_padding,
        strict=True,
    ):
        reach = d * (k - 1)
        padding.append((reach - p, reach - p + extra))
    axes = tuple(range(1, ndim + 1))
    y = jax.lax.conv_general_dilated(
        x.reshape(-1, *x.shape[-ndim - 1 :]).astype(dtype),
        kernel.astype(dtype),
        window_strides=(1,) * ndim,
        padding=padding,
        lhs_dilation=window.strides,
        rhs_dilation=window.dilation,
        # Batch and channels, then the spatial axes, in each of the three arrays.
        dimension_numbers=jax.lax.ConvDimensionNumbers(
            (0, ndim + 1, *axes), (1, 0, *range(2, ndim + 2)), (0, ndim + 1, *axes)
        ),
        feature_group_count=groups,
    )
    y = y.reshape(*batch, *y.shape[1:])
    return y if bias is None else y + bias


class ConvTranspose(nnx.Module):
    r"""The transposed convolution, as ``torch.nn.ConvTranspose1d``, ``2d`` and ``3d``.

    .. math:: y_{s i + d k - p} \mathrel{+}= w_k^T x_i

    for strides ``s``, dilation ``d`` and padding ``p``, channels last. The weight is
    torch's, and lies as torch's does. A spatial axis of ``n`` becomes one of
    ``(n - 1) s - 2 p + d (k - 1) + output_padding + 1``.

    Differs from ``nnx.ConvTranspose``: that has no groups, its ``padding`` is of the
    spread-out input, and its kernel lies otherwise.

    Args:
        in_features: The number of input channels.
        out_features: The number of output channels.
        kernel_size: The length of the window along each spatial axis.
        strides: How far apart the inputs are spread, on each axis or on all.
        padding: How much of the output is left away at both ends.
        output_padding: How much longer the output is at the far end; less than the
            stride or the dilation.
        kernel_dilation: How far apart the elements of the window are.
        feature_group_count: In how many groups the channels are taken, each for
            itself.
        use_bias: Whether a bias is added.
        param_dtype: The dtype of the parameters.
        rngs: Where the parameters are drawn from, as torch draws them.

    Attributes:
        weight: ``(in_features, out_features / groups, *kernel_size)``.
        bias: ``(out_features,)``, or None.

    Raises:
        ValueError: If a size or a number of values does not fit.

    Example:
        >>> layer = ConvTranspose(
        ...     4, 6, (3, 3), strides=2, padding=1, output_padding=1,
        ...     feature_group_count=2, rngs=nnx.Rngs(0),
        ... )
        >>> layer(jnp.ones((1, 5, 5, 4))).shape, layer.weight.shape
        ((1, 10, 10, 6), (4, 3, 3, 3))
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Window,
        *,
        strides: Window = 1,
        padding: Window = 0,
        output_padding: Window = 0,
        kernel_dilation: Window = 1,
        feature_group_count: int = 1,
        use_bias: bool = True,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Draw the parameters; see the class for their shapes."""
        self.window = geometry(
            in_features,
            out_features,
            kernel_size,
            strides=strides,
            padding=padding,
            output_padding=output_padding,
            kernel_dilation=kernel_dilation,
            feature_group_count=feature_group_count,
        )
        init = self.window.init(out_features)
        shape = self.window.weight_shape(in_features, out_features)
        self.weight = nnx.Param(init(rngs.params(), shape, param_dtype))
        bias = init(rngs.params(), (out_features,), param_dtype) if use_bias else None
        self.bias = nnx.data(None if bias is None else nnx.Param(bias))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``(..., *spatial, in_features)`` to ``(..., *spatial, out_features)``."""
        bias = None if self.bias is None else self.bias[...]
        return conv_transpose(x, self.weight[...], bias, self.window)

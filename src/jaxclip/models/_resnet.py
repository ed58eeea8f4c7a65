"""A small ResNet with batch normalisation, in Flax NNX."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxclip.models import _init
from jaxclip.models._batch_norm import BatchNorm
from jaxclip.models._checks import check_sizes


class BasicBlock(nnx.Module):
    """Two convolutions, added to the input, which is projected where sizes differ.

    The counterpart of ``torchref.resnet.BasicBlock``, channels last.

    Args:
        in_channels: The channels of the input.
        out_channels: The channels of the output.
        stride: By what the height and the width are divided.
        rngs: Where the parameters are drawn from, as torch draws them.
        param_dtype: The dtype of the parameters, and of the computation.

    Attributes:
        conv1: An ``nnx.Conv`` of a window of three and the stride, without a bias.
        bn1: The ``BatchNorm`` after it.
        conv2: An ``nnx.Conv`` of a window of three, without a bias.
        bn2: The ``BatchNorm`` after it.
        downsample: An ``nnx.Conv`` of a window of one and a ``BatchNorm``, or nothing.

    Example:
        >>> block = BasicBlock(4, 8, stride=2, rngs=nnx.Rngs(0))
        >>> block(jnp.ones((2, 6, 6, 4))).shape
        (2, 3, 3, 8)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        rngs: nnx.Rngs,
        param_dtype: Any = jnp.float32,
    ) -> None:
        """Make the layers."""
        sizes, options = (in_channels, out_channels), (rngs, param_dtype)
        self.conv1 = _conv(*sizes, 3, stride, *options)
        self.bn1 = BatchNorm(out_channels, param_dtype=param_dtype)
        self.conv2 = _conv(out_channels, out_channels, 3, 1, *options)
        self.bn2 = BatchNorm(out_channels, param_dtype=param_dtype)
        self.downsample: nnx.List[Any] = nnx.List([])
        if stride > 1 or in_channels != out_channels:
            self.downsample.append(_conv(*sizes, 1, stride, *options))
            self.downsample.append(BatchNorm(out_channels, param_dtype=param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``(B, H, W, in_channels)`` to ``(B, H', W', out_channels)``."""
        hidden = jax.nn.relu(self.bn1(self.conv1(x)))
        for layer in self.downsample:
            x = layer(x)
        return jax.nn.relu(self.bn2(self.conv2(hidden)) + x)


class ResNet(nnx.Module):
    """A residual net that tells classes of images apart.

    The counterpart of ``torchref.resnet.ResNet``, channels last. A new model is in
    training mode, as torch's: it normalises with the moments of the batch, and takes
    them into its running averages. ``model.eval()`` uses these instead.

    Args:
        in_channels: The channels of an image.
        num_classes: The number of classes.
        widths: The channels of each stage; every stage but the first halves the
            height and the width.
        depth: The number of blocks in a stage.
        rngs: Where the parameters are drawn from, as torch draws them.
        param_dtype: The dtype of the parameters, and of the computation.

    Attributes:
        conv1: An ``nnx.Conv`` of a window of three, without a bias.
        bn1: The ``BatchNorm`` after it.
        stages: The blocks of each stage.
        fc: The ``nnx.Linear(widths[-1], num_classes)``.

    Raises:
        ValueError: If a size is less than 1, or there are no widths.

    Example:
        >>> model = ResNet(3, 10, widths=(4, 8), rngs=nnx.Rngs(0))
        >>> model(jnp.ones((2, 6, 6, 3))).shape
        (2, 10)

    References:
        He et al., *Deep Residual Learning for Image Recognition* (2015).
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        widths: Sequence[int] = (16, 32, 64),
        depth: int = 1,
        *,
        rngs: nnx.Rngs,
        param_dtype: Any = jnp.float32,
    ) -> None:
        """Make the layers."""
        check_sizes(in_channels=in_channels, num_classes=num_classes, depth=depth)
        check_sizes(**{"the number of widths": len(widths)})
        self.conv1 = _conv(in_channels, widths[0], 3, 1, rngs, param_dtype)
        self.bn1 = BatchNorm(widths[0], param_dtype=param_dtype)

        def block(before: int, width: int, stride: int) -> BasicBlock:
            return BasicBlock(before, width, stride, rngs=rngs, param_dtype=param_dtype)

        self.stages = nnx.List(
            [
                nnx.List([block(*sizes) for sizes in stage])
                for stage in block_sizes(widths, depth)
            ]
        )
        self.fc = nnx.Linear(
            widths[-1],
            num_classes,
            param_dtype=param_dtype,
            rngs=rngs,
            **_init.linear(widths[-1]),
        )

    def __call__(self, images: jax.Array) -> jax.Array:
        """Map images, ``(B, H, W, in_channels)``, to logits, ``(B, num_classes)``."""
        x = jax.nn.relu(self.bn1(self.conv1(images)))
        for stage in self.stages:
            for block in stage:
                x = block(x)
        return self.fc(x.mean(axis=(1, 2)))


def block_sizes(widths: Sequence[int], depth: int) -> list[list[tuple[int, int, int]]]:
    """Return the channels before and after, and the stride, of each stage's blocks."""
    befores = (widths[0], *widths)
    return [
        [(before, width, 2 if index else 1), *[(width, width, 1)] * (depth - 1)]
        for index, (before, width) in enumerate(zip(befores, widths, strict=False))
    ]


def _conv(
    in_channels: int,
    out_channels: int,
    window: int,
    stride: int,
    rngs: nnx.Rngs,
    param_dtype: Any,
) -> nnx.Conv:
    return nnx.Conv(
        in_channels,
        out_channels,
        (window, window),
        stride,
        padding=window // 2,
        use_bias=False,
        param_dtype=param_dtype,
        rngs=rngs,
        **_init.conv(in_channels, (window, window)),
    )

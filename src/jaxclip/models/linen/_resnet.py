"""A small ResNet with batch normalisation, in Flax Linen."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxclip.models import _init
from jaxclip.models._checks import check_sizes
from jaxclip.models._resnet import block_sizes
from jaxclip.models.linen._batch_norm import BatchNorm


class BasicBlock(nn.Module):
    """Two convolutions, added to the input, which is projected where sizes differ.

    The counterpart of ``torchref.resnet.BasicBlock``, channels last, with submodules
    named "conv1", "bn1", "conv2", "bn2", and "downsample_0" and "downsample_1" where
    sizes differ.

    Attributes:
        in_channels: The channels of the input.
        out_channels: The channels of the output.
        stride: By what the height and the width are divided.
        param_dtype: The dtype of the parameters, and of the computation.

    Example:
        >>> block, x = BasicBlock(4, 8, stride=2), jnp.ones((2, 6, 6, 4))
        >>> y, variables = block.init_with_output(jax.random.key(0), x, train=True)
        >>> y.shape, sorted(variables)
        ((2, 3, 3, 8), ['batch_stats', 'params'])
    """

    in_channels: int
    out_channels: int
    stride: int = 1
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        """Make the layers."""
        before, after, dtype = self.in_channels, self.out_channels, self.param_dtype
        self.conv1 = _conv(before, after, 3, self.stride, dtype)
        self.bn1 = BatchNorm(after, param_dtype=dtype)
        self.conv2 = _conv(after, after, 3, 1, dtype)
        self.bn2 = BatchNorm(after, param_dtype=dtype)
        self.downsample: list[nn.Module] = []
        if self.stride > 1 or before != after:
            self.downsample = [
                _conv(before, after, 1, self.stride, dtype),
                BatchNorm(after, param_dtype=dtype),
            ]

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map ``(B, H, W, in_channels)`` to ``(B, H', W', out_channels)``."""
        hidden = self.bn1(self.conv1(x), use_running_average=not train)
        hidden = self.conv2(jax.nn.relu(hidden))
        if self.downsample:
            conv, norm = self.downsample
            x = norm(conv(x), use_running_average=not train)
        return jax.nn.relu(self.bn2(hidden, use_running_average=not train) + x)


class ResNet(nn.Module):
    """A residual net that tells classes of images apart.

    See ``jaxclip.models.ResNet``; the parameters are those of
    ``torchref.resnet.ResNet``, and the running averages are in the collection
    "batch_stats", which must be mutable in training.

    Attributes:
        in_channels: The channels of an image.
        num_classes: The number of classes.
        widths: The channels of each stage; every stage but the first halves the
            height and the width.
        depth: The number of blocks in a stage.
        param_dtype: The dtype of the parameters, and of the computation.

    Raises:
        ValueError: If a size is less than 1, or there are no widths.

    Example:
        >>> model, images = ResNet(3, 10, widths=(4, 8)), jnp.ones((2, 6, 6, 3))
        >>> variables = model.init(jax.random.key(0), images, train=False)
        >>> logits, updates = model.apply(
        ...     variables, images, train=True, mutable=["batch_stats"]
        ... )
        >>> logits.shape, sorted(updates)
        ((2, 10), ['batch_stats'])
    """

    in_channels: int
    num_classes: int
    widths: Sequence[int] = (16, 32, 64)
    depth: int = 1
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        """Make the layers."""
        check_sizes(
            in_channels=self.in_channels,
            num_classes=self.num_classes,
            depth=self.depth,
        )
        check_sizes(**{"the number of widths": len(self.widths)})
        dtype = self.param_dtype
        self.conv1 = _conv(self.in_channels, self.widths[0], 3, 1, dtype)
        self.bn1 = BatchNorm(self.widths[0], param_dtype=dtype)
        self.stages = [
            [BasicBlock(*sizes, param_dtype=dtype) for sizes in stage]
            for stage in block_sizes(self.widths, self.depth)
        ]
        self.fc = nn.Dense(
            self.num_classes, param_dtype=dtype, **_init.linear(self.widths[-1])
        )

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Map images to logits.

        Args:
            images: ``(B, H, W, in_channels)``.
            train: Whether the moments of the batch are used, and taken into the
                running averages; if not, these are used.

        Returns:
            The logits, ``(B, num_classes)``.
        """
        x = self.bn1(self.conv1(images), use_running_average=not train)
        x = jax.nn.relu(x)
        for stage in self.stages:
            for block in stage:
                x = block(x, train=train)
        return self.fc(x.mean(axis=(1, 2)))


def _conv(
    in_channels: int, out_channels: int, window: int, stride: int, param_dtype: Any
) -> nn.Conv:
    return nn.Conv(
        out_channels,
        (window, window),
        stride,
        padding=window // 2,
        use_bias=False,
        param_dtype=param_dtype,
        **_init.conv(in_channels, (window, window)),
    )

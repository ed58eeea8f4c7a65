"""A small ResNet with batch normalisation.

Images are ``(B, C, H, W)``, channels first, as torch has them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchref._checks import at_least


class BasicBlock(nn.Module):
    """Two convolutions, added to the input, which is projected where sizes differ.

    Args:
        in_channels: The channels of the input.
        out_channels: The channels of the output.
        stride: By what the height and the width are divided.

    Attributes:
        conv1: ``nn.Conv2d(in_channels, out_channels, 3, stride)``, without a bias.
        bn1: ``nn.BatchNorm2d(out_channels)``.
        conv2: ``nn.Conv2d(out_channels, out_channels, 3)``, without a bias.
        bn2: ``nn.BatchNorm2d(out_channels)``.
        downsample: A convolution by a window of one and a norm, or nothing.

    Example:
        >>> BasicBlock(4, 8, stride=2)(torch.ones(2, 4, 6, 6)).shape
        torch.Size([2, 8, 3, 3])
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        """Make the layers."""
        super().__init__()
        self.conv1 = nn.Conv2d(
            in_channels, out_channels, 3, stride, padding=1, bias=False
        )
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = nn.Sequential()
        if stride > 1 or in_channels != out_channels:
            self.downsample.append(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            )
            self.downsample.append(nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, in_channels, H, W)`` to ``(B, out_channels, H', W')``."""
        hidden = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(hidden)) + self.downsample(x))


class ResNet(nn.Module):
    """A residual net that tells classes of images apart.

    Args:
        in_channels: The channels of an image.
        num_classes: The number of classes.
        widths: The channels of each stage; every stage but the first halves the
            height and the width.
        depth: The number of blocks in a stage.

    Attributes:
        conv1: ``nn.Conv2d(in_channels, widths[0], 3)``, without a bias.
        bn1: ``nn.BatchNorm2d(widths[0])``.
        stages: The blocks of each stage.
        fc: ``nn.Linear(widths[-1], num_classes)``.

    Raises:
        ValueError: If a size is less than 1, or there are no widths.

    Example:
        >>> model = ResNet(in_channels=3, num_classes=10, widths=(4, 8))
        >>> model(torch.ones(2, 3, 6, 6)).shape
        torch.Size([2, 10])

    References:
        He et al., *Deep Residual Learning for Image Recognition* (2015).
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        widths: Sequence[int] = (16, 32, 64),
        depth: int = 1,
    ) -> None:
        """Make the layers."""
        super().__init__()
        at_least(1, in_channels=in_channels, num_classes=num_classes, depth=depth)
        at_least(1, **{"the number of widths": len(widths)})
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.stages = nn.ModuleList()
        before = widths[0]
        for index, width in enumerate(widths):
            blocks = [BasicBlock(before, width, stride=2 if index else 1)]
            blocks += [BasicBlock(width, width) for _ in range(depth - 1)]
            self.stages.append(nn.Sequential(*blocks))
            before = width
        self.fc = nn.Linear(before, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images, ``(B, in_channels, H, W)``, to logits, ``(B, num_classes)``."""
        x = F.relu(self.bn1(self.conv1(images)))
        for stage in self.stages:
            x = stage(x)
        logits: Tensor = self.fc(torch.mean(x, dim=(2, 3)))
        return logits

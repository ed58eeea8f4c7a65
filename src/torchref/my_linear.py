"""A small feed-forward net with a hand-made linear layer inside."""

import torch
from torch import Tensor, nn


class MyLinear(nn.Module):
    """Two affine maps in a row, the first of them written out by hand.

    .. math:: y = (x W + b) A^T + c

    ``W`` has shape ``(in_features, out_features)``: it multiplies from the right,
    so it lies transposed to the weight ``A`` of the ``nn.Linear`` that follows.
    Both ``W`` and ``b`` are drawn from the standard normal distribution.

    Args:
        in_features: The length of an input vector.
        out_features: The length of an output vector.

    Attributes:
        weight: ``W``, of shape ``(in_features, out_features)``.
        bias: ``b``, of shape ``(out_features,)``.
        fc: The ``nn.Linear(out_features, out_features)`` that holds ``A`` and ``c``.

    Example:
        >>> layer = MyLinear(4, 3)
        >>> [name for name, _ in layer.named_parameters()]
        ['weight', 'bias', 'fc.weight', 'fc.bias']
        >>> layer(torch.ones(2, 4)).shape
        torch.Size([2, 3])
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        """Draw the parameters; see the class for their shapes."""
        super().__init__()
        self.weight = nn.Parameter(torch.randn(in_features, out_features))
        self.bias = nn.Parameter(torch.randn(out_features))
        self.fc = nn.Linear(out_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x``, of shape ``(..., in_features)``, to ``(..., out_features)``."""
        y: Tensor = self.fc(x @ self.weight + self.bias)
        return y


def my_net() -> nn.Sequential:
    """Build ``MyLinear(4, 3)``, named "1", followed by ``nn.Linear(3, 1)``, named "3".

    Returns:
        The net, which maps ``(..., 4)`` to ``(..., 1)``.

    Example:
        >>> net = my_net()
        >>> [name for name, _ in net.named_parameters()]
        ['1.weight', '1.bias', '1.fc.weight', '1.fc.bias', '3.weight', '3.bias']
        >>> net(torch.ones(4)).shape
        torch.Size([1])
    """
    net = nn.Sequential()
    net.add_module("1", MyLinear(4, 3))
    net.add_module("3", nn.Linear(3, 1))
    return net

"""Clipping by the global norm, as *Dive into Deep Learning* writes it."""

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor, nn

from torchref._checks import at_least


class HasParams(Protocol):
    """A net made from scratch: it keeps its parameters in ``.params``."""

    @property
    def params(self) -> Iterable[Tensor]:
        """The parameters, in a fixed order."""


@torch.no_grad()
def grad_clipping(net: nn.Module | HasParams, theta: float) -> Tensor:
    r"""Clip all gradients of ``net`` together, in place, to a norm of ``theta``.

    .. math:: g \leftarrow \min\left(1, \frac{\theta}{\|g\|}\right) g

    where ``g`` is every gradient of the net laid end to end. A norm that is NaN
    clips nothing.

    Differs from the book's function: a parameter without a gradient is skipped where
    the book's fails, and the norm is returned.

    Differs from ``nn.utils.clip_grad_norm_``: nothing is added to the norm before
    the division, so a gradient whose norm is exactly ``theta`` is left as it is.

    Args:
        net: An ``nn.Module``, whose parameters that require a gradient are taken, or
            any object that lists its parameters in ``.params``.
        theta: The greatest norm allowed, in the units of the gradients; at least 0.

    Returns:
        The norm before clipping, 0-d; 0 where no parameter has a gradient.

    Raises:
        TypeError: If ``net`` is no ``nn.Module`` and has no ``.params``.
        ValueError: If ``theta`` is negative or NaN.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> net.weight.grad = torch.tensor([[3.0, 4.0]])
        >>> grad_clipping(net, theta=1)
        tensor(5.)
        >>> net.weight.grad
        tensor([[0.6000, 0.8000]])

    References:
        Zhang et al., *Dive into Deep Learning*, section 9.5, "Gradient Clipping".
    """
    at_least(0, theta=theta)
    grads = [p.grad for p in trainable_parameters(net) if p.grad is not None]
    norm = torch.sqrt(torch.as_tensor(sum(torch.sum(grad**2) for grad in grads)))
    if norm > theta:
        for grad in grads:
            grad *= theta / norm
    return norm


def trainable_parameters(net: nn.Module | HasParams) -> list[Tensor]:
    """Return a module's parameters that require a gradient, or a net's ``.params``.

    Raises:
        TypeError: If ``net`` is no ``nn.Module`` and has no ``.params``.

    Example:
        >>> [p.shape for p in trainable_parameters(nn.Linear(2, 1))]
        [torch.Size([1, 2]), torch.Size([1])]
    """
    if isinstance(net, nn.Module):
        return [p for p in net.parameters() if p.requires_grad]
    if not hasattr(net, "params"):
        raise TypeError(
            f"net is a {type(net).__name__}; it must be an nn.Module, or an object "
            "that lists its parameters in `.params`."
        )
    return list(net.params)

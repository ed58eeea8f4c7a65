"""Every way there is to clip gradients to a norm.

Some scale by ``max_norm / (norm + 1e-6)``, as torch does, the others by
``max_norm / norm``, as *Dive into Deep Learning* and Optax do.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
import torch
from torch import nn

import jaxclip
from torchref.grad_clipping import grad_clipping

MAX_NORM = 1.0
"""The norm to which the gradients are clipped."""

TorchClip = Callable[[nn.Module], object]
"""Clips the gradients of a net in place."""

JaxClip = Callable[[Any], Any]
"""Maps a tree of gradients to the clipped ones."""


@dataclass(frozen=True)
class Formula:
    """A formula, and what computes it.

    Attributes:
        text: What the gradients are scaled by, where their norm is too large.
        eps: What it adds to the norm.
        in_torch: The ways in torch; the others are held against the first.
        in_jax: The ways in JAX.
    """

    text: str
    eps: float
    in_torch: Mapping[str, TorchClip]
    in_jax: Mapping[str, JaxClip]

    def exact(self, grads: Any) -> Any:
        """Compute it with jaxclip; exact if the gradients are float64."""
        return jaxclip.clip_grad_norm(grads, MAX_NORM, eps=self.eps)[0]


def _clip_grad_norm(net: nn.Module) -> None:
    nn.utils.clip_grad_norm_(net.parameters(), MAX_NORM)


def _grad_clipping(net: nn.Module) -> None:
    grad_clipping(net, MAX_NORM)


def _notebook_loop(net: nn.Module) -> None:
    """Clip by hand, as a cell of the notebook does."""
    grads = [param.grad for param in net.parameters() if param.grad is not None]
    norm = torch.tensor(0.0)
    for grad in grads:
        norm += torch.sum(grad**2)
    norm = torch.sqrt(norm)
    if norm > MAX_NORM:
        for grad in grads:
            grad[:] *= MAX_NORM / norm


def _in_chain(clip: optax.GradientTransformation, grads: Any) -> Any:
    """Clip as a part of an optimizer: SGD with a learning rate of 1 adds ``-g``."""
    optimizer = optax.chain(clip, optax.sgd(1.0))
    updates, _ = optimizer.update(grads, optimizer.init(grads))
    return jax.tree.map(jnp.negative, updates)


FORMULAS = (
    Formula(
        "max_norm / norm",
        eps=0.0,
        in_torch={
            "D2L's grad_clipping": _grad_clipping,
            "the notebook's loop": _notebook_loop,
        },
        in_jax={
            "jaxclip.clip_grad_norm(eps=0)": lambda grads: jaxclip.clip_grad_norm(
                grads, MAX_NORM, eps=0
            )[0],
            "jaxclip.clip_by_global_norm(eps=0)": lambda grads: _in_chain(
                jaxclip.clip_by_global_norm(MAX_NORM, eps=0), grads
            ),
            "optax.clip_by_global_norm": lambda grads: _in_chain(
                optax.clip_by_global_norm(MAX_NORM), grads
            ),
        },
    ),
    Formula(
        "max_norm / (norm + 1e-6)",
        eps=1e-6,
        in_torch={"nn.utils.clip_grad_norm_": _clip_grad_norm},
        in_jax={
            "jaxclip.clip_grad_norm": lambda grads: jaxclip.clip_grad_norm(
                grads, MAX_NORM
            )[0],
            "jaxclip.clip_by_global_norm": lambda grads: _in_chain(
                jaxclip.clip_by_global_norm(MAX_NORM), grads
            ),
        },
    ),
)

"""A small net that draws random numbers, and whose port scans over its layers."""

from functools import partial

import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn
from torch.nn import functional as F

from jaxclip.parity import replayed_draw, replayed_mask
from tests.parity.small_nets import FEATURES

LAYERS, HIDDEN, RATE = 3, 7, 0.2


class Block(nn.Module):
    """A residual layer with dropout."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.norm = nn.LayerNorm(FEATURES)
        self.up = nn.Linear(FEATURES, HIDDEN)
        self.drop = nn.Dropout(RATE)
        self.down = nn.Linear(HIDDEN, FEATURES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, FEATURES)`` to the same."""
        hidden: torch.Tensor = self.down(self.drop(F.gelu(self.up(self.norm(x)))))
        return x + hidden


class Sampled(nn.Module):
    """A sample of a normal distribution, and layers after it."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.mean = nn.Linear(FEATURES, FEATURES)
        self.logvar = nn.Linear(FEATURES, FEATURES)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.head = nn.Linear(FEATURES, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, FEATURES)`` to ``(B, 2)``."""
        mean, logvar = self.mean(x), self.logvar(x)
        x = mean + torch.randn_like(mean) * torch.exp(logvar / 2)
        for block in self.blocks:
            x = block(x)
        outputs: torch.Tensor = self.head(x)
        return outputs


class BlockPort(nnx.Module):
    """The port of `Block`."""

    def __init__(self, fault: str, rngs: nnx.Rngs) -> None:
        """Make the layers."""
        self.fault = fault
        self.norm = nnx.LayerNorm(FEATURES, epsilon=1e-5, rngs=rngs)
        self.up = nnx.Linear(FEATURES, HIDDEN, rngs=rngs)
        self.down = nnx.Linear(HIDDEN, FEATURES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``(B, FEATURES)`` to the same."""
        approximate = self.fault == "tanh GELU in scanned layers"
        hidden = jax.nn.gelu(self.up(self.norm(x)), approximate=approximate)
        keep = replayed_mask("blocks.*.drop", hidden == hidden)
        scale = 1.0 if self.fault == "what is kept not scaled up" else 1 - RATE
        return x + self.down(jnp.where(keep, hidden / scale, 0))


class SampledPort(nnx.Module):
    """The port of `Sampled`."""

    def __init__(self, fault: str = "", *, rngs: nnx.Rngs) -> None:
        """Make the layers."""
        self.fault = fault
        self.mean = nnx.Linear(FEATURES, FEATURES, rngs=rngs)
        self.logvar = nnx.Linear(FEATURES, FEATURES, rngs=rngs)
        self.blocks = nnx.vmap(partial(BlockPort, fault))(rngs.split(LAYERS))
        self.head = nnx.Linear(FEATURES, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``(B, FEATURES)`` to ``(B, 2)``."""
        mean, logvar = self.mean(x), self.logvar(x)
        noise = replayed_draw("", jnp.zeros_like(mean)).astype(mean.dtype)
        if self.fault == "one draw for all rows":
            noise = noise[:1]
        power = 1 if self.fault == "variance for standard deviation" else 2
        x = mean + noise * jnp.exp(logvar / power)
        scan = nnx.scan(
            lambda x, block: block(x),
            in_axes=(nnx.Carry, 0),
            out_axes=nnx.Carry,
            reverse=self.fault == "layers from the last to the first",
        )
        return self.head(scan(x, self.blocks))

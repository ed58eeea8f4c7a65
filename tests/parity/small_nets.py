"""Small nets of many kinds of layers, in torch and in NNX, with faults to plant.

Each port has the torch net's names. ``fault`` is the name of one thing that it does
otherwise; "" is the correct port.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn
from torch.nn import functional as F

from jaxclip import models

FEATURES, CHANNELS, SIZE, TOKENS, LENGTH, BATCH = 4, 3, 6, 5, 6, 8


class Vectors(nn.Module):
    """Linear layers, normalisation, gates, and a parameter that is frozen."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.fc1 = nn.Linear(FEATURES, FEATURES)
        self.norm = nn.LayerNorm(FEATURES)
        self.gates = nn.Linear(FEATURES, 2 * FEATURES)
        self.fc2 = nn.Linear(FEATURES, 2)
        self.scale = nn.Parameter(torch.randn(FEATURES), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, FEATURES)`` to ``(B, 2)``."""
        hidden = F.gelu(self.norm(self.fc1(x)) * self.scale)
        value, gate = self.gates(hidden).chunk(2, -1)
        output: torch.Tensor = self.fc2(value * torch.sigmoid(gate) + hidden.detach())
        return output


class TransposedLinear(nnx.Linear):
    """A layer with torch's square weight, not transposed."""

    def __call__(self, inputs: jax.Array) -> jax.Array:  # type: ignore[override]
        """Multiply by the kernel the other way round."""
        return inputs @ self.kernel[...].T + self.bias[...]


class OneWrongLinear(nnx.Linear):
    """A layer of whose outputs one element is wrong."""

    def __call__(self, inputs: jax.Array) -> jax.Array:  # type: ignore[override]
        """Add a little to one element."""
        return super().__call__(inputs).at[1, 2].add(1e-4)


class VectorsPort(nnx.Module):
    """The port of `Vectors`."""

    def __init__(self, fault: str = "", *, rngs: nnx.Rngs) -> None:
        """Make the layers."""
        self.fault = fault
        kinds = {"transposed": TransposedLinear, "one wrong element": OneWrongLinear}
        self.fc1 = kinds.get(fault, nnx.Linear)(FEATURES, FEATURES, rngs=rngs)
        epsilon = 1e-6 if fault == "eps of LayerNorm" else 1e-5
        self.norm = nnx.LayerNorm(FEATURES, epsilon=epsilon, rngs=rngs)
        self.gates = nnx.Linear(FEATURES, 2 * FEATURES, rngs=rngs)
        self.fc2 = nnx.Linear(FEATURES, 2, rngs=rngs)
        self.scale = nnx.Param(jnp.ones(FEATURES))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``(B, FEATURES)`` to ``(B, 2)``."""
        hidden = self.norm(self.fc1(x)) * self.scale[...]
        hidden = jax.nn.gelu(hidden, approximate=self.fault == "tanh GELU")
        if self.fault == "dropout left on":
            keep = jax.random.bernoulli(jax.random.key(0), 0.9, hidden.shape)
            hidden = jnp.where(keep, hidden / 0.9, 0.0)
        value, gate = jnp.split(self.gates(hidden), 2, -1)
        if self.fault == "swapped gates":
            value, gate = gate, value
        rest = (
            hidden if self.fault == "missing detach" else jax.lax.stop_gradient(hidden)
        )
        return self.fc2(value * jax.nn.sigmoid(gate) + rest)


class Images(nn.Module):
    """A convolution, batch normalisation, pooling, and a flattened layer."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, stride=2, padding=1)
        self.bn = nn.BatchNorm2d(CHANNELS)
        self.fc = nn.Linear(CHANNELS * (SIZE // 2) ** 2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, C, H, W)`` to ``(B, 2)``."""
        output: torch.Tensor = self.fc(torch.tanh(self.bn(self.conv(x))).flatten(1))
        return output


class ImagesPort(nnx.Module):
    """The port of `Images`."""

    def __init__(self, fault: str = "", *, rngs: nnx.Rngs) -> None:
        """Make the layers."""
        self.conv = nnx.Conv(
            *(CHANNELS, CHANNELS, (3, 3), (2, 2)),
            padding="SAME" if fault == "padding SAME" else 1,
            rngs=rngs,
        )
        kind = nnx.BatchNorm if fault == "biased variance" else models.BatchNorm
        momentum = 0.1 if kind is models.BatchNorm else 0.9
        if fault == "momentum of BatchNorm":
            momentum = 0.9
        self.bn = kind(CHANNELS, momentum=momentum, rngs=rngs)
        self.fc = nnx.Linear(CHANNELS * (SIZE // 2) ** 2, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``(B, C, H, W)`` to ``(B, 2)``."""
        hidden = jnp.tanh(self.bn(self.conv(jnp.moveaxis(x, 1, -1))))
        return self.fc(hidden.reshape(len(x), -1))


class Tokens(nn.Module):
    """Attention in one head, with an embedding that is tied to the output."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.embed = nn.Embedding(TOKENS, FEATURES)
        self.qkv = nn.Linear(FEATURES, 3 * FEATURES)
        self.head = nn.Linear(FEATURES, TOKENS, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, T)`` to ``(B, T, TOKENS)``."""
        embedded = self.embed(x)
        q, k, v = self.qkv(embedded).chunk(3, -1)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        logits: torch.Tensor = self.head(embedded + attended)
        return logits


class TokensPort(nnx.Module):
    """The port of `Tokens`."""

    def __init__(self, fault: str = "", *, rngs: nnx.Rngs) -> None:
        """Make the layers."""
        self.fault = fault
        self.embed = nnx.Embed(TOKENS, FEATURES, rngs=rngs)
        self.qkv = nnx.Linear(FEATURES, 3 * FEATURES, rngs=rngs)
        self.head = self.embed
        if fault == "tied weight untied":
            self.head = nnx.Linear(FEATURES, TOKENS, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``(B, T)`` to ``(B, T, TOKENS)``."""
        embedded = self.embed(x)
        q, k, v = jnp.split(self.qkv(embedded), 3, -1)
        scores = q @ jnp.swapaxes(k, -1, -2)
        if self.fault != "scale of attention forgotten":
            scores = scores / np.sqrt(FEATURES)
        mask = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        if self.fault == "mask inverted":
            mask = ~mask | jnp.eye(len(mask), dtype=bool)
        weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf))
        head = self.head if isinstance(self.head, nnx.Linear) else self.head.attend
        return head(embedded + weights @ v)


NETS: dict[str, tuple[type[nn.Module], Any]] = {
    "vectors": (Vectors, VectorsPort),
    "images": (Images, ImagesPort),
    "tokens": (Tokens, TokensPort),
}


def batches(net: str, steps: int, dtype: torch.dtype, seed: int = 0) -> list[Any]:
    """Draw batches of inputs and targets, both numbers or both classes."""
    rng = np.random.default_rng(seed)
    if net == "tokens":
        shape = (steps, 2, BATCH, LENGTH)
        return [(x, y) for x, y in torch.from_numpy(rng.integers(0, TOKENS, shape))]
    shape = (FEATURES,) if net == "vectors" else (CHANNELS, SIZE, SIZE)
    inputs = torch.from_numpy(rng.normal(size=(steps, BATCH, *shape))).to(dtype)
    targets = torch.from_numpy(rng.normal(size=(steps, BATCH, 2))).to(dtype)
    return [*zip(inputs, targets, strict=True)]

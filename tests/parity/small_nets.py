"""Small nets of many kinds of layers, in torch and in NNX, with faults to plant.

Each port has the torch net's names. ``fault`` is the name of one thing that it does
otherwise; "" is the correct port.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
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


class UnbiasedLinear(nnx.Linear):
    """A layer that forgets its bias."""

    def __call__(self, inputs: jax.Array) -> jax.Array:  # type: ignore[override]
        """Multiply by the kernel alone."""
        return inputs @ self.kernel[...]


class UnbiasedNorm(nnx.LayerNorm):
    """Layer normalisation by the unbiased variance."""

    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        """Divide by one element less."""
        centered = x - x.mean(-1, keepdims=True)
        rooted = jnp.sqrt(x.var(-1, keepdims=True, ddof=1) + self.epsilon)
        return centered / rooted * self.scale[...] + self.bias[...]


class VectorsPort(nnx.Module):
    """The port of `Vectors`."""

    def __init__(self, fault: str = "", *, rngs: nnx.Rngs) -> None:
        """Make the layers."""
        self.fault = fault
        kinds = {
            "transposed": TransposedLinear,
            "one wrong element": OneWrongLinear,
            "bias forgotten": UnbiasedLinear,
            "a layer in bfloat16": partial(nnx.Linear, dtype=jnp.bfloat16),
        }
        self.fc1 = kinds.get(fault, nnx.Linear)(FEATURES, FEATURES, rngs=rngs)
        epsilon = 1e-6 if fault == "eps of LayerNorm" else 1e-5
        norm = UnbiasedNorm if fault == "unbiased LayerNorm" else nnx.LayerNorm
        self.norm = norm(FEATURES, epsilon=epsilon, rngs=rngs)
        self.gates = nnx.Linear(FEATURES, 2 * FEATURES, rngs=rngs)
        self.fc2 = nnx.Linear(FEATURES, 2, rngs=rngs)
        self.scale = nnx.Param(jnp.ones(FEATURES))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``(B, FEATURES)`` to ``(B, 2)``."""
        hidden = self.norm(self.fc1(x)) * self.scale[...]
        if self.fault == "SiLU for GELU":
            hidden = jax.nn.silu(hidden)
        else:
            hidden = jax.nn.gelu(hidden, approximate=self.fault == "tanh GELU")
        if self.fault == "dropout left on":
            keep = jax.random.bernoulli(jax.random.key(0), 0.9, hidden.shape)
            hidden = jnp.where(keep, hidden / 0.9, 0.0)
        detach = self.fault == "too much detached"
        gated = jax.lax.stop_gradient(hidden) if detach else hidden
        value, gate = jnp.split(self.gates(gated), 2, -1)
        if self.fault == "swapped gates":
            value, gate = gate, value
        rest = (
            hidden if self.fault == "missing detach" else jax.lax.stop_gradient(hidden)
        )
        if self.fault == "residual forgotten":
            rest = 0.0
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


class FlippedConv(nnx.Conv):
    """A convolution as mathematics has it: the kernel the other way round."""

    def __call__(self, inputs: jax.Array) -> jax.Array:  # type: ignore[override]
        """Flip the kernel for the time of a call."""
        kernel = self.kernel[...]
        self.kernel[...] = kernel[::-1, ::-1]
        outputs = super().__call__(inputs)
        self.kernel[...] = kernel
        return outputs


class ImagesPort(nnx.Module):
    """The port of `Images`."""

    def __init__(self, fault: str = "", *, rngs: nnx.Rngs) -> None:
        """Make the layers."""
        self.fault = fault
        self.conv = (FlippedConv if fault == "kernel flipped" else nnx.Conv)(
            *(CHANNELS, CHANNELS, (3, 3), (2, 2)),
            padding="SAME" if fault == "padding SAME" else 1,
            rngs=rngs,
        )
        kind = nnx.BatchNorm if fault == "biased variance" else models.BatchNorm
        momentum = 0.1 if kind is models.BatchNorm else 0.9
        if fault == "momentum of BatchNorm":
            momentum = 0.9
        epsilon = 1e-3 if fault == "eps of BatchNorm" else 1e-5
        self.bn = kind(CHANNELS, momentum=momentum, epsilon=epsilon, rngs=rngs)
        self.fc = nnx.Linear(CHANNELS * (SIZE // 2) ** 2, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``(B, C, H, W)`` to ``(B, 2)``."""
        axes = (0, 3, 2, 1) if self.fault == "height for width" else (0, 2, 3, 1)
        hidden = self.conv(x.transpose(axes))
        if self.fault == "running averages used":
            hidden = self.bn(hidden, use_running_average=True)
        else:
            hidden = self.bn(hidden)
        hidden = jnp.tanh(hidden)
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
        if self.fault == "queries for keys":
            q, k = k, q
        scores = q @ jnp.swapaxes(k, -1, -2)
        if self.fault != "scale of attention forgotten":
            scores = scores / np.sqrt(FEATURES)
        diagonal = 1 if self.fault == "mask off by one" else 0
        mask = jnp.tril(jnp.ones(scores.shape[-2:], bool), diagonal)
        if self.fault == "mask inverted":
            mask = ~mask | jnp.eye(len(mask), dtype=bool)
        masked = scores - 10 if self.fault == "mask that leaks" else -jnp.inf
        axis = -2 if self.fault == "softmax over queries" else -1
        weights = jax.nn.softmax(jnp.where(mask, scores, masked), axis=axis)
        head = self.head if isinstance(self.head, nnx.Linear) else self.head.attend
        return head(embedded + weights @ v)


def squared(outputs: jax.Array, targets: jax.Array, fault: str) -> jax.Array:
    """Return the mean squared error."""
    squares = (outputs - targets) ** 2
    match fault:
        case "sum for mean":
            return squares.sum()
        case "mean over rows alone":
            return squares.sum(-1).mean()
        case "half the squared error":
            return 0.5 * squares.mean()
    return squares.mean()


def cross_entropy(logits: jax.Array, targets: jax.Array, fault: str) -> jax.Array:
    """Return the mean cross entropy."""
    if fault == "targets shifted":
        targets = jnp.roll(targets, -1, axis=1)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return losses.mean()


@dataclass(frozen=True)
class Net:
    """A net on both sides.

    Attributes:
        torch: Makes the torch net.
        port: Makes the port of it: ``port(fault, rngs=...)``.
        torch_loss: The loss of outputs and targets in torch.
        loss: The same in JAX; and of the fault.
        flatten: What its port says is flattened.
        frozen: Whether its parameter ``scale`` is frozen.
        stacked: Which of its modules the port has as one.
    """

    torch: type[nn.Module]
    port: Any
    torch_loss: Callable[..., torch.Tensor] = F.mse_loss
    loss: Callable[..., jax.Array] = squared
    flatten: dict[str, tuple[int, ...]] | None = None
    frozen: bool = False
    stacked: tuple[str, ...] = ()


def torch_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean cross entropy over all positions."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


NETS = {
    "vectors": Net(Vectors, VectorsPort, frozen=True),
    "images": Net(Images, ImagesPort, flatten={"fc": (3, 3, 3)}),
    "tokens": Net(Tokens, TokensPort, torch_cross_entropy, cross_entropy),
}
"""Those of the quick tests."""

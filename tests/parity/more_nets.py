"""More small nets with faults to plant, as in `small_nets`: for the long tests."""

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
from tests.parity import small_nets
from tests.parity.mapped_net import Attending, AttendingPort
from tests.parity.sampled_net import Sampled, SampledPort
from tests.parity.small_nets import (
    BATCH,
    CHANNELS,
    FEATURES,
    LENGTH,
    SIZE,
    TOKENS,
    Net,
)

PADDING, IGNORED, SMOOTHING, SLOPE = 0, -100, 0.1, 0.2


class Padded(nn.Module):
    """Tokens with padding, positions, root mean square normalisation, a gated MLP."""

    def __init__(self) -> None:
        """Make the layers, with embeddings as small as GPT-2's."""
        super().__init__()
        self.embed = nn.Embedding(TOKENS, FEATURES, padding_idx=PADDING)
        self.position = nn.Embedding(LENGTH, FEATURES)
        self.norm = nn.RMSNorm(FEATURES, eps=1e-5)
        self.up = nn.Linear(FEATURES, 2 * FEATURES)
        self.down = nn.Linear(FEATURES, FEATURES)
        self.head = nn.Linear(FEATURES, TOKENS)
        with torch.no_grad():
            self.embed.weight.mul_(0.02)
            self.position.weight.mul_(0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, T)`` to ``(B, T, TOKENS)``."""
        embedded = self.embed(x) * FEATURES**0.5
        hidden = self.norm(embedded + self.position(torch.arange(x.shape[1])))
        value, gate = self.up(hidden).chunk(2, -1)
        logits: torch.Tensor = self.head(hidden + self.down(value * F.silu(gate)))
        return logits


class PaddedPort(nnx.Module):
    """The port of `Padded`."""

    def __init__(self, fault: str = "", *, rngs: nnx.Rngs) -> None:
        """Make the layers."""
        self.fault = fault
        padding = None if fault == "padding trained" else PADDING
        self.embed = models.Embed(TOKENS, FEATURES, padding_idx=padding, rngs=rngs)
        self.position = nnx.Embed(LENGTH, FEATURES, rngs=rngs)
        epsilon = 1e-6 if fault == "eps of RMSNorm" else 1e-5
        self.norm = nnx.RMSNorm(FEATURES, epsilon=epsilon, rngs=rngs)
        self.up = nnx.Linear(FEATURES, 2 * FEATURES, rngs=rngs)
        self.down = nnx.Linear(FEATURES, FEATURES, rngs=rngs)
        self.head = nnx.Linear(FEATURES, TOKENS, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``(B, T)`` to ``(B, T, TOKENS)``."""
        embedded = self.embed(x)
        if self.fault != "scale of the embedding forgotten":
            embedded = embedded * FEATURES**0.5
        positions = jnp.arange(x.shape[1])
        if self.fault == "positions off by one":
            positions = jnp.minimum(positions + 1, LENGTH - 1)
        positions = self.position(positions)
        if self.fault == "positions not trained":
            positions = jax.lax.stop_gradient(positions)
        hidden = self.norm(embedded + positions)
        value, gate = jnp.split(self.up(hidden), 2, -1)
        act = jax.nn.gelu if self.fault == "GELU for SiLU" else jax.nn.silu
        return self.head(hidden + self.down(value * act(gate)))


def torch_smoothed(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the cross entropy with smoothed labels, over what is no padding."""
    return F.cross_entropy(
        logits.flatten(0, 1),
        targets.flatten(),
        ignore_index=IGNORED,
        label_smoothing=SMOOTHING,
    )


def smoothed(logits: jax.Array, targets: jax.Array, fault: str) -> jax.Array:
    """Return what `torch_smoothed` does."""
    kept = targets != IGNORED
    labels = jax.nn.one_hot(jnp.where(kept, targets, 0), TOKENS, dtype=logits.dtype)
    if fault != "label smoothing forgotten":
        labels = optax.smooth_labels(labels, SMOOTHING)
    losses = optax.softmax_cross_entropy(logits, labels)
    if fault == "padding in the loss":
        return losses.mean()
    total = jnp.where(kept, losses, 0).sum()
    return total / (kept.size if fault == "padding in the mean" else kept.sum())


class Sequences(nn.Module):
    """A gated recurrent unit, written out step by step."""

    def __init__(self) -> None:
        """Make the layers: reset, update and new gate in one."""
        super().__init__()
        self.ih = nn.Linear(FEATURES, 3 * FEATURES)
        self.hh = nn.Linear(FEATURES, 3 * FEATURES)
        self.out = nn.Linear(FEATURES, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, T, FEATURES)`` to ``(B, 2)``."""
        hidden = x.new_zeros(len(x), FEATURES)
        for step in x.unbind(1):
            ri, zi, ni = self.ih(step).chunk(3, -1)
            rh, zh, nh = self.hh(hidden).chunk(3, -1)
            reset, update = torch.sigmoid(ri + rh), torch.sigmoid(zi + zh)
            new = torch.tanh(ni + reset * nh)
            hidden = (1 - update) * new + update * hidden
        output: torch.Tensor = self.out(hidden)
        return output


class SequencesPort(nnx.Module):
    """The port of `Sequences`."""

    def __init__(self, fault: str = "", *, rngs: nnx.Rngs) -> None:
        """Make the layers."""
        self.fault = fault
        self.ih = nnx.Linear(FEATURES, 3 * FEATURES, rngs=rngs)
        self.hh = nnx.Linear(FEATURES, 3 * FEATURES, rngs=rngs)
        self.out = nnx.Linear(FEATURES, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``(B, T, FEATURES)`` to ``(B, 2)``."""
        fault = self.fault
        hidden = jnp.zeros((len(x), FEATURES), x.dtype)
        for step in range(x.shape[1]):
            if fault == "time backwards":
                step = x.shape[1] - 1 - step
            if fault == "state detached":
                hidden = jax.lax.stop_gradient(hidden)
            ri, zi, ni = jnp.split(self.ih(x[:, step]), 3, -1)
            rh, zh, nh = jnp.split(self.hh(hidden), 3, -1)
            if fault == "gates in another order":
                ri, zi, rh, zh = zi, ri, zh, rh
            reset, update = jax.nn.sigmoid(ri + rh), jax.nn.sigmoid(zi + zh)
            if fault == "hidden bias outside the reset gate":
                bias = self.hh.bias[...][2 * FEATURES :]
                new = jnp.tanh(ni + bias + reset * (nh - bias))
            else:
                new = jnp.tanh(ni + reset * nh)
            if fault == "update gate the other way":
                update = 1 - update
            hidden = (1 - update) * new + update * hidden
        return self.out(hidden)


class Pools(nn.Module):
    """Group normalisation, a leaky ReLU, pooling, and a transposed convolution."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.up = nn.ConvTranspose2d(4, 3, 2, stride=2)
        self.fc = nn.Linear(3, 2)
        with torch.no_grad():  # a small variance, as of images scaled to [0, 1]
            self.conv.weight.mul_(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, C, H, W)`` to ``(B, 2)``."""
        hidden = F.leaky_relu(self.norm(self.conv(x)), SLOPE)
        hidden = self.up(F.max_pool2d(hidden, 3, 2, padding=1))
        pooled = F.avg_pool2d(torch.tanh(hidden), 3, 1, padding=1)
        output: torch.Tensor = self.fc(pooled.mean((-2, -1)))
        return output


class FlippedTranspose(models.ConvTranspose):
    """A transposed convolution that does not turn its kernel."""

    def __call__(self, inputs: jax.Array) -> jax.Array:  # type: ignore[override]
        """Flip the kernel for the time of a call."""
        weight = self.weight[...]
        self.weight[...] = weight[..., ::-1, ::-1]
        outputs = super().__call__(inputs)
        self.weight[...] = weight
        return outputs


class PoolsPort(nnx.Module):
    """The port of `Pools`."""

    def __init__(self, fault: str = "", *, rngs: nnx.Rngs) -> None:
        """Make the layers."""
        self.fault = fault
        self.conv = nnx.Conv(CHANNELS, 4, (3, 3), padding=1, rngs=rngs)
        epsilon = 1e-6 if fault == "eps of GroupNorm" else 1e-5
        groups = 1 if fault == "groups of GroupNorm" else 2
        self.norm = nnx.GroupNorm(4, num_groups=groups, epsilon=epsilon, rngs=rngs)
        flipped = fault == "transposed kernel not turned"
        kind = FlippedTranspose if flipped else models.ConvTranspose
        self.up = kind(4, 3, (2, 2), strides=(2, 2), rngs=rngs)
        self.fc = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``(B, C, H, W)`` to ``(B, 2)``."""
        hidden = self.norm(self.conv(jnp.moveaxis(x, 1, -1)))
        slope = 0.01 if self.fault == "slope of the leaky ReLU" else SLOPE
        hidden = jax.nn.leaky_relu(hidden, slope)
        border = ((0, 0), (1, 1), (1, 1), (0, 0))
        if self.fault == "max over zeros at the border":
            hidden = nnx.max_pool(jnp.pad(hidden, border), (3, 3), (2, 2))
        else:
            hidden = nnx.max_pool(hidden, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        hidden = jnp.tanh(self.up(hidden))
        counted = self.fault != "border left out of the average"
        pooled = nnx.avg_pool(
            hidden, (3, 3), (1, 1), ((1, 1), (1, 1)), count_include_pad=counted
        )
        return self.fc(pooled.mean((1, 2)))


class Wide(nn.Module):
    """A layer of a million outputs for a batch."""

    def __init__(self) -> None:
        """Make the layer."""
        super().__init__()
        self.fc = nn.Linear(FEATURES, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, FEATURES)`` to ``(B, WIDTH)``."""
        output: torch.Tensor = self.fc(x)
        return output


WIDTH = 1_000_000 // BATCH

SCALE = 0.4
"""Of what the net of small activations is given."""


class WidePort(nnx.Module):
    """The port of `Wide`."""

    def __init__(self, fault: str = "", *, rngs: nnx.Rngs) -> None:
        """Make the layer."""
        self.fault = fault
        self.fc = nnx.Linear(FEATURES, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``(B, FEATURES)`` to ``(B, WIDTH)``."""
        outputs = self.fc(x)
        wrong = self.fault == "one wrong element in a million"
        return outputs.at[3, WIDTH // 2].mul(1.0001) if wrong else outputs


class Small(nn.Module):
    """Two layers with small activations between them, as at the start of training."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.fc1 = nn.Linear(FEATURES, FEATURES)
        self.fc2 = nn.Linear(FEATURES, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, FEATURES)`` to ``(B, 2)``."""
        output: torch.Tensor = self.fc2(F.gelu(SCALE * self.fc1(x)))
        return output


class SmallPort(nnx.Module):
    """The port of `Small`."""

    def __init__(self, fault: str = "", *, rngs: nnx.Rngs) -> None:
        """Make the layers."""
        self.fault = fault
        self.fc1 = nnx.Linear(FEATURES, FEATURES, rngs=rngs)
        self.fc2 = nnx.Linear(FEATURES, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``(B, FEATURES)`` to ``(B, 2)``."""
        approximate = self.fault == "tanh GELU of small inputs"
        hidden = jax.nn.gelu(SCALE * self.fc1(x), approximate=approximate)
        if self.fault == "one element wrong by little":
            hidden = hidden.at[1, 2].add(1e-5)
        return self.fc2(hidden)


NETS = small_nets.NETS | {
    "small": Net(Small, SmallPort),
    "padded": Net(Padded, PaddedPort, torch_smoothed, smoothed),
    "sequences": Net(Sequences, SequencesPort),
    "pools": Net(Pools, PoolsPort),
    "wide": Net(Wide, WidePort),
    "sampled": Net(Sampled, SampledPort, stacked=("blocks",)),
    "mapped": Net(Attending, AttendingPort),
}
"""All nets."""


def batches(net: str, steps: int, dtype: torch.dtype, seed: int = 0) -> list[Any]:
    """Draw batches of inputs and targets, both numbers or both classes."""
    rng = np.random.default_rng(seed)
    if net in ("tokens", "padded"):
        shape = (steps, 2, BATCH, LENGTH)
        drawn = torch.from_numpy(rng.integers(0, TOKENS, shape))
        if net == "padded":
            drawn[:, 0] = drawn[:, 0].clamp(min=PADDING + 1)
            drawn[:, 0, ::2, -2:], drawn[:, 1, ::2, -1] = PADDING, IGNORED
        return [(x, y) for x, y in drawn]
    shapes: dict[str, tuple[int, ...]] = {
        "vectors": (FEATURES,),
        "wide": (FEATURES,),
        "small": (FEATURES,),
        "sampled": (FEATURES,),
        "sequences": (LENGTH, FEATURES),
        "mapped": (LENGTH, FEATURES),
    }
    inputs = rng.normal(size=(steps, BATCH, *shapes.get(net, (CHANNELS, SIZE, SIZE))))
    targets = rng.normal(size=(steps, BATCH, WIDTH if net == "wide" else 2))
    pairs = (torch.from_numpy(array).to(dtype) for array in (inputs, targets))
    return [*zip(*pairs, strict=True)]

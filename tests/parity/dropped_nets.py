"""Small nets with dropout, in torch and in JAX, with faults to plant.

``fault`` is the name of one thing that a port does otherwise; "" is the correct port.
"""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import linen, nnx
from torch import nn
from torch.nn import functional as F

from jaxclip import clip_by_global_norm, optim
from jaxclip.parity import Port, record, replayed_mask

BATCH, LENGTH, SIZE, FEATURES, TOKENS = 8, 5, 6, 4, 7
LR, MAX_NORM = 0.01, 0.5

# A multilayer perceptron: two dropouts, the first of them called twice.


class Dense(nn.Module):
    """Two layers, and a dropout that is called behind each."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.fc1 = nn.Linear(FEATURES, 16)
        self.drop = nn.Dropout(0.3)
        self.fc2 = nn.Linear(16, 16)
        self.last = nn.Dropout(0.1)
        self.fc3 = nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, FEATURES)`` to ``(B, 2)``."""
        x = self.drop(torch.tanh(self.fc1(x) + 1))
        x = self.drop(torch.tanh(self.fc2(x)))
        output: torch.Tensor = self.fc3(self.last(x))
        return output


class UnscaledDropout(nnx.Dropout):
    """A dropout that forgets what it drops."""

    def __call__(self, inputs: jax.Array, **options: Any) -> jax.Array:  # type: ignore[override]
        """Leave out the scale."""
        return super().__call__(inputs, **options) * (1 - self.rate)


class DensePort(nnx.Module):
    """The port of `Dense`."""

    def __init__(self, fault: str = "", *, rngs: nnx.Rngs) -> None:
        """Make the layers."""
        self.fault = fault
        kind = UnscaledDropout if fault == "scale missing" else nnx.Dropout
        rate = 0.5 if fault == "another rate" else 0.3
        self.fc1 = nnx.Linear(FEATURES, 16, rngs=rngs)
        self.drop = kind(rate, rngs=rngs, deterministic=fault == "dropout off")
        self.fc2 = nnx.Linear(16, 16, rngs=rngs)
        self.last = nnx.Dropout(0.1, rngs=rngs)
        self.fc3 = nnx.Linear(16, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``(B, FEATURES)`` to ``(B, 2)``."""
        if self.fault == "before the activation":
            x = jnp.tanh(self.drop(self.fc1(x) + 1))
        else:
            x = self.drop(jnp.tanh(self.fc1(x) + 1))
        x = jnp.tanh(self.fc2(x))
        if self.fault != "called once":
            x = self.drop(x)
        if self.fault == "called three times":
            x = self.drop(x)
        return self.fc3(self.last(x))


class DenseLinen(linen.Module):
    """The same in Linen, its dropouts under other names."""

    def setup(self) -> None:
        """Make the layers."""
        self.fc1, self.fc2, self.fc3 = linen.Dense(16), linen.Dense(16), linen.Dense(2)
        self.first = linen.Dropout(0.3)
        self.last = linen.Dropout(0.1)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map ``(B, FEATURES)`` to ``(B, 2)``."""
        drop = partial(self.first, deterministic=not train)
        x = drop(jnp.tanh(self.fc1(x) + 1))
        x = drop(jnp.tanh(self.fc2(x)))
        return self.fc3(self.last(x, deterministic=not train))


def by_hand(params: Any, x: jax.Array, key: Any, fault: str = "") -> jax.Array:
    """Compute the same from bare parameters that lie as torch's do."""

    def linear(name: str, x: jax.Array) -> jax.Array:
        own = params[name]
        return x @ own["weight"].T + own["bias"]

    def drop(name: str, rate: float, x: jax.Array) -> jax.Array:
        keep = jax.random.bernoulli(key, 1 - rate, x.shape)
        if fault != "no handle":
            keep = replayed_mask("drop" if fault == "one for all" else name, keep)
        if fault == "mask inverted":
            keep = ~keep
        scale = 1.0 if fault == "scale missing" else 1 - rate
        return jnp.where(keep, x / scale, 0)

    x = drop("drop", 0.3, jnp.tanh(linear("fc1", x) + 1))
    x = drop("drop", 0.3, jnp.tanh(linear("fc2", x)))
    return linear("fc3", drop("last", 0.1, x))


# A convolution: a dropout of whole channels, and one of elements, channels last.


class Images(nn.Module):
    """Convolutions with a dropout of channels and a dropout of pixels."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.channels = nn.Dropout2d(0.4)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.pixels = nn.Dropout(0.2)
        self.head = nn.Sequential(
            nn.Linear(8, 8), nn.Tanh(), nn.Dropout(), nn.Linear(8, 2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, 3, H, W)`` to ``(B, 2)``."""
        x = self.channels(torch.tanh(self.conv1(x)))
        x = self.pixels(torch.tanh(self.conv2(x)))
        output: torch.Tensor = self.head(x.mean((2, 3)))
        return output


class ImagesPort(nnx.Module):
    """The port of `Images`."""

    def __init__(self, fault: str = "", *, rngs: nnx.Rngs) -> None:
        """Make the layers."""
        self.conv1 = nnx.Conv(3, 8, (3, 3), padding=1, rngs=rngs)
        dims = () if fault == "a draw for each element" else (1, 2)
        self.channels = nnx.Dropout(0.4, broadcast_dims=dims, rngs=rngs)
        self.conv2 = nnx.Conv(8, 8, (3, 3), padding=1, rngs=rngs)
        dims = (1, 2) if fault == "a draw for each channel" else ()
        self.pixels = nnx.Dropout(0.2, broadcast_dims=dims, rngs=rngs)
        self.head = nnx.Sequential(
            nnx.Linear(8, 8, rngs=rngs),
            jnp.tanh,
            nnx.Dropout(0.5, rngs=rngs),
            nnx.Linear(8, 2, rngs=rngs),
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``(B, 3, H, W)`` to ``(B, 2)``."""
        x = self.channels(jnp.tanh(self.conv1(jnp.moveaxis(x, 1, -1))))
        x = self.pixels(jnp.tanh(self.conv2(x)))
        return self.head(x.mean((1, 2)))


# A transformer: dropout behind the embedding, on attention, and in residual blocks.


class Block(nn.Module):
    """Attention with a dropout of its weights, and two layers."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.norm1 = nn.LayerNorm(FEATURES)
        self.qkv = nn.Linear(FEATURES, 3 * FEATURES)
        self.attn_drop = nn.Dropout(0.1)
        self.norm2 = nn.LayerNorm(FEATURES)
        self.fc = nn.Linear(FEATURES, FEATURES)
        self.resid_drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, T, FEATURES)`` to the same."""
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        scores = q @ k.transpose(-1, -2) / FEATURES**0.5
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        weights = torch.softmax(scores.masked_fill(future, -torch.inf), -1)
        x = x + self.resid_drop(self.attn_drop(weights) @ v)
        return x + self.resid_drop(F.gelu(self.fc(self.norm2(x))))


class Tokens(nn.Module):
    """A language model of two blocks."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.wte = nn.Embedding(TOKENS, FEATURES)
        self.drop = nn.Dropout(0.2)
        self.h = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(FEATURES, TOKENS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, T)`` to ``(B, T, TOKENS)``."""
        x = self.drop(self.wte(x))
        for block in self.h:
            x = block(x)
        output: torch.Tensor = self.head(x)
        return output


class BlockPort(nnx.Module):
    """The port of `Block`."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        """Make the layers."""
        self.norm1 = nnx.LayerNorm(FEATURES, epsilon=1e-5, rngs=rngs)
        self.qkv = nnx.Linear(FEATURES, 3 * FEATURES, rngs=rngs)
        self.attn_drop = nnx.Dropout(0.1, rngs=rngs)
        self.norm2 = nnx.LayerNorm(FEATURES, epsilon=1e-5, rngs=rngs)
        self.fc = nnx.Linear(FEATURES, FEATURES, rngs=rngs)
        self.resid_drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``(B, T, FEATURES)`` to the same."""
        q, k, v = jnp.split(self.qkv(self.norm1(x)), 3, -1)
        scores = q @ jnp.swapaxes(k, -1, -2) / np.sqrt(FEATURES).item()
        past = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        weights = jax.nn.softmax(jnp.where(past, scores, -jnp.inf))
        x = x + self.resid_drop(self.attn_drop(weights) @ v)
        hidden = jax.nn.gelu(self.fc(self.norm2(x)), approximate=False)
        return x + self.resid_drop(hidden)


class TokensPort(nnx.Module):
    """The port of `Tokens`, which calls the blocks otherwise."""

    def __init__(self, fault: str = "", *, rngs: nnx.Rngs) -> None:
        """Make the layers."""
        self.wte = nnx.Embed(TOKENS, FEATURES, rngs=rngs)
        self.drop = nnx.Dropout(0.2, rngs=rngs)
        self.blocks = nnx.List([BlockPort(rngs=rngs), BlockPort(rngs=rngs)])
        self.head = nnx.Linear(FEATURES, TOKENS, rngs=rngs)
        self.fault = fault

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``(B, T)`` to ``(B, T, TOKENS)``."""
        x = self.drop(self.wte(x))
        for block in self.blocks:
            x = nnx.remat(type(block).__call__)(block, x) if self.fault else block(x)
        return self.head(x)


NETS: dict[str, tuple[type[nn.Module], Any, dict[str, Any]]] = {
    "dense": (Dense, DensePort, {}),
    "images": (Images, ImagesPort, {"layouts": {"pixels": "channels_last"}}),
    "tokens": (Tokens, TokensPort, {"rename": {"h": "blocks"}}),
}


def batches(net: str, steps: int, dtype: torch.dtype, seed: int = 0) -> list[Any]:
    """Draw batches of inputs and targets."""
    rng = np.random.default_rng(seed)
    if net == "tokens":
        drawn = rng.integers(0, TOKENS, (steps, 2, BATCH, LENGTH))
        return [(x, y) for x, y in torch.from_numpy(drawn)]
    shape = (FEATURES,) if net == "dense" else (3, SIZE, SIZE)
    inputs = torch.from_numpy(rng.normal(size=(steps, BATCH, *shape))).to(dtype)
    targets = torch.from_numpy(rng.normal(size=(steps, BATCH, 2))).to(dtype)
    return [*zip(inputs, targets, strict=True)]


def recording(
    path: Path,
    net: str,
    *,
    dtype: torch.dtype = torch.float32,
    steps: int = 2,
    seed: int = 0,
    train: bool = True,
    **options: Any,
) -> Path:
    """Record a net in training with AdamW and a clip."""
    torch.manual_seed(seed)
    model = NETS[net][0]().to(dtype).train(train)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    with record(path, model, optimizer, **options) as run:
        for x, y in batches(net, steps, dtype, seed):
            with run.step(x=x, y=y):
                optimizer.zero_grad()
                outputs = model(x)
                if net == "tokens":
                    loss = F.cross_entropy(outputs.flatten(0, 1), y.flatten())
                else:
                    loss = F.mse_loss(outputs, y)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
                optimizer.step()
    return path


def loss_fn(model: Any, batch: dict[str, Any]) -> Any:
    """Return the loss and the outputs."""
    return loss_of(model(batch["x"]), batch["y"])


def loss_of(outputs: jax.Array, targets: jax.Array) -> Any:
    """Return the loss of some outputs, and these."""
    if jnp.issubdtype(targets.dtype, jnp.integer):
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs, targets)
        return jnp.mean(losses), outputs
    return jnp.mean((outputs - targets) ** 2), outputs


def port(net: str, fault: str = "", **changes: Any) -> Port:
    """Return the port of a net in NNX, with a fault or without."""
    _, make, options = NETS[net]
    given: dict[str, Any] = {
        "model": make(fault, rngs=nnx.Rngs(0)),
        "loss_fn": loss_fn,
        "optimizer": optim.adamw(LR),
        "clip": clip_by_global_norm(MAX_NORM),
    }
    return Port(**(given | options | changes))


def linen_port(**changes: Any) -> Port:
    """Return the port of "dense" in Linen."""
    module, x = DenseLinen(), jnp.ones((BATCH, FEATURES))
    variables = module.init(jax.random.key(0), x, train=False)

    def loss(model: Any, batch: dict[str, Any]) -> Any:
        rngs = {"dropout": jax.random.key(1)}
        return loss_of(model(batch["x"], train=True, rngs=rngs), batch["y"])

    given = {
        "model": (module, variables),
        "loss_fn": loss,
        "dropouts": {"drop": "first"},
    }
    return port("dense", **(given | changes))


def bare_port(fault: str = "") -> Port:
    """Return the port of "dense" by hand, from bare parameters."""
    torch.manual_seed(0)
    params: dict[str, Any] = {}
    for name, array in Dense().named_parameters():
        layer, _, kind = name.partition(".")
        params.setdefault(layer, {})[kind] = jnp.asarray(array.detach().numpy())

    def loss(params: Any, batch: dict[str, Any]) -> Any:
        key = jax.random.key(2)
        return loss_of(by_hand(params, batch["x"], key, fault), batch["y"])

    return port("dense", model=params, loss_fn=loss)

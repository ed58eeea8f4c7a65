"""Small nets that draw random numbers by functions, in torch and in JAX.

``fault`` is the name of one thing that a port does otherwise; "" is the correct port.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import torch
from flax import linen, nnx
from torch import nn
from torch.nn import functional as F

from jaxclip import models, optim
from jaxclip.models import linen as models_linen
from jaxclip.parity import Port, record, replayed_draw, replayed_mask

BATCH, SIZE, HIDDEN, LATENT, LR = 6, 5, 8, 3, 0.01

# A variational autoencoder: the model draws the noise.


class Autoencoder(nn.Module):
    """One layer each way, and a sample between them."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.enc = nn.Linear(SIZE, HIDDEN)
        self.mean = nn.Linear(HIDDEN, LATENT)
        self.logvar = nn.Linear(HIDDEN, LATENT)
        self.dec = nn.Linear(LATENT, SIZE)

    def forward(self, x: torch.Tensor) -> Any:
        """Map ``(B, SIZE)`` to the same, with the parameters of the distribution."""
        hidden = torch.tanh(self.enc(x))
        mean, logvar = self.mean(hidden), self.logvar(hidden)
        z = mean + torch.randn_like(mean) * torch.exp(logvar / 2)
        return self.dec(z), mean, logvar


def autoencoder_loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return the negative evidence lower bound."""
    y, mean, logvar = model(x)
    divergence = (mean.square() + logvar.exp() - 1 - logvar).sum() / 2
    return F.mse_loss(y, x, reduction="sum") + divergence


class AutoencoderPort(nnx.Module):
    """The port of `Autoencoder`."""

    def __init__(self, fault: str = "", *, rngs: nnx.Rngs) -> None:
        """Make the layers."""
        self.fault, self.rngs = fault, rngs
        self.enc = nnx.Linear(SIZE, HIDDEN, rngs=rngs)
        self.mean = nnx.Linear(HIDDEN, LATENT, rngs=rngs)
        self.logvar = nnx.Linear(HIDDEN, LATENT, rngs=rngs)
        self.dec = nnx.Linear(LATENT, SIZE, rngs=rngs)

    def __call__(self, x: jax.Array) -> Any:
        """Map ``(B, SIZE)`` to the same, with the parameters of the distribution."""
        hidden = jnp.tanh(self.enc(x))
        mean, logvar = self.mean(hidden), self.logvar(hidden)
        noise = self._noise(mean.shape)
        scale = 1 if self.fault == "variance for deviation" else 2
        return self.dec(mean + noise * jnp.exp(logvar / scale)), mean, logvar

    def _noise(self, shape: tuple[int, ...]) -> jax.Array:
        if self.fault == "no noise":
            return jnp.zeros(shape)
        if self.fault == "one for all":
            shape = shape[1:]
        noise = jax.random.normal(self.rngs.noise(), shape)
        if self.fault == "no handle":
            return noise
        return replayed_draw("enc" if self.fault == "of another module" else "", noise)


def autoencoder_loss_of_port(model: Any, batch: dict[str, Any]) -> Any:
    """Return the same of the port, and its outputs."""
    x = batch["x"]
    y, mean, logvar = model(x)
    divergence = (mean**2 + jnp.exp(logvar) - 1 - logvar).sum() / 2
    return ((y - x) ** 2).sum() + divergence, (y, mean, logvar)


# A diffusion: the loop draws the times and the noise.


class Denoiser(nn.Module):
    """Says what noise was added at which time."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.time = nn.Embedding(10, SIZE)
        self.fc1 = nn.Linear(SIZE, HIDDEN)
        self.fc2 = nn.Linear(HIDDEN, SIZE)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Map ``(B, SIZE)`` to the same."""
        hidden = torch.tanh(self.fc1(x + self.time(t)))
        output: torch.Tensor = self.fc2(hidden)
        return output


def denoiser_loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return the error of the noise."""
    t = torch.randint(0, 10, (len(x),))
    noise = torch.randn_like(x)
    kept = 1 - (t[:, None] + 1).to(x.dtype) / 11
    return F.mse_loss(model(kept.sqrt() * x + (1 - kept).sqrt() * noise, t), noise)


class DenoiserLinen(linen.Module):
    """The port of `Denoiser`."""

    @linen.compact
    def __call__(self, x: jax.Array, t: jax.Array) -> jax.Array:
        """Map ``(B, SIZE)`` to the same."""
        x = x + linen.Embed(10, SIZE, name="time")(t)
        return linen.Dense(SIZE, name="fc2")(
            jnp.tanh(linen.Dense(HIDDEN, name="fc1")(x))
        )


def denoiser_loss_of_port(model: Any, batch: dict[str, Any]) -> Any:
    """Return the same of the port."""
    x = batch["x"]
    of_time, of_noise = jax.random.split(jax.random.key(0))
    t = replayed_draw(None, jax.random.randint(of_time, (len(x),), 0, 10))
    noise = replayed_draw(None, jax.random.normal(of_noise, x.shape, x.dtype))
    kept = 1 - (t[:, None] + 1).astype(x.dtype) / 11
    found = model(jnp.sqrt(kept) * x + jnp.sqrt(1 - kept) * noise, t)
    return ((found - noise) ** 2).mean(), found


# Dropouts that are functions, of channels, pixels, and hidden features.


class Dropping(nn.Module):
    """A convolution and a block, which call functions of dropout."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.block = DroppingBlock()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, SIZE)`` to ``(B, 2)``."""
        x = torch.stack([x, x.flip(1)], 1)[..., None]  # (B, 2, SIZE, 1)
        x = F.dropout2d(torch.tanh(self.conv(x)), 0.4)
        x = F.dropout(x, 0.2)
        output: torch.Tensor = self.block(x.mean((2, 3)))
        return output


class DroppingBlock(nn.Module):
    """Two layers, and a dropout behind each."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.fc1 = nn.Linear(4, HIDDEN)
        self.fc2 = nn.Linear(HIDDEN, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, 4)`` to ``(B, 2)``."""
        hidden = F.dropout(torch.tanh(self.fc1(x)), 0.3)
        return F.dropout(self.fc2(hidden), 0.1)


def dropping_loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return the mean square of what comes out."""
    loss: torch.Tensor = model(x).square().mean()
    return loss


class DroppingPort(nnx.Module):
    """The port of `Dropping`, in which dropouts are modules."""

    def __init__(self, fault: str = "", *, rngs: nnx.Rngs) -> None:
        """Make the layers."""
        self.conv = nnx.Conv(2, 4, (3, 3), padding=1, rngs=rngs)
        dims = () if fault == "a draw for each element" else (1, 2)
        self.channels = nnx.Dropout(0.4, broadcast_dims=dims, rngs=rngs)
        self.pixels = nnx.Dropout(0.2, rngs=rngs)
        self.block = DroppingBlockPort(fault, rngs=rngs)
        self.elsewhere = fault == "dropouts elsewhere"
        self.drop2 = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``(B, SIZE)`` to ``(B, 2)``."""
        x = jnp.stack([x, x[:, ::-1]], -1)[:, :, None]  # (B, SIZE, 1, 2)
        x = self.pixels(self.channels(jnp.tanh(self.conv(x))))
        x = self.block(x.mean((1, 2)))
        return self.drop2(x) if self.elsewhere else x


class DroppingBlockPort(nnx.Module):
    """The port of `DroppingBlock`."""

    def __init__(self, fault: str = "", *, rngs: nnx.Rngs) -> None:
        """Make the layers."""
        self.fault = fault
        self.fc1 = nnx.Linear(4, HIDDEN, rngs=rngs)
        self.drop1 = nnx.Dropout(0.5 if fault == "another rate" else 0.3, rngs=rngs)
        self.fc2 = nnx.Linear(HIDDEN, 2, rngs=rngs)
        self.drop2 = nnx.Dropout(0.1, rngs=rngs)
        self.rngs = rngs

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``(B, 4)`` to ``(B, 2)``."""
        hidden = jnp.tanh(self.fc1(x))
        if self.fault == "by hand":
            keep = jax.random.bernoulli(self.rngs.dropout(), 0.7, hidden.shape)
            hidden = jnp.where(replayed_mask("block", keep), hidden / 0.7, 0)
        else:
            hidden = self.drop1(hidden)
        x = self.fc2(hidden)
        off = self.fault in ("dropout off", "dropouts elsewhere")
        return x if off else self.drop2(x)


def dropping_loss_of_port(model: Any, batch: dict[str, Any]) -> Any:
    """Return the mean square of what comes out."""
    output = model(batch["x"])
    return (output**2).mean(), output


# Dropouts within torch's own layers, which are functions there.


class Attentive(nn.Module):
    """Attention, an encoder layer and a recurrent net, all with dropout."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.attn = nn.MultiheadAttention(4, 2, dropout=0.2, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, 0.1, batch_first=True)
        self.lstm = nn.LSTM(4, 4, num_layers=3, dropout=0.3, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, SIZE)`` to ``(B, SIZE, 4)``."""
        x = torch.stack([x, x.sin(), x.cos(), -x], -1)
        x, _ = self.attn(x, x, x)
        output: torch.Tensor = self.lstm(self.layer(x))[0]
        return output


class AttentivePort(nnx.Module):
    """The port of `Attentive`."""

    def __init__(self, fault: str = "", *, rngs: nnx.Rngs) -> None:
        """Make the layers."""
        rate = 0.4 if fault == "another rate" else 0.2
        self.attn = models.MultiheadAttention(4, 2, dropout=rate, rngs=rngs)
        self.layer = models.TransformerEncoderLayer(4, 2, 8, dropout=0.1, rngs=rngs)
        self.lstm = models.LSTM(4, 4, num_layers=3, dropout=0.3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``(B, SIZE)`` to ``(B, SIZE, 4)``."""
        x = jnp.stack([x, jnp.sin(x), jnp.cos(x), -x], -1)
        x, _ = self.attn(x, x, x)
        return self.lstm(self.layer(x))[0]


class AttentiveLinen(linen.Module):
    """The same in Linen."""

    def setup(self) -> None:
        """Make the layers."""
        self.attn = models_linen.MultiheadAttention(4, 2, dropout=0.2)
        self.layer = models_linen.TransformerEncoderLayer(4, 2, 8, dropout=0.1)
        self.lstm = models_linen.LSTM(4, 4, num_layers=3, dropout=0.3)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``(B, SIZE)`` to ``(B, SIZE, 4)``."""
        x = jnp.stack([x, jnp.sin(x), jnp.cos(x), -x], -1)
        x, _ = self.attn(x, x, x, deterministic=False)
        x = self.layer(x, deterministic=False)
        return self.lstm(x, deterministic=False)[0]


def in_linen_loss(model: Any, batch: dict[str, Any]) -> Any:
    """Return the mean square of what comes out of a Linen model."""
    output = model(batch["x"], rngs={"dropout": jax.random.key(1)})
    return (output**2).mean(), output


@dataclass(frozen=True)
class Drawn:
    """A net that draws, and its port.

    Attributes:
        torch: Makes torch's.
        loss: Its loss, of the model and a batch.
        port: Makes the port's, with a fault or without.
        port_loss: The port's loss function.
        options: What else `Port` is told.
    """

    torch: Callable[[], nn.Module]
    loss: Callable[[nn.Module, torch.Tensor], torch.Tensor]
    port: Callable[[str], Any]
    port_loss: Callable[[Any, dict[str, Any]], Any]
    options: dict[str, Any] = field(default_factory=dict)


def _in_linen(module: linen.Module, *inputs: Any) -> Any:
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    return module, module.init(keys, *inputs)


_X, _T = jnp.ones((BATCH, SIZE)), jnp.zeros(BATCH, int)
NETS = {
    "autoencoder": Drawn(
        *(Autoencoder, autoencoder_loss),
        lambda fault: AutoencoderPort(fault, rngs=nnx.Rngs(0)),
        autoencoder_loss_of_port,
    ),
    "diffusion": Drawn(
        *(Denoiser, denoiser_loss),
        lambda fault: _in_linen(DenoiserLinen(), _X, _T),
        denoiser_loss_of_port,
    ),
    "dropping": Drawn(
        *(Dropping, dropping_loss),
        lambda fault: DroppingPort(fault, rngs=nnx.Rngs(0)),
        dropping_loss_of_port,
    ),
    "attentive": Drawn(
        *(Attentive, dropping_loss),
        lambda fault: AttentivePort(fault, rngs=nnx.Rngs(0)),
        dropping_loss_of_port,
    ),
    "attentive in linen": Drawn(
        *(Attentive, dropping_loss),
        lambda fault: _in_linen(AttentiveLinen(), _X),
        in_linen_loss,
    ),
}


def recording(
    path: Path,
    net: str,
    *,
    dtype: torch.dtype = torch.float32,
    steps: int = 2,
    seed: int = 0,
    **options: Any,
) -> Path:
    """Record a net in training with Adam."""
    torch.manual_seed(seed)
    model = NETS[net].torch().to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    with record(path, model, optimizer, **options) as run:
        for _ in range(steps):
            x = torch.randn(BATCH, SIZE, dtype=dtype)
            with run.step(x=x):
                optimizer.zero_grad()
                NETS[net].loss(model, x).backward()
                optimizer.step()
    return path


def port(net: str, fault: str = "", **changes: Any) -> Port:
    """Return the port of a net, with a fault or without."""
    own = NETS[net]
    given: dict[str, Any] = {
        "model": own.port(fault),
        "loss_fn": own.port_loss,
        "optimizer": optim.adam(LR),
    }
    return Port(**(given | own.options | changes))

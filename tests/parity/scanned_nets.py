"""Small nets of several equal layers, or steps, which their ports scan over.

``fault`` is the name of one thing that a port does otherwise; "" is the correct port.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import torch
from flax import linen, nnx
from torch import nn
from torch.nn import functional as F

from jaxclip import clip_by_global_norm, optim
from jaxclip.parity import Port, record, replayed_draw, replayed_mask

# As many rows as layers and as steps: nothing is to be known by its length.
BATCH = LAYERS = STEPS = 4
GROUPS = 2
SIZE, HIDDEN, RATE, NOISE, EPS, LR = 3, 5, 0.3, 0.1, 1e-5, 0.01


class Block(nn.Module):
    """A residual layer with dropout, and noise on what it adds."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.norm = nn.LayerNorm(SIZE)
        self.up = nn.Linear(SIZE, HIDDEN)
        self.drop = nn.Dropout(RATE)
        self.down = nn.Linear(HIDDEN, SIZE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, SIZE)`` to the same."""
        hidden = self.down(self.drop(F.gelu(self.up(self.norm(x)))))
        return x + hidden + NOISE * torch.randn_like(hidden)


class Stack(nn.Module):
    """Layers one after another."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.head = nn.Linear(SIZE, SIZE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, SIZE)`` to the same."""
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Loop(nn.Module):
    """A recurrent net whose step is a module of Linears."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.ih = nn.Linear(SIZE, HIDDEN)
        self.hh = nn.Linear(HIDDEN, HIDDEN)
        self.drop = nn.Dropout(RATE)
        self.head = nn.Linear(HIDDEN, SIZE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, T, SIZE)`` to ``(B, SIZE)``, from the last step to the first."""
        state = x.new_zeros(len(x), HIDDEN)
        for step in reversed(range(x.shape[1])):
            inputs = self.ih(x[:, step]) + self.hh(state)
            state = self.drop(torch.tanh(inputs))
            state = state + NOISE * torch.randn_like(state)
        return self.head(state)


class Groups(nn.Module):
    """Groups of layers, each with a layer of its own behind them."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.groups = nn.ModuleList(Group() for _ in range(GROUPS))
        self.head = nn.Linear(SIZE, SIZE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, SIZE)`` to the same."""
        for group in self.groups:
            x = group(x)
        return self.head(x)


class Group(nn.Module):
    """Layers with dropout, and one that mixes."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(SIZE, SIZE) for _ in range(LAYERS))
        self.mix = nn.Linear(SIZE, SIZE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, SIZE)`` to the same."""
        for layer in self.layers:
            x = x + F.dropout(torch.tanh(layer(x)), RATE)
        return self.mix(x)


class Ensemble(nn.Module):
    """Members that are given the same, and of which the mean is taken."""

    def __init__(self) -> None:
        """Make the members."""
        super().__init__()
        self.members = nn.ModuleList(Member() for _ in range(LAYERS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, SIZE)`` to the same."""
        return torch.stack([member(x) for member in self.members]).mean(0)


class Member(nn.Module):
    """Two layers with dropout, and noise on what they return."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.up = nn.Linear(SIZE, HIDDEN)
        self.drop = nn.Dropout(RATE)
        self.down = nn.Linear(HIDDEN, SIZE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, SIZE)`` to the same."""
        hidden = self.down(self.drop(torch.relu(self.up(x))))
        return hidden + NOISE * torch.randn_like(hidden)


NETS = {"stack": Stack, "loop": Loop, "groups": Groups, "ensemble": Ensemble}


def recording(path: Path, net: str, *, dtype: torch.dtype, seed: int = 0) -> Path:
    """Record three steps of a net's training."""
    torch.manual_seed(seed)
    model = NETS[net]().to(dtype)
    shape = (BATCH, STEPS, SIZE) if net == "loop" else (BATCH, SIZE)
    shapes = shape, (BATCH, SIZE)
    batches = ([torch.randn(each, dtype=dtype) for each in shapes] for _ in range(3))
    return trained(path, model, batches)


def trained(
    path: Path, model: nn.Module, batches: Iterable[Sequence[torch.Tensor]]
) -> Path:
    """Record the training of a model, a step for each batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    with record(path, model, optimizer) as run:
        for x, y in batches:
            with run.step(x=x, y=y):
                optimizer.zero_grad()
                F.mse_loss(model(x), y).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
    return path


def loss_fn(model: Any, batch: Any) -> Any:
    """Return the loss and the outputs."""
    outputs = model(batch["x"])
    return jnp.mean((outputs - batch["y"]) ** 2), outputs


def port(model: Any, loss: Any = loss_fn, **options: Any) -> Port:
    """Describe the training of a port."""
    clip = clip_by_global_norm(1.0)
    return Port(model, loss, optim.adamw(LR), clip=clip, **options)


# The stack in NNX.


class ScannedBlock(nnx.Module):
    """The port of `Block`."""

    def __init__(self, fault: str, rngs: nnx.Rngs) -> None:
        """Make the layers."""
        eps = 1e-4 if fault == "eps" else EPS
        self.fault = fault
        self.norm = nnx.LayerNorm(SIZE, epsilon=eps, rngs=rngs)
        self.up = nnx.Linear(SIZE, HIDDEN, rngs=rngs)
        self.drop = nnx.Dropout(RATE, deterministic=fault == "off", rngs=rngs)
        self.down = nnx.Linear(HIDDEN, SIZE, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``(B, SIZE)`` to the same."""
        hidden = nnx.gelu(self.up(self.norm(x)), approximate=self.fault == "gelu")
        hidden = self.down(self.drop(hidden))
        drawn = jax.random.normal(self.drop.rngs(), hidden.shape)
        noise = replayed_draw("blocks.*", drawn)
        scale = 2 * NOISE if self.fault == "noise" else NOISE
        return x + hidden + scale * noise.astype(x.dtype)


class ScannedStack(nnx.Module):
    """The port of `Stack`: one block with all weights, scanned over."""

    def __init__(self, fault: str = "", *, remat: bool = False, rngs: nnx.Rngs) -> None:
        """Make the layers."""
        keys = rngs.split(LAYERS)
        self.blocks = nnx.vmap(partial(ScannedBlock, fault))(keys)
        self.head = nnx.Linear(SIZE, SIZE, rngs=rngs)
        self.fault, self.remat = fault, remat

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``(B, SIZE)`` to the same."""

        def call(x: jax.Array, block: ScannedBlock) -> jax.Array:
            return block(x)

        call = nnx.remat(call) if self.remat else call
        backwards = self.fault == "backwards"
        axes = {"in_axes": (nnx.Carry, 0), "out_axes": nnx.Carry}
        return self.head(nnx.scan(call, **axes, reverse=backwards)(x, self.blocks))


# In Linen.


class LinenBlock(linen.Module):
    """The port of `Block`, as a body of ``nn.scan``."""

    fault: str = ""

    @linen.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        """Map ``(B, SIZE)`` to the same."""
        hidden = linen.LayerNorm(epsilon=EPS, name="norm")(x)
        hidden = linen.Dense(HIDDEN, name="up")(hidden)
        hidden = linen.gelu(hidden, approximate=self.fault == "gelu")
        hidden = linen.Dropout(RATE, deterministic=False)(hidden)
        hidden = linen.Dense(SIZE, name="down")(hidden)
        drawn = jax.random.normal(self.make_rng("dropout"), hidden.shape)
        noise = replayed_draw("blocks.*", drawn).astype(x.dtype)
        return x + hidden + NOISE * noise, None


class LinenStack(linen.Module):
    """The port of `Stack`."""

    fault: str = ""

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``(B, SIZE)`` to the same."""
        scanned = linen.scan(
            linen.remat(LinenBlock),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            length=LAYERS,
        )
        x, _ = scanned(self.fault, name="blocks")(x, None)
        return linen.Dense(SIZE, name="head")(x)


def linen_loss(model: Any, batch: Any) -> Any:
    """Return the loss and the outputs."""
    outputs = model(batch["x"], rngs={"dropout": jax.random.key(0)})
    return jnp.mean((outputs - batch["y"]) ** 2), outputs


def linen_stack(fault: str = "") -> Port:
    """Describe the port in Linen."""
    module = LinenStack(fault)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = module.init(keys, jnp.ones((BATCH, SIZE)))
    dropouts = {"blocks.*.drop": "blocks.Dropout_0"}
    options = {"stacked": ["blocks"], "dropouts": dropouts}
    return port((module, variables), linen_loss, **options)


# In plain JAX: a tree of parameters, and dropout by hand.


def plain_tree() -> dict[str, Any]:
    """Return parameters in the layout of torch's, those of the layers stacked."""

    def linear(*sizes: int, layers: tuple[int, ...] = ()) -> dict[str, jax.Array]:
        return {
            "weight": jnp.zeros((*layers, *sizes)),
            "bias": jnp.zeros((*layers, sizes[0])),
        }

    layers = (LAYERS,)
    norm = {"weight": jnp.zeros((LAYERS, SIZE)), "bias": jnp.zeros((LAYERS, SIZE))}
    return {
        "blocks": {
            "norm": norm,
            "up": linear(HIDDEN, SIZE, layers=layers),
            "down": linear(SIZE, HIDDEN, layers=layers),
        },
        "head": linear(SIZE, SIZE),
    }


def plain_loss(params: Any, batch: Any, *, fault: str = "", key: Any = None) -> Any:
    """Return the loss and the outputs, of rows or of one."""

    def linear(layer: Any, x: jax.Array) -> jax.Array:
        return x @ layer["weight"].T + layer["bias"]

    def block(x: jax.Array, given: Any) -> tuple[jax.Array, None]:
        layer, key = given
        centred = x - x.mean(-1, keepdims=True)
        x_hat = centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + EPS)
        normed = x_hat * layer["norm"]["weight"] + layer["norm"]["bias"]
        hidden = jax.nn.gelu(linear(layer["up"], normed), approximate=fault == "gelu")
        own = jax.random.fold_in(key, 0)
        keep = jax.random.bernoulli(own, 1 - RATE, hidden.shape)
        module = "blocks.*.dropped" if fault == "name" else "blocks.*.drop"
        keep = replayed_mask(module, keep)
        scale = 1 if fault == "scale" else 1 - RATE
        hidden = linear(layer["down"], jnp.where(keep, hidden / scale, 0))
        noise = replayed_draw("blocks.*", jax.random.normal(key, hidden.shape))
        return x + hidden + NOISE * noise.astype(x.dtype), None

    keys = jax.random.split(jax.random.key(0) if key is None else key, LAYERS)
    x, _ = jax.lax.scan(jax.checkpoint(block), batch["x"], (params["blocks"], keys))
    outputs = linear(params["head"], x)
    return jnp.mean((outputs - batch["y"]) ** 2), outputs


# The loop.


class ScannedLoop(nnx.Module):
    """The port of `Loop`."""

    def __init__(self, fault: str = "", *, rngs: nnx.Rngs) -> None:
        """Make the layers."""
        self.fault = fault
        self.ih = nnx.Linear(SIZE, HIDDEN, rngs=rngs)
        self.hh = nnx.Linear(HIDDEN, HIDDEN, rngs=rngs)
        self.drop = nnx.Dropout(RATE, rngs=rngs)
        self.head = nnx.Linear(HIDDEN, SIZE, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``(B, T, SIZE)`` to ``(B, SIZE)``."""

        def step(given: Any, x: jax.Array) -> Any:
            model, state = given
            state = model.drop(nnx.tanh(model.ih(x) + model.hh(state)))
            drawn = jax.random.normal(model.drop.rngs(), state.shape)
            noise = replayed_draw("", drawn).astype(x.dtype)
            return (model, state + NOISE * noise), None

        state = jnp.zeros((len(x), HIDDEN), x.dtype)
        scan = nnx.scan(
            step,
            in_axes=(nnx.Carry, 0),
            out_axes=(nnx.Carry, 0),
            reverse=self.fault != "forwards",
        )
        (_, state), _ = scan((self, state), jnp.swapaxes(x, 0, 1))
        return self.head(state)


# Groups of layers: a scan in a scan.


class ScannedGroup(nnx.Module):
    """The port of `Group`."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Make the layers."""
        make = nnx.vmap(lambda rngs: nnx.Linear(SIZE, SIZE, rngs=rngs))
        self.layers = make(rngs.split(LAYERS))
        self.mix = nnx.Linear(SIZE, SIZE, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``(B, SIZE)`` to the same."""

        def call(x: jax.Array, layer: nnx.Linear) -> jax.Array:
            hidden = nnx.tanh(layer(x))
            keep = replayed_mask("groups.*", hidden == hidden)
            return x + jnp.where(keep, hidden / (1 - RATE), 0)

        axes = {"in_axes": (nnx.Carry, 0), "out_axes": nnx.Carry}
        return self.mix(nnx.scan(call, **axes)(x, self.layers))


class ScannedGroups(nnx.Module):
    """The port of `Groups`."""

    def __init__(self, fault: str = "", *, rngs: nnx.Rngs) -> None:
        """Make the layers."""
        self.groups = nnx.vmap(ScannedGroup)(rngs.split(GROUPS))
        self.head = nnx.Linear(SIZE, SIZE, rngs=rngs)
        self.fault = fault

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``(B, SIZE)`` to the same."""
        axes = {"in_axes": (nnx.Carry, 0), "out_axes": nnx.Carry}
        backwards = self.fault == "backwards"
        scan = nnx.scan(lambda x, group: group(x), **axes, reverse=backwards)
        return self.head(scan(x, self.groups))


PORTS: dict[str, tuple[str, Any]] = {
    "nnx": (
        "stack",
        lambda fault="": port(
            ScannedStack(fault, rngs=nnx.Rngs(0)), stacked=["blocks"]
        ),
    ),
    "nnx remat": (
        "stack",
        lambda fault="": port(
            ScannedStack(fault, remat=True, rngs=nnx.Rngs(0)), stacked=["blocks"]
        ),
    ),
    "linen": ("stack", linen_stack),
    "plain": (
        "stack",
        lambda fault="": port(
            plain_tree(), partial(plain_loss, fault=fault), stacked=["blocks"]
        ),
    ),
    "groups": (
        "groups",
        lambda fault="": port(
            ScannedGroups(fault, rngs=nnx.Rngs(0)), stacked=["groups", "groups.layers"]
        ),
    ),
    "loop": ("loop", lambda fault="": port(ScannedLoop(fault, rngs=nnx.Rngs(0)))),
}
"""By name which net is ported, and the function that makes the port."""

"""Ports of nets of `scanned_nets` in Equinox.

``fault`` is the name of one thing that a port does otherwise; "" is the correct port.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from jaxclip.parity import Port, replayed_draw
from tests.parity.scanned_nets import (
    BATCH,
    EPS,
    HIDDEN,
    LAYERS,
    NOISE,
    RATE,
    SIZE,
    port,
)


class Block(eqx.Module):
    """The port of `Block`, for one row."""

    norm: eqx.nn.LayerNorm
    up: eqx.nn.Linear
    drop: eqx.nn.Dropout
    down: eqx.nn.Linear
    path: str = eqx.field(static=True)
    fault: str = eqx.field(static=True)

    def __init__(self, path: str, fault: str, key: jax.Array) -> None:
        """Make the layers; ``path`` is that of torch's."""
        of_up, of_down = jax.random.split(key)
        self.norm = eqx.nn.LayerNorm(SIZE, eps=1e-4 if fault == "eps" else EPS)
        self.up = eqx.nn.Linear(SIZE, HIDDEN, key=of_up)
        self.drop = eqx.nn.Dropout(RATE, inference=fault == "off")
        self.down = eqx.nn.Linear(HIDDEN, SIZE, key=of_down)
        self.path, self.fault = path, fault

    def __call__(self, x: jax.Array, key: jax.Array) -> jax.Array:
        """Map ``(SIZE,)`` to the same."""
        of_drop, of_noise = jax.random.split(key)
        hidden = jax.nn.gelu(self.up(self.norm(x)), approximate=self.fault == "gelu")
        hidden = self.down(self.drop(hidden, key=of_drop))
        noise = replayed_draw(self.path, jax.random.normal(of_noise, x.shape))
        return x + hidden + NOISE * noise.astype(x.dtype)


class Stack(eqx.Module):
    """The port of `Stack`, for one row: a list of blocks."""

    blocks: list[Block]
    head: eqx.nn.Linear

    def __init__(self, faults: dict[int, str]) -> None:
        """Make the blocks, of which some have a fault."""
        *keys, key = jax.random.split(jax.random.key(0), LAYERS + 1)
        self.blocks = [
            Block(f"blocks.{n}", faults.get(n, ""), own) for n, own in enumerate(keys)
        ]
        self.head = eqx.nn.Linear(SIZE, SIZE, key=key)

    def __call__(self, x: jax.Array, key: jax.Array) -> jax.Array:
        """Map ``(SIZE,)`` to the same."""
        for block, own in zip(self.blocks, jax.random.split(key, LAYERS), strict=True):
            x = block(x, own)
        return self.head(x)


class ScannedStack(eqx.Module):
    """The same with one block that has all weights, and a scan over it."""

    blocks: Block
    head: eqx.nn.Linear

    def __init__(self, fault: str) -> None:
        """Make the blocks."""
        *keys, key = jax.random.split(jax.random.key(0), LAYERS + 1)
        made = eqx.filter_vmap(partial(Block, "blocks.*", fault))
        self.blocks = made(jnp.stack(keys))
        self.head = eqx.nn.Linear(SIZE, SIZE, key=key)

    def __call__(self, x: jax.Array, key: jax.Array) -> jax.Array:
        """Map ``(SIZE,)`` to the same."""
        arrays, others = eqx.partition(self.blocks, eqx.is_array)

        def call(x: jax.Array, given: Any) -> tuple[jax.Array, None]:
            own, key = given
            return eqx.combine(own, others)(x, key), None

        keys = jax.random.split(key, LAYERS)
        x, _ = jax.lax.scan(call, x, (arrays, keys))
        return self.head(x)


class Member(eqx.Module):
    """The port of a member of `Ensemble`, for one row."""

    up: eqx.nn.Linear
    drop: eqx.nn.Dropout
    down: eqx.nn.Linear

    def __init__(self, key: jax.Array) -> None:
        """Make the layers."""
        of_up, of_down = jax.random.split(key)
        self.up = eqx.nn.Linear(SIZE, HIDDEN, key=of_up)
        self.drop = eqx.nn.Dropout(RATE)
        self.down = eqx.nn.Linear(HIDDEN, SIZE, key=of_down)

    def __call__(self, x: jax.Array, key: jax.Array) -> jax.Array:
        """Map ``(SIZE,)`` to the same."""
        of_drop, of_noise = jax.random.split(key)
        hidden = self.down(self.drop(jax.nn.relu(self.up(x)), key=of_drop))
        noise = replayed_draw("members.*", jax.random.normal(of_noise, x.shape))
        return hidden + NOISE * noise.astype(x.dtype)


class Ensemble(eqx.Module):
    """The port of `Ensemble`, for one row: members that are one module."""

    members: Member

    def __init__(self) -> None:
        """Make the members."""
        keys = jax.random.split(jax.random.key(0), LAYERS)
        self.members = eqx.filter_vmap(Member)(keys)

    def __call__(self, x: jax.Array, key: jax.Array) -> jax.Array:
        """Map ``(SIZE,)`` to the same."""
        keys = jax.random.split(key, LAYERS)
        call = eqx.filter_vmap(lambda member, key: member(x, key))
        return call(self.members, keys).mean(0)


Rows = Callable[[Any, jax.Array, jax.Array], jax.Array]
"""Calls a model for each row: it is given the model, the rows, and a key for each."""


def mapped(model: Any, x: jax.Array, keys: jax.Array) -> jax.Array:
    """Call a model for each row."""
    return jax.vmap(model)(x, keys)


def compiled(model: Any, x: jax.Array, keys: jax.Array) -> jax.Array:
    """Call it in what Equinox compiles, checkpoints, and maps with other axes."""

    @eqx.filter_jit
    def call(model: Any, x: jax.Array, keys: jax.Array) -> jax.Array:
        rows = eqx.filter_vmap(eqx.filter_checkpoint(model), in_axes=(1, 0))
        return rows(x.T, keys)

    return call(model, x, keys)


def one_key(model: Any, x: jax.Array, keys: jax.Array) -> jax.Array:
    """Call it with one key for all rows."""
    return jax.vmap(model, in_axes=(0, None))(x, keys[0])


def loss_of(
    rows: Rows, whole: Callable[[Any], Any] = lambda model: model
) -> Callable[[Any, Any], Any]:
    """Return a loss function.

    Args:
        rows: Calls the model for each row.
        whole: Makes the model of what the optimizer is given.
    """

    def loss(model: Any, batch: Any) -> Any:
        keys = jax.random.split(jax.random.key(0), BATCH)
        outputs = rows(whole(model), batch["x"], keys)
        return jnp.mean((outputs - batch["y"]) ** 2), outputs

    return loss


def parted(*, first: bool) -> Port:
    """Describe a port of which the optimizer is given the arrays alone."""
    arrays, others = eqx.partition(Stack({}), eqx.is_inexact_array)

    def whole(arrays: Any) -> Any:
        parts = (arrays, others) if first else (others, arrays)
        return eqx.combine(*parts)

    return port(arrays, loss_of(mapped, whole))


PORTS: dict[str, tuple[str, Callable[[], Port]]] = {
    "list": ("stack", lambda: port(Stack({}), loss_of(mapped))),
    "compiled": ("stack", lambda: port(Stack({}), loss_of(compiled))),
    "parted": ("stack", lambda: parted(first=True)),
    "parted the other way": ("stack", lambda: parted(first=False)),
    "scanned": (
        "stack",
        lambda: port(ScannedStack(""), loss_of(mapped), stacked=["blocks"]),
    ),
    "ensemble": (
        "ensemble",
        lambda: port(Ensemble(), loss_of(mapped), stacked=["members"]),
    ),
}
"""By name which net is ported, and the function that makes the correct port."""

FAULTS: dict[str, Callable[[], Port]] = {
    "eps": lambda: port(Stack({2: "eps"}), loss_of(mapped)),
    "gelu": lambda: port(Stack({1: "gelu"}), loss_of(compiled)),
    "off": lambda: port(Stack({3: "off"}), loss_of(mapped)),
    "one key": lambda: port(Stack({}), loss_of(one_key)),
    "scanned gelu": lambda: port(
        ScannedStack("gelu"), loss_of(mapped), stacked=["blocks"]
    ),
}
"""Ports of the stack with one fault, by its name."""

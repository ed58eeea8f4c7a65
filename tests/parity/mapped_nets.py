"""Ports that map over rows, or over layers beside one another, with ``jax.vmap``.

``fault`` is the name of one thing that a port does otherwise; "" is the correct port.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxclip.parity import Port, replayed_draw
from tests.parity.scanned_nets import (
    BATCH,
    HIDDEN,
    LAYERS,
    NOISE,
    RATE,
    SIZE,
    LinenStack,
    ScannedLoop,
    plain_loss,
    plain_tree,
    port,
)


class RowByRow(ScannedLoop):
    """The port of `Loop`, for one row after another."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``(B, T, SIZE)`` to ``(B, SIZE)``."""

        def step(state: jax.Array, given: Any) -> tuple[jax.Array, None]:
            inputs, key = given
            hidden = self.ih(inputs) + self.hh(state)
            state = self.drop(nnx.relu(hidden) if self.fault else jnp.tanh(hidden))
            noise = replayed_draw("", jax.random.normal(key, state.shape))
            return state + NOISE * noise.astype(x.dtype), None

        def of_row(row: jax.Array, key: jax.Array) -> jax.Array:
            given = row, jax.random.split(key, len(row))
            state, _ = jax.lax.scan(
                step, jnp.zeros(HIDDEN, x.dtype), given, reverse=True
            )
            return self.head(state)

        return jax.vmap(of_row)(x, jax.random.split(jax.random.key(0), len(x)))


def keys_of(fault: str) -> tuple[jax.Array, int | None]:
    """Return a key for each row, and their axis; with the fault one for all."""
    key = jax.random.key(0)
    return (key, None) if fault == "one key" else (jax.random.split(key, BATCH), 0)


def linen_rows(fault: str = "") -> Port:
    """Describe the port of `Stack` in Linen, for one row after another."""
    module = LinenStack(fault)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = module.init(keys, jnp.ones(SIZE))

    def loss(model: Any, batch: Any) -> Any:
        def of_row(row: jax.Array, key: jax.Array) -> jax.Array:
            return model(row, rngs={"dropout": key})

        keys, axis = keys_of(fault)
        outputs = jax.vmap(of_row, in_axes=(0, axis))(batch["x"], keys)
        return jnp.mean((outputs - batch["y"]) ** 2), outputs

    dropouts = {"blocks.*.drop": "blocks.Dropout_0"}
    return port((module, variables), loss, stacked=["blocks"], dropouts=dropouts)


def plain_rows(params: Any, batch: Any, *, fault: str = "") -> Any:
    """Return the loss and the outputs of `Stack`, of a row and then of all."""

    def of_row(x: jax.Array, y: jax.Array, key: jax.Array) -> Any:
        return plain_loss(params, {"x": x, "y": y}, fault=fault, key=key)

    keys, axis = keys_of(fault)
    rows = jax.vmap(of_row, in_axes=(0, 0, axis))
    losses, outputs = rows(batch["x"], batch["y"], keys)
    return losses.mean(), outputs


class Member(nnx.Module):
    """The port of a member of `Ensemble`."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Make the layers."""
        self.up = nnx.Linear(SIZE, HIDDEN, rngs=rngs)
        self.drop = nnx.Dropout(RATE, rngs=rngs)
        self.down = nnx.Linear(HIDDEN, SIZE, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``(B, SIZE)`` to the same."""
        hidden = self.down(self.drop(nnx.relu(self.up(x))))
        noise = jax.random.normal(self.drop.rngs(), hidden.shape)
        return hidden + NOISE * replayed_draw("members.*", noise).astype(x.dtype)


class MappedEnsemble(nnx.Module):
    """The port of `Ensemble`: members that are one module, called at once."""

    def __init__(self, fault: str = "", *, rngs: nnx.Rngs) -> None:
        """Make the members."""
        self.fault = fault
        self.members = nnx.vmap(Member)(rngs.split(LAYERS))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``(B, SIZE)`` to the same."""
        outputs = nnx.vmap(lambda member, x: member(x), in_axes=(0, None))(
            self.members, x
        )
        return outputs.sum(0) if self.fault else outputs.mean(0)


PORTS: dict[str, tuple[str, Any]] = {
    "nnx": ("loop", lambda fault="": port(RowByRow(fault, rngs=nnx.Rngs(0)))),
    "linen": ("stack", linen_rows),
    "plain": (
        "stack",
        lambda fault="": port(
            plain_tree(), partial(plain_rows, fault=fault), stacked=["blocks"]
        ),
    ),
    "ensemble": (
        "ensemble",
        lambda fault="": port(
            MappedEnsemble(fault, rngs=nnx.Rngs(0)), stacked=["members"]
        ),
    ),
}
"""By name which net is ported, and the function that makes the port."""

"""A small net whose port is in Equinox, for one row, and is mapped over all of them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn
from torch.nn import functional as F

from tests.parity.small_nets import FEATURES, LENGTH

HEADS, HIDDEN, RATE = 2, 7, 0.2

PROJECTED = "query", "key", "value", "output"
"""What torch's attention projects, each with a bias."""


class Attending(nn.Module):
    """A block of a transformer, and the mean over time."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.norm = nn.LayerNorm(FEATURES)
        self.attention = nn.MultiheadAttention(FEATURES, HEADS, batch_first=True)
        self.up = nn.Linear(FEATURES, HIDDEN)
        self.drop = nn.Dropout(RATE)
        self.down = nn.Linear(HIDDEN, FEATURES)
        self.head = nn.Linear(FEATURES, 2)
        nn.init.normal_(self.attention.in_proj_bias)  # torch's are zeros

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, T, FEATURES)`` to ``(B, 2)``."""
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        hidden = self.norm(x)
        attended, _ = self.attention(hidden, hidden, hidden, attn_mask=later)
        x = x + attended
        x = x + self.down(self.drop(F.gelu(self.up(x))))
        outputs: torch.Tensor = self.head(x.mean(1))
        return outputs


class AttendingPort(eqx.Module):
    """The port of `Attending`, row by row."""

    norm: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    up: eqx.nn.Linear
    drop: eqx.nn.Dropout
    down: eqx.nn.Linear
    head: eqx.nn.Linear
    fault: str = eqx.field(static=True)

    def __init__(self, fault: str = "", *, rngs: nnx.Rngs) -> None:
        """Make the layers."""
        self.fault = fault
        keys = jax.random.split(rngs(), 4)
        eps = 1e-6 if fault == "eps of Equinox's LayerNorm" else 1e-5
        self.norm = eqx.nn.LayerNorm(FEATURES, eps=eps)
        of_all = {f"use_{name}_bias": True for name in PROJECTED}
        self.attention = eqx.nn.MultiheadAttention(
            HEADS, FEATURES, key=keys[0], **of_all
        )
        self.up = eqx.nn.Linear(FEATURES, HIDDEN, key=keys[1])
        self.drop = eqx.nn.Dropout(RATE, inference=fault == "dropout left out")
        self.down = eqx.nn.Linear(HIDDEN, FEATURES, key=keys[2])
        self.head = eqx.nn.Linear(FEATURES, 2, key=keys[3])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``(B, T, FEATURES)`` to ``(B, 2)``."""
        key = jax.random.key(0)
        if self.fault == "one key for all rows":
            return jax.vmap(self.row, in_axes=(0, None))(x, key)
        return jax.vmap(self.row)(x, jax.random.split(key, len(x)))

    def row(self, x: jax.Array, key: jax.Array) -> jax.Array:
        """Map ``(T, FEATURES)`` to ``(2,)``."""
        mask = jnp.tril(jnp.ones((LENGTH, LENGTH), bool))
        if self.fault == "mask forgotten":
            mask = jnp.ones_like(mask)
        hidden = jax.vmap(self.norm)(x)
        x = x + self.attention(hidden, hidden, hidden, mask)
        hidden = self.drop(
            jax.nn.gelu(jax.vmap(self.up)(x), approximate=False), key=key
        )
        x = x + jax.vmap(self.down)(hidden)
        head = self.head
        if self.fault == "head not trained":
            head = jax.lax.stop_gradient(head)
        return head(x.mean(0))

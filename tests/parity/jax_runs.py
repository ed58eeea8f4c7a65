"""A small net in NNX and in Linen, recorded in training by JAX."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from jaxclip import clip_by_global_norm, optim
from jaxclip.parity import Port, record_jax

LR, MAX_NORM, FEATURES, BATCH = 0.05, 0.3, 4, 8


class Net(nnx.Module):
    """A square layer that is called twice, a norm, and a layer."""

    def __init__(self, *, rngs: nnx.Rngs, fault: str = "") -> None:
        """Make the layers."""
        self.fault = fault
        self.fc = nnx.Linear(FEATURES, FEATURES, rngs=rngs)
        self.bn = nnx.BatchNorm(FEATURES, rngs=rngs)
        self.head = nnx.Linear(FEATURES, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        """Map ``(B, FEATURES)`` to ``(B, 2)``."""
        hidden = self.fc(jnp.tanh(self.fc(x)))
        if self.fault == "swapped kernel":
            hidden = jnp.tanh(self.fc(x)) @ self.fc.kernel[...].T + self.fc.bias[...]
        return self.head(jnp.tanh(self.bn(hidden)))


class Renamed(nnx.Module):
    """The same, with its first layers in a module of their own."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        """Make the layers."""
        net = Net(rngs=rngs)
        self.body = nnx.Dict(linear=net.fc, norm=net.bn)
        self.head = net.head

    def __call__(self, x: Any) -> Any:
        """Map ``(B, FEATURES)`` to ``(B, 2)``."""
        hidden = self.body["linear"](jnp.tanh(self.body["linear"](x)))
        return self.head(jnp.tanh(self.body["norm"](hidden)))


RENAME = {"fc": "body.linear", "bn": "body.norm"}


class LinenNet(linen.Module):
    """The same in Linen."""

    @linen.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        """Map ``(B, FEATURES)`` to ``(B, 2)``."""
        fc = linen.Dense(FEATURES, name="fc")
        bn = linen.BatchNorm(use_running_average=not train, name="bn")
        return linen.Dense(2, name="head")(jnp.tanh(bn(fc(jnp.tanh(fc(x))))))


def loss_fn(model: Any, batch: dict[str, Any], **options: Any) -> Any:
    """Return the loss and the outputs."""
    outputs = model(batch["x"], **options)
    return jnp.mean((outputs - batch["y"]) ** 2), outputs


def linen_loss(model: Any, batch: dict[str, Any]) -> Any:
    """Return the loss of a Linen model."""
    return loss_fn(model, batch, train=True)


def port(**changes: Any) -> Port:
    """Return the port of the net, or another one."""
    given: dict[str, Any] = {
        "model": Net(rngs=nnx.Rngs(0)),
        "loss_fn": loss_fn,
        "optimizer": optim.adamw(LR),
        "clip": clip_by_global_norm(MAX_NORM),
    }
    return Port(**(given | changes))


def batches(steps: int, dtype: Any = np.float32, seed: int = 0) -> list[dict[str, Any]]:
    """Draw batches."""
    rng = np.random.default_rng(seed)
    return [
        {
            # The same numbers in every dtype.
            "x": rng.normal(size=(BATCH, FEATURES)).astype(np.float16).astype(dtype),
            "y": rng.normal(size=(BATCH, 2)).astype(np.float16).astype(dtype),
        }
        for _ in range(steps)
    ]


def jax_run(
    path: Path, own: Port, *, steps: int = 3, dtype: Any = np.float32, **options: Any
) -> Path:
    """Record some steps of a port's training; return the path."""
    with record_jax(path, own, **options) as run:
        for batch in batches(steps, dtype):
            run.step(**batch)
    return path

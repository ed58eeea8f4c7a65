"""Gradients where a function has no derivative: what torch gives, and what JAX."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

NAMES: dict[str, Any] = {"jax": jax, "jnp": jnp, "optax": optax, "torch": torch}
"""What the expressions of a row may use, beside x."""


@dataclass(frozen=True)
class Kink:
    """A function at a point where its derivative is a choice.

    Attributes:
        point: What x is.
        torch: The function, as torch has it.
        jax: The same, as JAX has it under that name.
        as_torch: How to write it in JAX with torch's derivative; nothing where the
            two agree.
    """

    point: float | tuple[float, ...]
    torch: str
    jax: str
    as_torch: str = ""

    def function(self, side: str) -> Callable[[Any], Any]:
        """Return the function of one side, of x."""
        source = getattr(self, side)
        # The expressions are those of this file.
        function = eval(f"lambda x: {source}", NAMES)
        assert callable(function)
        return function

    def gradient(self, side: str) -> list[float]:
        """Return the gradient of one side at the point."""
        return gradient(self.function(side), side, self.point)


def gradient(function: Callable[[Any], Any], side: str, point: Any) -> list[float]:
    """Differentiate the sum of a function's values, in float64."""
    x = np.asarray(point, "float64")
    if side == "torch":
        tensor = torch.tensor(x, requires_grad=True)
        function(tensor).sum().backward()
        assert tensor.grad is not None
        return tensor.grad.reshape(-1).tolist()
    with jax.enable_x64(True):
        grad = jax.grad(lambda x: jnp.sum(function(x)))(jnp.asarray(x))
    return [float(value) for value in np.ravel(grad)]


_CLIP = "jnp.where((-1 <= x) & (x <= 1), x, jnp.clip(x, -1, 1))"
_MEAN_APART = "optax.safe_norm(x - x.mean(), 0.0)"

KINKS = [
    Kink(0.0, "torch.abs(x)", "jnp.abs(x)", "x * jnp.sign(x)"),
    Kink(1.0, "x.clamp(-1, 1)", "jnp.clip(x, -1, 1)", _CLIP),
    Kink(-1.0, "x.clamp(-1, 1)", "jnp.clip(x, -1, 1)", _CLIP),
    Kink(
        1.0,
        "torch.nn.functional.hardtanh(x)",
        "jax.nn.hard_tanh(x)",
        "jnp.where(jnp.abs(x) < 1, x, jnp.sign(x))",
    ),
    Kink(
        0.0,
        "torch.nn.functional.leaky_relu(x)",
        "jax.nn.leaky_relu(x)",
        "jnp.where(x > 0, x, 0.01 * x)",
    ),
    Kink(
        (0.0, 0.0),
        "torch.linalg.norm(x)",
        "jnp.linalg.norm(x)",
        "optax.safe_norm(x, 0.0)",
    ),
    Kink(
        (0.0, 0.0),
        "torch.nn.functional.normalize(x, dim=0)",
        "x / jnp.linalg.norm(x)",
        "x / jnp.maximum(optax.safe_norm(x, 0.0), 1e-12)",
    ),
    Kink(
        (2.0, 2.0),
        "x.std()",
        "jnp.std(x, ddof=1)",
        f"{_MEAN_APART} / (x.size - 1) ** 0.5",
    ),
    Kink((2.0, 2.0), "x.max(dim=0).values", "jnp.max(x, axis=0)", "x[jnp.argmax(x)]"),
    # Where the two agree.
    Kink(0.0, "torch.nn.functional.relu(x)", "jax.nn.relu(x)"),
    Kink(0.0, "torch.nn.functional.relu6(x)", "jax.nn.relu6(x)"),
    Kink(6.0, "torch.nn.functional.relu6(x)", "jax.nn.relu6(x)"),
    Kink(0.0, "torch.nn.functional.elu(x)", "jax.nn.elu(x)"),
    Kink(3.0, "torch.nn.functional.hardsigmoid(x)", "jax.nn.hard_sigmoid(x)"),
    Kink(-3.0, "torch.nn.functional.hardswish(x)", "jax.nn.hard_swish(x)"),
    Kink((2.0, 2.0), "x.amax()", "jnp.max(x)"),
    Kink(0.0, "torch.maximum(x, 0 * x)", "jnp.maximum(x, 0 * x)"),
    Kink(0.0, "torch.sqrt(x)", "jnp.sqrt(x)"),
]


def table() -> list[tuple[str, str, str, str, str, str]]:
    """Return the rows of the kinks at which the two differ."""
    return [
        (
            shown([*np.ravel(kink.point)]),
            f"`{kink.torch.replace('torch.nn.functional.', 'F.')}`",
            shown(kink.gradient("torch")),
            f"`{kink.jax}`",
            shown(kink.gradient("jax")),
            f"`{kink.as_torch}`",
        )
        for kink in KINKS
        if kink.as_torch
    ]


def shown(values: list[float]) -> str:
    """Return numbers as a cell of a table."""
    return " ".join(f"{value:g}" for value in values)

"""Run an optimizer of torch and ours on the same gradients, side by side."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

STEPS = 200
SHAPES = {"kernel": (8, 6), "bias": (6,), "scale": ()}


@dataclass(frozen=True)
class Pair:
    """An optimizer in both frameworks, with the same options.

    Attributes:
        torch: torch's class.
        ours: The function of jaxclip.optim.
        options: Arguments by name, for both.
    """

    torch: Callable[..., torch.optim.Optimizer]
    ours: Callable[..., optax.GradientTransformationExtraArgs]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        options = [f"{name}={value}" for name, value in self.options.items()]
        return f"{self.ours.__name__}({', '.join(options)})"


def parameters(
    seed: int = 0, shapes: dict[str, tuple[int, ...]] = SHAPES
) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        # Numbers that float32 holds, so that both dtypes start at the same.
        name: rng.normal(size=shape).astype(np.float32).astype(np.float64)
        for name, shape in shapes.items()
    }


def gradients(
    seed: int = 1,
    steps: int = STEPS,
    shapes: dict[str, tuple[int, ...]] = SHAPES,
) -> dict[str, np.ndarray]:
    """Return the gradients of all steps: magnitudes from 1e-12 to 1e4, and zeros.

    Each element has a magnitude of its own that it keeps, so that small ones are not
    lost in averages of large ones, and at times one that is a thousand times larger.
    """
    rng = np.random.default_rng(seed)
    made = {}
    for name, shape in shapes.items():
        scale = 10.0 ** rng.uniform(-12, 1, size=shape)
        burst = np.where(rng.random((steps, *shape)) < 0.05, 1e3, 1.0)
        zero = rng.random((steps, *shape)) < 0.1
        values = rng.normal(size=(steps, *shape)) * scale * burst
        made[name] = np.where(zero, 0.0, values).astype(np.float32).astype(np.float64)
    return made


def run_torch(
    pair: Pair,
    params: dict[str, np.ndarray],
    grads: dict[str, np.ndarray],
    dtype: torch.dtype = torch.float64,
    absent: Callable[[str, int], bool] = lambda name, step: False,
) -> tuple[dict[str, np.ndarray], torch.optim.Optimizer]:
    """Return the parameters after each step, and the optimizer."""
    tensors = {
        name: torch.nn.Parameter(torch.tensor(value, dtype=dtype))
        for name, value in params.items()
    }
    optimizer = pair.torch(tensors.values(), **pair.options)
    history: dict[str, list[np.ndarray]] = {name: [] for name in params}
    for step in range(len(next(iter(grads.values())))):
        for name, tensor in tensors.items():
            grad = torch.tensor(grads[name][step], dtype=dtype)
            tensor.grad = None if absent(name, step) else grad
        optimizer.step()
        for name, tensor in tensors.items():
            history[name].append(tensor.detach().numpy().copy())
    return {name: np.stack(values) for name, values in history.items()}, optimizer


def run_ours(
    pair: Pair,
    params: dict[str, np.ndarray],
    grads: dict[str, np.ndarray],
    dtype: Any = jnp.float64,
) -> tuple[dict[str, np.ndarray], Any]:
    """Return the parameters after each step, and the last state."""
    optimizer = pair.ours(**pair.options)
    start = {name: jnp.asarray(value, dtype) for name, value in params.items()}

    def step(carry: Any, grad: Any) -> Any:
        params, state = carry
        updates, state = optimizer.update(grad, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    @jax.jit
    def run(params: Any, grads: Any) -> Any:
        return jax.lax.scan(step, (params, optimizer.init(params)), grads)

    given = {name: jnp.asarray(value, dtype) for name, value in grads.items()}
    (_, state), history = run(start, given)
    return {name: np.asarray(value) for name, value in history.items()}, state


def run_ours_with_absent(
    pair: Pair,
    params: dict[str, np.ndarray],
    grads: dict[str, np.ndarray],
    absent: Callable[[str, int], bool],
) -> tuple[dict[str, np.ndarray], Any]:
    """Do the same with None for gradients that are absent, a step at a time."""
    optimizer = pair.ours(**pair.options)
    held = {name: jnp.asarray(value) for name, value in params.items()}
    state = optimizer.init(held)
    history: dict[str, list[np.ndarray]] = {name: [] for name in params}
    for step in range(len(next(iter(grads.values())))):
        given = {
            name: None if absent(name, step) else jnp.asarray(values[step])
            for name, values in grads.items()
        }
        updates, state = optimizer.update(given, state, held)
        held = optax.apply_updates(held, updates)
        for name, value in held.items():
            history[name].append(np.asarray(value))
    return {name: np.stack(values) for name, values in history.items()}, state


def apart(
    history: dict[str, np.ndarray], expected: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return how far each element is from what is expected of it, relative to it.

    That is, to the largest magnitude that it has had so far: an element that passes
    through 0 keeps the rounding of where it came from.
    """
    return {
        name: np.abs(history[name] - value)
        / np.maximum.accumulate(np.abs(value), axis=0)
        for name, value in expected.items()
    }


def error(history: dict[str, np.ndarray], truth: dict[str, np.ndarray]) -> float:
    """Return how far elements are from the truth: the root mean square of `apart`."""
    distances = apart(history, truth).values()
    return float(np.sqrt(np.mean(np.concatenate([d.ravel() for d in distances]) ** 2)))

"""Run an optimizer of torch and ours on the same gradients, side by side."""

from collections import defaultdict
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


Absent = Callable[[str, int], bool]


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
    *,
    absent: Absent = lambda name, step: False,
    before: Callable[[dict[str, Any], int], None] = lambda group, step: None,
) -> dict[str, np.ndarray]:
    """Return the parameters, and what torch keeps of each, after each step.

    Args:
        pair: The optimizer.
        params: Where to start.
        grads: Those of each step.
        dtype: What to run in. What torch keeps as numbers, such as the product of
            NAdam, it keeps in its default dtype, which is float64 for the run if this
            has 64 bits to the real number.
        absent: Says which parameter has no gradient at which step.
        before: Changes the parameter group before each step.

    Returns:
        By name, as "kernel" and "kernel.exp_avg", from the first step that there is
        one.
    """
    usual = torch.get_default_dtype()
    is_wide = dtype in (torch.float64, torch.complex128)
    torch.set_default_dtype(torch.float64 if is_wide else torch.float32)
    try:
        tensors = {
            name: torch.nn.Parameter(torch.tensor(value, dtype=dtype))
            for name, value in params.items()
        }
        optimizer = pair.torch(tensors.values(), **pair.options)
        history: dict[str, list[np.ndarray]] = defaultdict(list)
        for step in range(steps_of(grads)):
            for name, tensor in tensors.items():
                grad = torch.tensor(grads[name][step], dtype=dtype)
                tensor.grad = None if absent(name, step) else grad
            before(optimizer.param_groups[0], step)
            optimizer.step()
            for name, tensor in tensors.items():
                history[name].append(tensor.detach().numpy().copy())
                for key, kept in optimizer.state[tensor].items():
                    if kept is not None:
                        value = torch.as_tensor(kept).numpy().copy()
                        history[f"{name}.{key}"].append(value)
        return {name: np.stack(values) for name, values in history.items()}
    finally:
        torch.set_default_dtype(usual)


def run_ours(
    pair: Pair,
    params: dict[str, np.ndarray],
    grads: dict[str, np.ndarray],
    dtype: Any = jnp.float64,
) -> dict[str, np.ndarray]:
    """Return the same of ours, in one ``lax.scan``."""
    optimizer = pair.ours(**pair.options)
    start = {name: jnp.asarray(value, dtype) for name, value in params.items()}

    def step(carry: Any, grad: Any) -> Any:
        params, state = carry
        updates, state = optimizer.update(grad, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), named(params, state)

    @jax.jit
    def run(params: Any, grads: Any) -> Any:
        return jax.lax.scan(step, (params, optimizer.init(params)), grads)[1]

    given = {name: jnp.asarray(value, dtype) for name, value in grads.items()}
    return {name: np.asarray(value) for name, value in run(start, given).items()}


def run_ours_with_absent(
    pair: Pair,
    params: dict[str, np.ndarray],
    grads: dict[str, np.ndarray],
    absent: Absent,
) -> dict[str, np.ndarray]:
    """Do it a step at a time, with None for gradients that are absent."""
    optimizer = pair.ours(**pair.options)
    held = {name: jnp.asarray(value) for name, value in params.items()}
    state = optimizer.init(held)
    history: dict[str, list[np.ndarray]] = defaultdict(list)
    for step in range(steps_of(grads)):
        given = {
            name: None if absent(name, step) else jnp.asarray(values[step])
            for name, values in grads.items()
        }
        updates, state = optimizer.update(given, state, held)
        held = optax.apply_updates(held, updates)
        for name, value in named(held, state).items():
            history[name].append(np.asarray(value))
    return {name: np.stack(values) for name, values in history.items()}


def named(params: Any, state: Any) -> dict[str, jax.Array]:
    """Name the parameters, and what is kept of each, as `run_torch` does."""
    record = dict(params)
    for key, kept in state._asdict().items():
        if key == "count" or kept is None:
            continue
        # One scalar for each parameter, in the order of the tree, or a tree.
        own = (
            kept
            if isinstance(kept, dict)
            else dict(zip(sorted(params), kept, strict=False))
        )
        record |= {f"{name}.{key}": own[name] for name in params}
    return record


def steps_of(grads: dict[str, np.ndarray]) -> int:
    return len(next(iter(grads.values())))


def apart(
    history: dict[str, np.ndarray], expected: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return how far each element is from what is expected of it, relative to it.

    That is, to the largest magnitude that it has had so far: an element that passes
    through 0 keeps the rounding of where it came from.
    """
    distances = {}
    for name, value in expected.items():
        distance = np.abs(history[name][-len(value) :] - value)
        largest = np.maximum.accumulate(np.abs(value), axis=0)
        # What has always been 0 is to be 0.
        distances[name] = distance / np.where(largest > 0, largest, 1e-300)
    return distances


def error(history: dict[str, np.ndarray], truth: dict[str, np.ndarray]) -> float:
    """Return how far parameters are from the truth: the root mean square of `apart`."""
    parameters = {name: value for name, value in truth.items() if "." not in name}
    distances = apart(history, parameters).values()
    return float(np.sqrt(np.mean(np.concatenate([d.ravel() for d in distances]) ** 2)))

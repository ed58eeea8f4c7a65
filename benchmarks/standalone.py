"""A clip by itself, gradients donated, against torch's and against moving the bytes.

The floor reads the gradients once for the norm, and reads and writes them once to
scale them: a plain sum of each leaf, then a plain multiplication, as XLA compiles them.
Every call clips; one that finds nothing to clip multiplies by 1, and takes as long.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from rich.console import Console
from rich.table import Table

import jaxclip
from benchmarks import trees
from benchmarks.timing import (
    calls_in_a_turn,
    hardware,
    in_turns,
    ratio,
    rounded,
    side_by_side,
    torch_device,
    torch_temporary,
)

ROUNDS = 15
OURS, OPTAX = "jaxclip.clip_by_global_norm", "optax.clip_by_global_norm"
FLOOR = "floor: one read; one read and write"
TORCH = "torch clip_grad_norm_, foreach"


class Donated:
    """Calls that take the same gradients in turn, and give them back clipped."""

    def __init__(self, grads: trees.Tree) -> None:
        """Start with these gradients."""
        self.grads = grads

    def call(self, program: Any) -> Callable[[float], Any]:
        """Return a call of a compiled function that donates the gradients."""

        def run(max_norm: float) -> Any:
            self.grads, *rest = program(self.grads, np.float32(max_norm))
            return self.grads, rest

        return run


def floor(grads: trees.Tree, max_norm: jax.Array) -> Any:
    """Sum the leaves, and multiply them by a number that the sum does not change."""
    total = sum(jnp.sum(leaf.astype(jnp.float32)) for leaf in grads.values())
    factor = jnp.where(jnp.isnan(total), max_norm, jnp.float32(1))
    return {
        name: (hold(leaf).astype(jnp.float32) * factor).astype(leaf.dtype)
        for name, leaf in grads.items()
    }, total


def hold(leaf: jax.Array) -> jax.Array:
    """Keep XLA from writing out a float32 copy of a leaf that it reads twice."""
    held: jax.Array = jax.lax.optimization_barrier(leaf)
    return held


def ours(grads: trees.Tree, max_norm: jax.Array) -> Any:
    """Clip, metrics and safety included."""
    clip = jaxclip.clip_by_global_norm(max_norm)
    return clip.update(grads, clip.init(grads))


def theirs(grads: trees.Tree, max_norm: jax.Array) -> Any:
    """Clip as Optax does, which takes a traced threshold of the leaves' dtype alone."""
    (dtype,) = {leaf.dtype for leaf in grads.values()}
    clip = optax.clip_by_global_norm(max_norm.astype(dtype))
    return clip.update(grads, clip.init(grads))


CLIPS = {FLOOR: floor, OURS: ours, OPTAX: theirs}


def temporary(program: Any) -> str:
    """Return the megabytes that a program takes beside arguments and results."""
    return f"{program.memory_analysis().temp_size_in_bytes / 1e6:.1f}"


def torch_parameters(grads: trees.Tree) -> list[torch.nn.Parameter]:
    """Return parameters with the same gradients."""
    params = []
    for leaf in grads.values():
        dtype = torch.bfloat16 if leaf.dtype == jnp.bfloat16 else torch.float32
        grad = torch.from_numpy(np.array(leaf, np.float32)).to(torch_device(), dtype)
        param = torch.nn.Parameter(torch.zeros_like(grad))
        param.grad = grad
        params.append(param)
    return params


def compiled(function: Callable[..., Any], tree: trees.Tree) -> Any:
    """Compile a clip that is given the gradients to keep."""
    max_norm = jax.ShapeDtypeStruct((), jnp.float32)
    return jax.jit(function, donate_argnums=0).lower(tree, max_norm).compile()


def candidates(
    grads: trees.Tree, programs: Mapping[str, Any]
) -> dict[str, Callable[[float], Any]]:
    """Return what to time on these gradients, each a call that takes ``max_norm``."""
    donated = Donated(grads)
    params = torch_parameters(grads)
    return {
        **{name: donated.call(program) for name, program in programs.items()},
        TORCH: lambda max_norm: torch.nn.utils.clip_grad_norm_(
            params, max_norm, foreach=True
        ),
    }


def falling(
    calls: dict[str, Callable[[float], Any]], max_norm: float
) -> dict[str, Callable[[], Any]]:
    """Give each call a threshold below the one before, so that every one clips."""
    thresholds, count = itertools.count(), calls_in_a_turn()

    def lower(call: Callable[[float], Any]) -> Callable[[], Any]:
        return lambda: call(max_norm * 0.98 ** (next(thresholds) / count))

    return {name: lower(call) for name, call in calls.items()}


def main() -> list[Table]:
    """Print a table for each tree."""
    tables = []
    for title, tree in trees.TREES.items():
        shapes = tree()
        grads = trees.gradients(shapes)
        norm = float(jaxclip.global_norm(grads))
        given = [(function, shapes) for function in CLIPS.values()]
        programs = dict(zip(CLIPS, side_by_side(compiled, given), strict=True))
        calls = falling(candidates(grads, programs), norm)
        del grads  # They are donated.
        memory = {name: temporary(program) for name, program in programs.items()}
        memory[TORCH] = torch_temporary(calls[TORCH])
        times = in_turns(calls, ROUNDS, title)
        gigabytes = 3 * trees.nbytes(shapes) / 1e9
        table = Table(
            "clip",
            "median ms",
            "× floor",
            "× torch",
            "GB/s",
            "temporary MB",
            title=f"{title}, {gigabytes:.2f} GB moved; {hardware()}",
        )
        for name, milliseconds in times.items():
            table.add_row(
                name,
                rounded(milliseconds),
                f"{ratio(milliseconds, times[FLOOR]):.2f}",
                f"{ratio(milliseconds, times[TORCH]):.2f}",
                f"{gigabytes / float(np.median(milliseconds)) * 1e3:.0f}",
                memory[name],
            )
        Console(width=100).print(table)
        tables.append(table)
    return tables


if __name__ == "__main__":
    main()

"""What a clip costs outside ``jit``: one compiled call, or an operation at a time.

Usage: ``python -m benchmarks.eager_calls [LEAVES ...]``, by default 148 and 2000 leaves
of (64, 64) in float32, and on a GPU 148 alone.
"""

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from rich.console import Console
from rich.table import Table

import jaxclip
from benchmarks.timing import (
    hardware,
    in_turns,
    milliseconds,
    on_gpu,
    ratio,
    torch_device,
)

ROUNDS = 15
COMPILED = "jaxclip.clip_grad_norm, compiled"


def candidates(leaves: int) -> dict[str, Callable[[], Any]]:
    """Return what to time, each a call that clips ``leaves`` gradients."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((64, 64), np.float32) for _ in range(leaves)]
    grads = [jnp.asarray(array) for array in arrays]
    tensors = [torch.from_numpy(array).to(torch_device()) for array in arrays]
    params = [torch.zeros_like(tensor) for tensor in tensors]
    ours, theirs = jaxclip.clip_by_global_norm(1.0), optax.clip_by_global_norm(1.0)
    state, empty = ours.init(grads), theirs.init(grads)
    compiled = jax.jit(lambda grads: jaxclip.clip_grad_norm(grads, 1.0))

    def in_place() -> torch.Tensor:
        for param, tensor in zip(params, tensors, strict=True):
            param.grad = tensor
        return torch.nn.utils.clip_grad_norm_(params, 1.0)

    return {
        COMPILED: lambda: compiled(grads),
        "jaxclip.clip_grad_norm": lambda: jaxclip.clip_grad_norm(grads, 1.0),
        "jaxclip.clip_by_global_norm(1.0).update": lambda: ours.update(grads, state),
        "optax.clip_by_global_norm(1.0).update": lambda: theirs.update(grads, empty),
        "torch.nn.utils.clip_grad_norm_": in_place,
    }


def table_of(leaves: int) -> Table:
    """Time every candidate on so many leaves."""
    calls = candidates(leaves)
    first = {name: milliseconds(call) for name, call in calls.items()}
    times = in_turns(calls, ROUNDS, f"{leaves} leaves", at_once=1)
    table = Table(
        "called outside jit",
        "median ms",
        "× compiled",
        "first call ms",
        title=f"{leaves} leaves of (64, 64) float32, called eagerly; {hardware()}",
    )
    for name, values in times.items():
        table.add_row(
            name,
            f"{np.median(values):.2f}",
            f"{ratio(values, times[COMPILED]):.2f}",
            f"{first[name]:.0f}",
        )
    Console(width=100).print(table)
    return table


def main(*leaves: int) -> list[Table]:
    """Print a table for each number of leaves."""
    usual = (148,) if on_gpu() else (148, 2000)
    return [table_of(count) for count in leaves or usual]


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

"""What a clip costs outside ``jit``: one compiled call, or an operation at a time.

Usage: ``python benchmarks/eager_calls.py [LEAVES ...]``, by default 148 and 500 leaves
of (64, 64) in float32. Every figure is a median over rounds in which the candidates
take turns, so that a busy machine slows all of them alike.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import jaxclip

ROUNDS = 15
COMPILED = "jaxclip.clip_grad_norm, compiled"


def candidates(leaves: int) -> dict[str, Callable[[], Any]]:
    """Return what to time, each a call that clips ``leaves`` gradients."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((64, 64), np.float32) for _ in range(leaves)]
    grads = [jnp.asarray(array) for array in arrays]
    params = [torch.zeros(64, 64) for _ in arrays]
    ours, theirs = jaxclip.clip_by_global_norm(1.0), optax.clip_by_global_norm(1.0)
    state, empty = ours.init(grads), theirs.init(grads)
    compiled = jax.jit(lambda grads: jaxclip.clip_grad_norm(grads, 1.0))

    def in_place() -> torch.Tensor:
        for param, array in zip(params, arrays, strict=True):
            param.grad = torch.from_numpy(array)
        return torch.nn.utils.clip_grad_norm_(params, 1.0)

    return {
        COMPILED: lambda: compiled(grads),
        "jaxclip.clip_grad_norm": lambda: jaxclip.clip_grad_norm(grads, 1.0),
        "jaxclip.clip_by_global_norm(1.0).update": lambda: ours.update(grads, state),
        "optax.clip_by_global_norm(1.0).update": lambda: theirs.update(grads, empty),
        "torch.nn.utils.clip_grad_norm_": in_place,
    }


def milliseconds(call: Callable[[], Any]) -> float:
    """Time one call, to its last result."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    """Time every candidate and print a table for each number of leaves."""
    for leaves in [int(argument) for argument in sys.argv[1:]] or [148, 500]:
        calls = candidates(leaves)
        first = {name: milliseconds(call) for name, call in calls.items()}
        rounds: dict[str, list[float]] = {name: [] for name in calls}
        for _ in track(range(ROUNDS), description=f"{leaves} leaves"):
            for name, call in calls.items():
                rounds[name].append(milliseconds(call))

        table = Table(
            "called outside jit",
            "median ms",
            "× compiled",
            "first call ms",
            title=f"{leaves} leaves of (64, 64), float32",
        )
        unit = np.array(rounds[COMPILED])
        for name, times in rounds.items():
            ratio = np.median(np.array(times) / unit)
            table.add_row(
                name, f"{np.median(times):.2f}", f"{ratio:.2f}", f"{first[name]:.0f}"
            )
        Console().print(table)


if __name__ == "__main__":
    main()

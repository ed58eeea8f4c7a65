"""A clip by itself, gradients donated, against torch's and against moving the bytes.

The floor reads the gradients once for the norm, and reads and writes them once to
scale them: a plain sum of each leaf, then a plain multiplication, as XLA compiles them.
"""

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
from benchmarks import trees
from benchmarks.timing import hardware, in_turns, ratio

ROUNDS = 15
FLOOR = "floor: one read; one read and write"


class Donated:
    """Calls that take the same gradients in turn, and give them back changed."""

    def __init__(self, grads: trees.Tree) -> None:
        """Start with these gradients."""
        self.grads = grads

    def call(self, function: Callable[..., Any]) -> Callable[[], Any]:
        """Return a call of a compiled function that donates the gradients."""
        program = jax.jit(function, donate_argnums=0)

        def run() -> Any:
            self.grads, *rest = program(self.grads)
            return self.grads, rest

        return run


def floor(grads: trees.Tree) -> Any:
    """Sum the leaves, and multiply them by a number that the sum does not change."""
    total = sum(jnp.sum(leaf.astype(jnp.float32)) for leaf in grads.values())
    one = jnp.where(jnp.isnan(total), jnp.float32(2), jnp.float32(1))
    return {
        name: (leaf.astype(jnp.float32) * one).astype(leaf.dtype)
        for name, leaf in grads.items()
    }, total


def candidates(tree: trees.Tree) -> dict[str, Callable[[], Any]]:
    """Return what to time on gradients of these shapes."""
    grads = trees.gradients(tree)
    donated = Donated(grads)
    ours, theirs = jaxclip.clip_by_global_norm, optax.clip_by_global_norm(1.0)
    params = [torch.nn.Parameter(torch.zeros(leaf.shape)) for leaf in tree.values()]
    if any(leaf.dtype == jnp.bfloat16 for leaf in tree.values()):
        params = [torch.nn.Parameter(param.data.bfloat16()) for param in params]
    for param, leaf in zip(params, grads.values(), strict=True):
        values = torch.from_numpy(np.array(leaf, np.float32))
        param.grad = values.to(param.dtype)

    def clip(transformation: optax.GradientTransformation) -> Callable[[Any], Any]:
        def update(grads: Any) -> Any:
            return transformation.update(grads, transformation.init(grads))

        return update

    # The calls share gradients: each doubles them first, in the same pass, so that the
    # next one has something to clip.
    def doubled(update: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda grads: update({name: 2 * leaf for name, leaf in grads.items()})

    def torch_clip() -> None:
        torch.nn.utils.clip_grad_norm_(params, 1.0, foreach=True)

    return {
        FLOOR: donated.call(floor),
        "jaxclip.clip_by_global_norm": donated.call(doubled(clip(ours(1.0)))),
        "… that does not clip": donated.call(clip(ours(1e6))),
        "optax.clip_by_global_norm": donated.call(doubled(clip(theirs))),
        "… that does not clip ": donated.call(clip(optax.clip_by_global_norm(1e6))),
        "torch clip_grad_norm_, foreach": torch_clip,
    }


def main() -> list[Table]:
    """Print a table for each tree."""
    tables = []
    for title, tree in trees.TREES.items():
        shapes = tree()
        times = in_turns(candidates(shapes), ROUNDS, title)
        gigabytes = 3 * trees.nbytes(shapes) / 1e9
        table = Table(
            "clip",
            "median ms",
            "× floor",
            "× torch",
            "GB/s",
            title=f"{title}, {gigabytes:.2f} GB moved; {hardware()}",
        )
        for name, milliseconds in times.items():
            median = float(np.median(milliseconds))
            table.add_row(
                name,
                f"{median:.1f}",
                f"{ratio(milliseconds, times[FLOOR]):.2f}",
                f"{ratio(milliseconds, times['torch clip_grad_norm_, foreach']):.2f}",
                f"{gigabytes / median * 1e3:.0f}",
            )
        Console(width=100).print(table)
        tables.append(table)
    return tables


if __name__ == "__main__":
    main()

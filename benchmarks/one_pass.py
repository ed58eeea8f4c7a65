"""How near XLA on the CPU can come to AdamW in one pass over memory.

torch's fused step reads p, m, v and g once and writes three of them: 7 reads and
writes. XLA compiles three kernels, for m, v, and p of both, which make 10. What can be
done about it, each measured here, on two leaves of 25M floats:

- *Chunks*: a loop that takes 2^18 elements at a time through the three kernels, in
  place, so that the third finds m and v in the cache. Only if p reads m and v back
  from the loop's arrays: formed of their old values, it makes XLA copy both arrays
  whole in each turn. It is not what `jaxclip.optim` does: an Optax transformation
  returns updates, which are added to p outside, so that the loop would write them out
  and they would be read again; and arrays that are sharded would be gathered to be cut.
- *Multi-output fusion*: XLA's CPU compiler has that pass, for those who start Python
  with ``XLA_FLAGS=--xla_backend_extra_options=xla_cpu_use_multi_output_fusion``. It
  joins m and v, for 9 reads and writes. Where p is formed of the old m and v behind a
  barrier, it joins all three, for 7; without the option that makes 15, and 2 copies.
  With a clip before AdamW it joins the gradient too, and writes 13 and a copy of the
  clipped gradients. It is off by default, and no option of ``jax.jit``.
"""

import functools
import multiprocessing
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax
from rich.console import Console
from rich.table import Table

from benchmarks import trees
from benchmarks.timing import hardware, in_turns, ratio
from benchmarks.training_step import passes

ROUNDS = 9
FLAG = "--xla_backend_extra_options=xla_cpu_use_multi_output_fusion"
SHAPE, LEAVES = (8192, 3072), 2
LR, BETA1, BETA2, EPS, DECAY = 1e-3, 0.9, 0.999, 1e-8, 1e-2

PLAIN, OLD, TORCH = "three kernels", "p of the old m and v", "torch, fused"

Leaf = tuple[jax.Array, jax.Array, jax.Array]


def moments(m: jax.Array, v: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the new averages."""
    return m + (1 - BETA1) * (g - m), BETA2 * v + (1 - BETA2) * (g * g)


def stepped(p: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
    """Return the new parameters, as if after many steps."""
    return p - LR * m / (jnp.sqrt(v) + EPS) - LR * DECAY * p


def plain(p: jax.Array, m: jax.Array, v: jax.Array, g: jax.Array) -> Leaf:
    """Step as any Optax transformation does."""
    m, v = moments(m, v, g)
    return stepped(p, m, v), m, v


def of_old(p: jax.Array, m: jax.Array, v: jax.Array, g: jax.Array) -> Leaf:
    """Form the averages twice, so that all results are of the same arguments."""
    hold: Callable[[jax.Array], jax.Array] = lax.optimization_barrier
    again = moments(hold(m), hold(v), hold(g))
    return stepped(p, *again), *moments(m, v, g)


def in_chunks(
    size: int, p: jax.Array, m: jax.Array, v: jax.Array, g: jax.Array
) -> Leaf:
    """Step so many elements at a time, in place."""
    p, m, v, gradient = (array.reshape(-1) for array in (p, m, v, g))

    def turn(index: jax.Array, state: Leaf) -> Leaf:
        start = (index * size,)

        def cut(array: jax.Array) -> jax.Array:
            return lax.dynamic_slice(array, start, (size,))

        def paste(array: jax.Array, part: jax.Array) -> jax.Array:
            return lax.dynamic_update_slice(array, part, start)

        p, m, v = state
        new_m, new_v = moments(cut(m), cut(v), cut(gradient))
        m, v = lax.optimization_barrier((paste(m, new_m), paste(v, new_v)))
        return paste(p, stepped(cut(p), cut(m), cut(v))), m, v

    p, m, v = lax.fori_loop(0, gradient.size // size, turn, (p, m, v))
    return p.reshape(SHAPE), m.reshape(SHAPE), v.reshape(SHAPE)


CHUNKS = {
    f"chunks of 2^{power}": functools.partial(in_chunks, 2**power)
    for power in (14, 16, 18, 20)
}


def compiled(step: Callable[..., Leaf], grads: trees.Tree) -> tuple[Any, str]:
    """Return a compiled step on all leaves, and its reads and writes."""

    def steps(state: list[Leaf], grads: trees.Tree) -> list[Leaf]:
        return [step(*s, g) for s, g in zip(state, grads.values(), strict=True)]

    state = [(g, g, g) for g in grads.values()]
    program = jax.jit(steps, donate_argnums=0).lower(state, grads).compile()
    # XLA counts the body of a loop once.
    loops = "while(" in str(program.as_text())
    return program, "" if loops else f"{passes(program, grads):.1f}"


def measured(names: list[str]) -> list[tuple[str, ...]]:
    """Return the cells of some steps, and of torch's, in this process."""
    steps: dict[str, Callable[..., Leaf]] = {PLAIN: plain, OLD: of_old, **CHUNKS}
    leaf = jax.ShapeDtypeStruct(SHAPE, jnp.float32)
    grads = trees.gradients({str(index): leaf for index in range(LEAVES)})
    state = [tuple(jnp.zeros(SHAPE) for _ in range(3)) for _ in grads]
    params = []
    for grad in grads.values():
        params.append(torch.nn.Parameter(torch.zeros(SHAPE)))
        params[-1].grad = torch.from_numpy(np.array(grad))
    programs = {name: compiled(steps[name], grads) for name in names}

    def call(program: Any) -> Any:
        nonlocal state
        state = program(state, grads)
        return state

    calls: dict[str, Callable[[], Any]] = {
        name: functools.partial(call, programs[name][0]) for name in names
    }
    calls[TORCH] = torch.optim.AdamW(params, fused=True).step
    wall = in_turns(calls, ROUNDS, "wall")
    busy = in_turns(calls, ROUNDS, "processor", time.process_time)
    return [
        (
            name,
            *(
                f"{ratio(times[name], times[unit]):.2f}"
                for times in (wall, busy)
                for unit in (PLAIN, TORCH)
            ),
            programs[name][1] if name in programs else "",
        )
        for name in calls
    ]


def with_flag(names: list[str]) -> list[tuple[str, ...]]:
    """Measure in a new process, with multi-output fusion."""
    before = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{before} {FLAG}"
    try:
        with multiprocessing.get_context("spawn").Pool(1) as fresh:
            return fresh.apply(measured, (names,))
    finally:
        os.environ["XLA_FLAGS"] = before


def main() -> list[Table]:
    """Print a table."""
    table = Table(
        "AdamW",
        *("time × three kernels", "× torch", "processor × three kernels", "× torch"),
        "reads and writes",
        title=f"Towards one pass, {LEAVES} leaves of {SHAPE}; {hardware()}",
    )
    for cells in measured([PLAIN, *CHUNKS]):
        table.add_row(*cells)
    for name, *numbers in with_flag([PLAIN, OLD]):
        table.add_row(f"multi-output fusion: {name}", *numbers)
    Console(width=150).print(table)
    return [table]


if __name__ == "__main__":
    main()

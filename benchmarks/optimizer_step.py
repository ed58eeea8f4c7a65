"""A step of `jaxclip.optim` against Optax's and torch's fused one, with a clip or not.

On GPT-2's shapes, parameters and states donated, gradients given. "Reads and writes"
are those that XLA counts, in units of all the gradients. Wall times are of a machine
that others use too; processor time is that of all threads of this process, which
depends on them less, and says nothing of a GPU. torch clips in place, so that after the
first step its gradients have a norm of 1; it multiplies them nevertheless, and takes as
long.
"""

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

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
    hardware,
    in_turns,
    milliseconds,
    on_gpu,
    ratio,
    rounded,
    side_by_side,
    torch_device,
    torch_temporary,
)
from benchmarks.training_step import passes, temporary_bytes
from jaxclip import optim

ROUNDS = 9

CLIP, OPTAX_CLIP = jaxclip.clip_by_global_norm(1.0), optax.clip_by_global_norm(1.0)


class Family(NamedTuple):
    """An optimizer: jaxclip's, Optax's, and torch's."""

    name: str
    ours: optax.GradientTransformation
    theirs: optax.GradientTransformation
    torchs: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


FAMILIES = (
    Family(
        "adamw",
        optim.adamw(1e-3),
        optax.adamw(1e-3, weight_decay=1e-2),
        lambda params: torch.optim.AdamW(params, fused=True),
    ),
    Family(
        "sgd, momentum",
        optim.sgd(1e-3, 0.9),
        optax.sgd(1e-3, 0.9),
        lambda params: torch.optim.SGD(params, 1e-3, 0.9, fused=True),
    ),
)

Chain = tuple[optax.GradientTransformation, optax.GradientTransformation]


def chains(family: Family) -> dict[str, Chain]:
    """Return pairs of a clip and an optimizer, first those that do not clip."""
    none = optax.identity()
    return {
        f"optax.{family.name}": (none, family.theirs),
        f"jaxclip.optim.{family.name}": (none, family.ours),
        f"optax clip, optax.{family.name}": (OPTAX_CLIP, family.theirs),
        f"jaxclip clip, optax.{family.name}": (CLIP, family.theirs),
        f"jaxclip clip, jaxclip.optim.{family.name}": (CLIP, family.ours),
    }


def compiled(chain: Chain, tree: trees.Tree) -> tuple[Any, float]:
    """Return a compiled step, and the processor time from Python to program."""
    clip, optimizer = chain

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, _ = clip.update(grads, clip.init(params), params)
        updates, state = optimizer.update(updates, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(optimizer.init, tree)
    start = time.process_time()
    program = jax.jit(step, donate_argnums=(0, 1)).lower(tree, state, tree).compile()
    return program, time.process_time() - start


class Run:
    """Steps of several programs in turn, on the same parameters."""

    def __init__(self, tree: trees.Tree) -> None:
        """Start at parameters of 0."""
        self.grads = trees.gradients(tree)
        self.params = jax.tree.map(jnp.zeros_like, self.grads)
        self.states: dict[int, Any] = {}

    def call(self, program: Any, optimizer: Any) -> Callable[[], Any]:
        """Return a call that takes one more step; each optimizer has one state."""
        key = id(optimizer)
        if key not in self.states:
            self.states[key] = optimizer.init(self.params)

        def step() -> Any:
            self.params, self.states[key] = program(
                self.params, self.states[key], self.grads
            )
            return self.params, self.states[key]

        return step

    def torch_calls(self, family: Family) -> dict[str, Callable[[], Any]]:
        """Return torch's step, and its clip and step."""
        params = []
        for grad in self.grads.values():
            of_torch = torch.from_numpy(np.array(grad)).to(torch_device())
            params.append(torch.nn.Parameter(torch.zeros_like(of_torch)))
            params[-1].grad = of_torch
        optimizer = family.torchs(params)

        def clipped() -> None:
            torch.nn.utils.clip_grad_norm_(params, 1.0)
            optimizer.step()

        return {
            f"torch {family.name}, fused": optimizer.step,
            f"torch clip, {family.name}, fused": clipped,
        }


def steps_on_gpt2(family: Family) -> Table:
    """Time and measure steps, with a clip and without."""
    tree = trees.gpt2()
    run = Run(tree)
    pairs = chains(family)
    made = side_by_side(compiled, [(chain, tree) for chain in pairs.values()])
    programs = {name: program for name, (program, _) in zip(pairs, made, strict=True)}
    calls = {name: run.call(programs[name], pairs[name][1]) for name in pairs}
    calls |= run.torch_calls(family)
    measured = [in_turns(calls, ROUNDS, f"{family.name}, wall")]
    heads = ["median ms", "× optax", "× torch"]
    if not on_gpu():
        title = f"{family.name}, processor"
        measured.append(in_turns(calls, ROUNDS, title, time.process_time))
        heads += ["processor ms", "× optax", "× torch"]
    table = Table(
        "step",
        *heads,
        *("reads and writes", "temporary MB"),
        title=f"A step on GPT-2, {trees.nbytes(tree) / 1e6:.0f} MB; {hardware()}",
    )
    for name, row in _rows(measured, family).items():
        program = programs.get(name)
        counted = (
            (f"{passes(program, tree):.1f}", f"{temporary_bytes(program) / 1e6:.1f}")
            if program
            else ("", torch_temporary(calls[name]))
        )
        table.add_row(name, *row, *counted)
    return table


def _rows(
    measured: Sequence[Mapping[str, Any]], family: Family
) -> dict[str, list[str]]:
    """Return times and ratios, to peers that clip for those that do."""
    rows = {}
    for name in measured[0]:
        clips = "clip, " in name
        theirs = f"optax clip, optax.{family.name}" if clips else f"optax.{family.name}"
        torchs = f"torch {'clip, ' * clips}{family.name}, fused"
        rows[name] = [
            cell
            for times in measured
            for cell in (
                rounded(times[name]),
                f"{ratio(times[name], times[theirs]):.2f}",
                f"{ratio(times[name], times[torchs]):.2f}",
            )
        ]
    return rows


def compile_times() -> Table:
    """Trace, lower and compile steps on a model's leaves and on 2000."""
    counts = {"GPT-2, 148 leaves": trees.gpt2(), "2000 leaves": trees.many_small()}
    table = Table(
        "processor seconds to trace and compile",
        *counts,
        title=f"From Python to program; {hardware()}",
    )
    for family in FAMILIES:
        for name, chain in chains(family).items():
            if "clip, optax" in name:
                continue
            seconds = [compiled(chain, tree)[1] for tree in counts.values()]
            table.add_row(name, *(f"{value:.1f}" for value in seconds))
    return table


def eager_steps(leaves: int = 148) -> Table:
    """Time calls of ``update`` outside ``jit``."""
    tree = trees.many_small(leaves)
    grads = trees.gradients(tree)
    calls = {}
    for family in FAMILIES:
        for package, optimizer in (("optax", family.theirs), ("jaxclip", family.ours)):
            state = optimizer.init(grads)

            def call(optimizer: Any = optimizer, state: Any = state) -> Any:
                return optimizer.update(grads, state, grads)

            calls[f"{package} {family.name}"] = call
    first = {name: milliseconds(call) for name, call in calls.items()}
    times = in_turns(calls, ROUNDS, f"{leaves} leaves", at_once=1)
    table = Table(
        "update, called outside jit",
        *("median ms", "× optax", "first call ms"),
        title=f"{leaves} leaves of (64, 64) float32, called eagerly; {hardware()}",
    )
    for name, values in times.items():
        peer = times[name.replace("jaxclip", "optax")]
        table.add_row(
            name,
            f"{np.median(values):.2f}",
            f"{ratio(values, peer):.2f}",
            f"{first[name]:.0f}",
        )
    return table


def main() -> list[Table]:
    """Print the tables."""
    tables = []
    for family in FAMILIES:
        tables.append(steps_on_gpt2(family))
        gc.collect()
    tables += [eager_steps()] if on_gpu() else [compile_times(), eager_steps()]
    for table in tables:
        Console(width=150).print(table)
    return tables


if __name__ == "__main__":
    main()

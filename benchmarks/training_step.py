"""What a clip adds to a training step: time, temporary memory and compile time.

AdamW on GPT-2's shapes, parameters and states donated. A row for each clip, next to
the same chain without any and with Optax's. "Reads and writes" are those that XLA
counts beyond that chain, in units of all the gradients; one of them is in the branch
for sums of squares that leave the range of float32, which seldom runs. The second table
has the memory of the same step in bfloat16. The last one compiles the chain, and the
clip alone, on 2000 leaves; on a GPU, for which several are compiled at a time, there is
none, and no time to compile.
"""

import gc
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from rich.console import Console
from rich.table import Table

import jaxclip
from benchmarks import trees
from benchmarks.timing import hardware, in_turns, on_gpu, ratio, side_by_side

NONE = "no clip"
OPTAX = "optax.clip_by_global_norm(1.0)"
LOGGED = "clip_by_global_norm(inf): a norm to log"
ROUNDS = 9


def only_logged() -> optax.GradientTransformation:
    """Keep the norm, and change nothing."""
    return jaxclip.clip_by_global_norm(float("inf"))


def groups(updates: Any) -> Any:
    """Label the embeddings, and everything else."""
    return jaxclip.by_path(
        lambda path: "embedding" if path in ("tokens", "positions") else "rest"
    )(updates)


CLIPS: dict[str, optax.GradientTransformation] = {
    NONE: optax.identity(),
    OPTAX: optax.clip_by_global_norm(1.0),
    "clip_by_global_norm(1.0)": jaxclip.clip_by_global_norm(1.0),
    "clip_by_global_norm(1.0, 1.0)": jaxclip.clip_by_global_norm(1.0, 1.0),
    "clip_by_global_norm(1.0, 3.0)": jaxclip.clip_by_global_norm(1.0, 3.0),
    "clip_by_global_norm(1.0, inf)": jaxclip.clip_by_global_norm(1.0, float("inf")),
    "clip_by_global_norm(1.0, per_leaf=True)": jaxclip.clip_by_global_norm(
        1.0, per_leaf=True
    ),
    "clip_by_global_norm(1.0, nonfinite='zero')": jaxclip.clip_by_global_norm(
        1.0, nonfinite="zero"
    ),
    LOGGED: only_logged(),
    "clip_by_norm(1.0)": jaxclip.clip_by_norm(1.0),
    "clip_by_value(1.0)": jaxclip.clip_by_value(1.0),
    "clip_by_block_rms(1.0)": jaxclip.clip_by_block_rms(1.0),
    "clip_by_group_norm(2 groups)": jaxclip.clip_by_group_norm(
        {"embedding": 1.0, "rest": 1.0}, groups
    ),
    "adaptive_grad_clip()": jaxclip.adaptive_grad_clip(),
    "autoclip()": jaxclip.autoclip(),
    "zclip()": jaxclip.zclip(),
    "adagc()": jaxclip.adagc(),
    "spam_clip()": jaxclip.spam_clip(),
    "clippy(): after AdamW": jaxclip.clippy(),
}


def make_step(name: str, clip: optax.GradientTransformation) -> Callable[..., Any]:
    """Return a step of AdamW behind a clip; the states of both stand apart."""
    adam = optax.adamw(1e-3)

    def step(params: Any, adam_state: Any, clip_state: Any, grads: Any) -> Any:
        updates = grads
        if "after" not in name:
            updates, clip_state = clip.update(updates, clip_state, params)
        updates, adam_state = adam.update(updates, adam_state, params)
        if "after" in name:
            updates, clip_state = clip.update(updates, clip_state, params)
        return optax.apply_updates(params, updates), adam_state, clip_state

    return step


def compiled(
    name: str, clip: optax.GradientTransformation, tree: trees.Tree
) -> tuple[Any, float]:
    """Return a compiled step on shapes, and the seconds from Python to program."""
    adam_state = jax.eval_shape(optax.adamw(1e-3).init, tree)
    clip_state = jax.eval_shape(clip.init, tree)
    start = time.perf_counter()
    step = jax.jit(make_step(name, clip), donate_argnums=(0, 1, 2))
    program = step.lower(tree, adam_state, clip_state, tree).compile()
    return program, time.perf_counter() - start


class Run:
    """Steps of several programs in turn, on the same parameters and moments."""

    def __init__(self, tree: trees.Tree) -> None:
        """Start at parameters of 0."""
        self.grads = trees.gradients(tree)
        self.params = jax.tree.map(jnp.zeros_like, self.grads)
        self.adam_state = optax.adamw(1e-3).init(self.params)

    def call(
        self, program: Any, clip: optax.GradientTransformation
    ) -> Callable[[], Any]:
        """Return a call that takes one more step."""
        clip_state = clip.init(self.params)

        def step() -> Any:
            nonlocal clip_state
            self.params, self.adam_state, clip_state = program(
                self.params, self.adam_state, clip_state, self.grads
            )
            return self.params, self.adam_state, clip_state

        return step


def steps_on_gpt2() -> Table:
    """Time and measure a step with each clip."""
    tree = trees.gpt2()
    given = [(name, clip, tree) for name, clip in CLIPS.items()]
    programs = dict(zip(CLIPS, side_by_side(compiled, given), strict=True))
    run = Run(tree)
    calls = {
        name: run.call(program, CLIPS[name]) for name, (program, _) in programs.items()
    }
    times = in_turns(calls, ROUNDS, "Stepping")
    table = Table(
        "clip before AdamW",
        "time × no clip",
        "temporary MB",
        "reads and writes",
        *([] if on_gpu() else ["seconds to compile"]),
        title=f"GPT-2, {trees.nbytes(tree) / 1e6:.0f} MB of gradients; {hardware()}",
    )
    for name, (program, seconds) in programs.items():
        table.add_row(
            name,
            f"{ratio(times[name], times[NONE]):.2f}",
            f"{temporary_bytes(program) / 1e6:.1f}",
            f"{passes(program, tree) - passes(programs[NONE][0], tree):+.1f}",
            *([] if on_gpu() else [f"{seconds:.1f}"]),
        )
    return table


def temporary_bytes(program: Any) -> int:
    """Return what a program allocates beyond its arguments and results."""
    size: int = program.memory_analysis().temp_size_in_bytes
    return size


def passes(program: Any, tree: trees.Tree) -> float:
    """Return how often a program moves as many bytes as the gradients have."""
    moved: float = program.cost_analysis()["bytes accessed"]
    return moved / trees.nbytes(tree)


def narrow_memory() -> Table:
    """Measure a step on bfloat16 gradients, parameters and moments."""
    tree = {
        name: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16)
        for name, leaf in trees.gpt2().items()
    }
    table = Table(
        "clip before AdamW, all in bfloat16",
        "temporary MB",
        title=f"GPT-2, {trees.nbytes(tree) / 1e6:.0f} MB of gradients; {hardware()}",
    )
    for name in (NONE, OPTAX, "clip_by_global_norm(1.0)", LOGGED):
        program, _ = compiled(name, CLIPS[name], tree)
        table.add_row(name, f"{temporary_bytes(program) / 1e6:.1f}")
    return table


def compile_many() -> Table:
    """Trace, lower and compile on 2000 leaves, in the chain and alone."""
    tree = trees.many_small()
    table = Table(
        "seconds to trace and compile",
        "alone",
        "before AdamW",
        title=f"2000 leaves; {hardware()}",
    )
    for name in (
        NONE,
        OPTAX,
        "clip_by_global_norm(1.0)",
        "clip_by_norm(1.0)",
    ):
        clip = CLIPS[name]
        state = jax.eval_shape(clip.init, tree)
        start = time.perf_counter()
        jax.jit(clip.update, donate_argnums=0).lower(tree, state).compile()
        alone = time.perf_counter() - start
        _, chained = compiled(name, clip, tree)
        table.add_row(name, f"{alone:.1f}", f"{chained:.1f}")
    return table


def main() -> list[Table]:
    """Print the tables."""
    tables = [steps_on_gpt2()]
    gc.collect()
    tables.append(narrow_memory())
    if not on_gpu():
        tables.append(compile_many())
    for table in tables:
        Console(width=100).print(table)
    return tables


if __name__ == "__main__":
    main()

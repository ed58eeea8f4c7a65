"""How much temporary memory a clip adds to a training step, as XLA compiles it.

AdamW on the shapes of GPT-2 (148 leaves, 124M parameters, float32), parameters and
state donated. Nothing is run: the compiled program says how much it needs.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import optax
from rich.console import Console
from rich.progress import track
from rich.table import Table

import jaxclip

WIDTH, LAYERS, VOCAB, CONTEXT = 768, 12, 50257, 1024

CLIPS = {
    "no clip": optax.identity(),
    "jaxclip.clip_by_global_norm(1.0)": jaxclip.clip_by_global_norm(1.0),
    "jaxclip.clip_by_global_norm(1.0, 3.0)": jaxclip.clip_by_global_norm(1.0, 3.0),
    "jaxclip.clip_by_norm(1.0)": jaxclip.clip_by_norm(1.0),
    "jaxclip.clip_by_value(1.0)": jaxclip.clip_by_value(1.0),
    "optax.clip_by_global_norm(1.0)": optax.clip_by_global_norm(1.0),
}


def gpt2() -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of GPT-2's parameters, by name."""
    block = {
        **{f"norm{i}.{part}": (WIDTH,) for i in (1, 2) for part in ("scale", "bias")},
        "qkv.kernel": (WIDTH, 3 * WIDTH),
        "qkv.bias": (3 * WIDTH,),
        "out.kernel": (WIDTH, WIDTH),
        "out.bias": (WIDTH,),
        "up.kernel": (WIDTH, 4 * WIDTH),
        "up.bias": (4 * WIDTH,),
        "down.kernel": (4 * WIDTH, WIDTH),
        "down.bias": (WIDTH,),
    }
    shapes = {
        "tokens": (VOCAB, WIDTH),
        "positions": (CONTEXT, WIDTH),
        **{
            f"{i}.{name}": shape for i in range(LAYERS) for name, shape in block.items()
        },
        "norm.scale": (WIDTH,),
        "norm.bias": (WIDTH,),
    }
    return {name: jax.ShapeDtypeStruct(s, jnp.float32) for name, s in shapes.items()}


def compile_step(clip: optax.GradientTransformation) -> tuple[float, float]:
    """Return the temporary memory of a step in MB, and the seconds to compile it."""
    params = gpt2()
    optimizer = optax.chain(clip, optax.adamw(1e-3))
    opt_state = jax.eval_shape(optimizer.init, params)

    def step(params: Any, opt_state: Any, grads: Any) -> Any:
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, opt_state, params)
    start = time.perf_counter()
    memory: Any = lowered.compile().memory_analysis()
    seconds = time.perf_counter() - start
    return memory.temp_size_in_bytes / 1e6, seconds


def main() -> None:
    """Compile a step with each clip and print a table."""
    table = Table("clip before AdamW", "temporary MB", "seconds to compile")
    for name, clip in track(CLIPS.items(), description="Compiling"):
        memory, seconds = compile_step(clip)
        table.add_row(name, f"{memory:.1f}", f"{seconds:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()

"""The trees of gradients that the benchmarks run on."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Tree = dict[str, Any]

WIDTH, LAYERS, VOCAB, CONTEXT = 768, 12, 50257, 1024


def gpt2() -> Tree:
    """Return the shapes of GPT-2's parameters: 148 leaves, 124M floats."""
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


def many_small(leaves: int = 2000) -> Tree:
    """Return the shapes of many leaves of (64, 64)."""
    leaf = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    return {f"{index:04}": leaf for index in range(leaves)}


def few_large() -> Tree:
    """Return the shapes of 20 leaves of (4096, 4096) in bfloat16."""
    leaf = jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16)
    return {f"{index:02}": leaf for index in range(20)}


TREES = {
    "GPT-2: 148 leaves, 124M float32": gpt2,
    "2000 leaves of (64, 64) float32": many_small,
    "20 leaves of (4096, 4096) bfloat16": few_large,
}


def gradients(tree: Tree) -> Tree:
    """Return gradients of these shapes, whose norm exceeds 1."""
    rng = np.random.default_rng(0)
    block = rng.standard_normal(1 << 20, np.float32)

    def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        repeats = -(-leaf.size // block.size)
        values = np.tile(block, repeats)[: leaf.size].reshape(leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    return {name: fill(leaf) for name, leaf in tree.items()}


def nbytes(tree: Tree) -> int:
    """Return how many bytes the leaves take."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in tree.values())

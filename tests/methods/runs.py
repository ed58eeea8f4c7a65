"""Gradients of a training run with spikes, and transformations run over them."""

import jax
import numpy as np

STEPS = 200
SPIKES = {40: 30.0, 41: 8.0, 90: 300.0, 130: 2.5, 160: 1e4}


def run_with_spikes(seed=0):
    """Return 200 gradients whose norm falls from 2 to 1, with noise and with spikes."""
    rng = np.random.default_rng(seed)
    grads = []
    for step in range(STEPS):
        scale = (2.0 - step / STEPS) * np.exp(0.2 * rng.standard_normal())
        scale *= SPIKES.get(step, 1.0)
        w, b = rng.standard_normal((3, 4)), rng.standard_normal(5)
        length = np.sqrt((w**2).sum() + (b**2).sum())
        grads.append({"b": b * scale / length, "w": w * scale / length})
    return grads


def norm(grads):
    return np.sqrt(
        sum(float((leaf.astype(float) ** 2).sum()) for leaf in leaves(grads))
    )


def leaves(grads):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(grads)]


def clip_all(transformation, run, dtype=np.float32):
    """Return what a transformation makes of each gradient, and its last state."""
    update = jax.jit(transformation.update)
    state = transformation.init(jax.tree.map(lambda x: x.astype(dtype), run[0]))
    clipped = []
    for grads in run:
        grads = jax.tree.map(lambda x: x.astype(dtype), grads)
        updates, state = update(grads, state)
        clipped.append(updates)
    return clipped, state


def factors(run, clipped):
    """Return what each gradient was multiplied by, as a whole."""
    return [
        norm(after) / norm(before) for before, after in zip(run, clipped, strict=True)
    ]

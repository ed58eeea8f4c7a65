"""What the tests of contracts run transformations on, and how."""

import contextlib

import jax
import jax.numpy as jnp

DTYPES = {
    "bfloat16": (jnp.bfloat16,) * 3,
    "float16": (jnp.float16,) * 3,
    "float64": (jnp.float64,) * 3,
    "mixed": (jnp.bfloat16, jnp.float32, jnp.float16),
}
FLOAT32 = (jnp.float32,) * 3


# One shape for most tests, so that each row is compiled once for all of them.
def gradients(length=5.0, dtypes=FLOAT32):
    """Return gradients whose norm is ``length``."""
    b, s, w = dtypes
    return {
        "w": jnp.asarray([[0.4, 0.0], [0.0, -0.8]], w) * jnp.asarray(length, w),
        "b": jnp.asarray([0.0, 0.2, -0.2], b) * jnp.asarray(length, b),
        "s": jnp.asarray(-(0.12**0.5), s) * jnp.asarray(length, s),
    }


PARAMS = gradients(1.0)
RUN = [gradients(5.0), gradients(0.01), gradients(20.0)]


def steps(transformation, *many_updates, params=PARAMS):
    """Return the updates of each step in turn, and the last state."""
    state = transformation.init(params)
    clipped = []
    for updates in many_updates:
        updates, state = transformation.update(updates, state, params)
        clipped.append(updates)
    return clipped, state


def stacked(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def shapes(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


@contextlib.contextmanager
def strict_promotion(test):
    """Hold our own operations to JAX's strict rules, where Optax's do not stand by."""
    if "optax" in test:
        yield
        return
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield

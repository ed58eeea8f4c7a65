"""What the methods share that learn from the gradients so far."""

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

Leaves = Sequence[jax.Array]
Settings = TypeVar("Settings")


def in_dtype(settings: Settings, dtype: Any) -> Settings:
    """Return a tree of numbers as arrays of this dtype.

    ``optax.inject_hyperparams`` makes numbers into arrays of the parameters' dtype,
    which may be narrower or wider than the one that is reckoned in.
    """
    cast: Settings = jax.tree.map(lambda value: jnp.asarray(value, dtype), settings)
    return cast

"""Random numbers that are the same in float64 as in float32."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp


@contextmanager
def drawn_in_float32() -> Iterator[None]:
    """Let ``jax.random.bernoulli``, of which dropouts are made, draw as without x64.

    It compares its probability with a number that is uniform in the dtype of that:
    with 64 bits a Python number is a float64, and the same key gives another mask.
    """
    drawn = jax.random.bernoulli

    @wraps(drawn)
    def bernoulli(key: Any, p: Any = 0.5, *args: Any, **options: Any) -> Any:
        return drawn(key, jnp.asarray(p, jnp.float32), *args, **options)

    jax.random.bernoulli = bernoulli
    try:
        yield
    finally:
        jax.random.bernoulli = drawn

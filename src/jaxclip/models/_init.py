"""Initialisers that draw from the distributions that torch draws from."""

from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import jax

Initializer = Callable[..., jax.Array]
"""A function ``(key, shape, dtype) -> array``, as Flax takes it."""


zeros: Initializer = jax.nn.initializers.zeros


class LinearInit(TypedDict):
    """The keyword arguments by which a Flax linear layer takes its initialisers."""

    kernel_init: Initializer
    bias_init: Initializer


def uniform(fan: int) -> Initializer:
    r"""Draw from ``U(-1/√fan, 1/√fan)``, whatever the shape of the array.

    torch draws the weight *and* the bias of a linear layer so, with ``fan`` its
    input size, and all four arrays of a recurrent layer, with ``fan`` its hidden
    size.
    """
    bound = fan**-0.5

    def init(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def normal(stddev: float = 1.0) -> Initializer:
    """Draw from the normal distribution of mean 0 and the given deviation."""
    return jax.nn.initializers.normal(stddev)


def linear(in_features: int) -> LinearInit:
    """Return what makes a Flax linear layer start as ``torch.nn.Linear`` does."""
    return {"kernel_init": uniform(in_features), "bias_init": uniform(in_features)}

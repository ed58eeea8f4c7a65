"""What the layers of transformers are put together from, in NNX and in Linen."""

from collections.abc import Callable
from functools import partial

import jax

Block = Callable[[jax.Array], jax.Array]

ACTIVATIONS: dict[str, Block] = {
    "relu": jax.nn.relu,
    # torch's default; Flax's is the approximation by tanh.
    "gelu": partial(jax.nn.gelu, approximate=False),
}


def residual(x: jax.Array, block: Block, norm: Block, *, norm_first: bool) -> jax.Array:
    """Add what a block makes of ``x``, normalised before the block or after the sum."""
    return x + block(norm(x)) if norm_first else norm(x + block(x))

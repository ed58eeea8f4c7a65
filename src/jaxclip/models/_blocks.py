"""What the layers of transformers are put together from, in NNX and in Linen."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

Block = Callable[[jax.Array], jax.Array]

ACTIVATIONS: dict[str, Block] = {
    "relu": jax.nn.relu,
    # torch's default; Flax's is the approximation by tanh.
    "gelu": partial(jax.nn.gelu, approximate=False),
}


def residual(x: jax.Array, block: Block, norm: Block, *, norm_first: bool) -> jax.Array:
    """Add what a block makes of ``x``, normalised before the block or after the sum."""
    return x + block(norm(x)) if norm_first else norm(x + block(x))


def causal_attention(qkv: jax.Array, num_heads: int) -> jax.Array:
    """Let every position gather values from itself and from those before it.

    Args:
        qkv: Queries, keys and values side by side, ``(B, T, 3*E)``.
        num_heads: The number of heads, each of which has its share of the ``E``
            features in succession.

    Returns:
        What the positions gathered, ``(B, T, E)``.
    """
    batch, length, width = qkv.shape
    heads = qkv.reshape(batch, length, 3, num_heads, -1)
    q, k, v = (heads[:, :, index] for index in range(3))  # (B, T, N, E/N)
    scores = jnp.einsum("btnd,bsnd->bnts", q * q.shape[-1] ** -0.5, k)
    past = jnp.tril(jnp.ones((length, length), bool))
    attention = jax.nn.softmax(jnp.where(past, scores, -jnp.inf))
    gathered = jnp.einsum("bnts,bsnd->btnd", attention, v)
    return gathered.reshape(batch, length, width // 3)

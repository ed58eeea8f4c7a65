"""The recurrence of the language model that is written out by hand."""

import jax
import jax.numpy as jnp

from jaxclip.models._checks import check_state, check_tokens


def run(
    tokens: jax.Array,
    state: jax.Array | None,
    *,
    W_xh: jax.Array,
    W_hh: jax.Array,
    b_h: jax.Array,
    W_hq: jax.Array,
    b_q: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Run the language model that is written out by hand.

    Args:
        tokens: Integers in ``[0, V)``, of shape ``(B, T)``, batch first.
        state: The hidden state to go on from, ``(B, H)``; zeros if None.
        W_xh: Input to hidden, ``(V, H)``.
        W_hh: Hidden to hidden, ``(H, H)``.
        b_h: Bias of the hidden units, ``(H,)``.
        W_hq: Hidden to output, ``(H, V)``.
        b_q: Bias of the outputs, ``(V,)``.

    Returns:
        The logits, ``(B, T, V)``, and the hidden state after the last token,
        ``(B, H)``.

    Raises:
        TypeError: If ``tokens`` are not integers.
        ValueError: If ``tokens`` or ``state`` has a shape or dtype that does not fit.
    """
    tokens = check_tokens(tokens)
    shape = (tokens.shape[0], W_hh.shape[0])
    if state is None:
        state = jnp.zeros(shape, W_hh.dtype)
    h = check_state(state, shape, W_hh.dtype)

    def step(h: jax.Array, from_input: jax.Array) -> tuple[jax.Array, jax.Array]:
        h = jnp.tanh(from_input + h @ W_hh)
        return h, h

    # A product of one-hot vectors with a matrix is a choice of its rows.
    from_inputs = jnp.take(W_xh, tokens.T, axis=0) + b_h  # (T, B, H)
    h, outputs = jax.lax.scan(step, h, from_inputs)
    return outputs.swapaxes(0, 1) @ W_hq + b_q, h

"""Recurrent language models, by hand and on torch's cells, in Flax NNX."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxclip.models import _init, _scratch
from jaxclip.models._cells import State
from jaxclip.models._checks import check_choice, check_sizes, check_tokens
from jaxclip.models._recurrent import GRU, LSTM, RNN

_CELLS = {"rnn": RNN, "gru": GRU, "lstm": LSTM}


class RNNLMScratch(nnx.Module):
    r"""A character model whose recurrence is written out step by step.

    .. math::
        h_t = \tanh(x_t W_{xh} + h_{t-1} W_{hh} + b_h), \qquad
        o_t = h_t W_{hq} + b_q

    where ``x_t`` is the one-hot vector of token ``t``. The counterpart of
    ``torchref.rnn.RNNLMScratch``; every parameter lies as torch's does.

    Batch first: tokens ``(B, T)``, logits ``(B, T, V)``, state ``(B, H)``.

    Args:
        vocab_size: ``V``, the number of different tokens.
        hidden_size: ``H``, the number of hidden units.
        rngs: Where the parameters are drawn from.
        param_dtype: The dtype of the parameters, and of the computation.

    Attributes:
        W_xh: Input to hidden, of shape ``(V, H)``, drawn from normal(0, 0.01).
        W_hh: Hidden to hidden, of shape ``(H, H)``, drawn from normal(0, 0.01).
        b_h: Bias of the hidden units, of shape ``(H,)``, zero.
        W_hq: Hidden to output, of shape ``(H, V)``, drawn from normal(0, 0.01).
        b_q: Bias of the outputs, of shape ``(V,)``, zero.

    Raises:
        ValueError: If a size is less than 1.

    Example:
        >>> model = RNNLMScratch(vocab_size=5, hidden_size=8, rngs=nnx.Rngs(0))
        >>> logits, state = model(jnp.array([[0, 1, 4], [2, 2, 3]]))
        >>> logits.shape, state.shape
        ((2, 3, 5), (2, 8))

    References:
        Zhang et al., *Dive into Deep Learning*, section 9.5, "Recurrent Neural
        Network Implementation from Scratch".
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        *,
        rngs: nnx.Rngs,
        param_dtype: Any = jnp.float32,
    ) -> None:
        """Draw the parameters; see the class for their shapes."""
        check_sizes(vocab_size=vocab_size, hidden_size=hidden_size)
        small = _init.normal(0.01)

        def param(init: _init.Initializer, *shape: int) -> nnx.Param[jax.Array]:
            return nnx.Param(init(rngs.params(), shape, param_dtype))

        self.W_xh = param(small, vocab_size, hidden_size)
        self.W_hh = param(small, hidden_size, hidden_size)
        self.b_h = param(_init.zeros, hidden_size)
        self.W_hq = param(small, hidden_size, vocab_size)
        self.b_q = param(_init.zeros, vocab_size)

    def __call__(
        self, tokens: jax.Array, state: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Predict, at every position, the token that comes next.

        Args:
            tokens: Integers in ``[0, V)``, of shape ``(B, T)``, batch first. A
                token of ``V`` or more is no error in JAX: its logits are NaN.
            state: The hidden state to go on from, ``(B, H)``; zeros if None.

        Returns:
            The logits, ``(B, T, V)``, and the hidden state after the last token,
            ``(B, H)``.

        Raises:
            TypeError: If ``tokens`` are not integers.
            ValueError: If ``tokens`` or ``state`` has another shape or dtype.
        """
        return _scratch.run(
            tokens,
            state,
            W_xh=self.W_xh[...],
            W_hh=self.W_hh[...],
            b_h=self.b_h[...],
            W_hq=self.W_hq[...],
            b_q=self.b_q[...],
        )


class RNNLM(nnx.Module):
    """A character model on ``RNN``, ``GRU`` or ``LSTM``.

    An embedding of ``H`` numbers per token, the recurrent layers, and a linear map
    from each hidden state to ``V`` logits. The counterpart of ``torchref.rnn.RNNLM``.

    Batch first: tokens ``(B, T)``, logits ``(B, T, V)``. The state is shaped as
    torch's, whose first axis is the layer even so: ``(num_layers, B, H)``, and for an
    LSTM a pair ``(h, c)`` of such arrays.

    Args:
        vocab_size: ``V``, the number of different tokens.
        hidden_size: ``H``, the number of hidden units of each layer, and the length
            of an embedding.
        cell: "rnn", "gru" or "lstm".
        num_layers: How many recurrent layers are stacked.
        rngs: Where the parameters are drawn from, as torch draws them.
        param_dtype: The dtype of the parameters, and of the computation.

    Attributes:
        embedding: The ``nnx.Embed(V, H)``.
        rnn: The ``RNN``, ``GRU`` or ``LSTM``.
        output: The ``nnx.Linear(H, V)``.

    Raises:
        ValueError: If ``cell`` is none of the three, or a size is less than 1.

    Example:
        >>> model = RNNLM(5, 8, cell="lstm", num_layers=2, rngs=nnx.Rngs(0))
        >>> logits, (h, c) = model(jnp.array([[0, 1, 4], [2, 2, 3], [1, 1, 1]]))
        >>> logits.shape, h.shape, c.shape
        ((3, 3, 5), (2, 3, 8), (2, 3, 8))
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        cell: str = "rnn",
        num_layers: int = 1,
        *,
        rngs: nnx.Rngs,
        param_dtype: Any = jnp.float32,
    ) -> None:
        """Draw the parameters as torch draws them."""
        check_choice(_CELLS, cell=cell)
        check_sizes(vocab_size=vocab_size, hidden_size=hidden_size)
        self.embedding = nnx.Embed(
            vocab_size,
            hidden_size,
            embedding_init=_init.normal(),
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.rnn = _CELLS[cell](
            hidden_size, hidden_size, num_layers, rngs=rngs, param_dtype=param_dtype
        )
        self.output = nnx.Linear(
            hidden_size,
            vocab_size,
            param_dtype=param_dtype,
            rngs=rngs,
            **_init.linear(hidden_size),
        )

    def __call__(
        self, tokens: jax.Array, state: State | None = None
    ) -> tuple[jax.Array, State]:
        """Predict, at every position, the token that comes next.

        Args:
            tokens: Integers in ``[0, V)``, of shape ``(B, T)``, batch first. A
                token of ``V`` or more is no error in JAX: its logits are NaN.
            state: The state to go on from, ``(num_layers, B, H)``, or a pair
                ``(h, c)`` of that shape for an LSTM; zeros if None.

        Returns:
            The logits, ``(B, T, V)``, and the state after the last token.

        Raises:
            TypeError: If ``tokens`` are not integers.
            ValueError: If ``tokens`` or ``state`` has another shape or dtype.
        """
        embedded = self.embedding(check_tokens(tokens))  # (B, T, H)
        hidden, state = self.rnn(embedded, state)  # (B, T, H)
        return self.output(hidden), state  # (B, T, V)

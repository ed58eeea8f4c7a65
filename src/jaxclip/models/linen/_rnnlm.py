"""Recurrent language models, by hand and on torch's cells, in Flax Linen."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxclip.models import _init, _scratch
from jaxclip.models._cells import State
from jaxclip.models._checks import check_choice, check_sizes, check_tokens
from jaxclip.models.linen._recurrent import GRU, LSTM, RNN

_CELLS = {"rnn": RNN, "gru": GRU, "lstm": LSTM}


class RNNLMScratch(nn.Module):
    """A character model whose recurrence is written out step by step.

    See ``jaxclip.models.RNNLMScratch`` for the formula, and for the names and shapes
    of the parameters, which are those of ``torchref.rnn.RNNLMScratch``.

    Attributes:
        vocab_size: ``V``, the number of different tokens.
        hidden_size: ``H``, the number of hidden units.
        param_dtype: The dtype of the parameters, and of the computation.

    Example:
        >>> model, tokens = RNNLMScratch(5, 8), jnp.array([[0, 1, 4], [2, 2, 3]])
        >>> variables = model.init(jax.random.key(0), tokens)
        >>> logits, state = model.apply(variables, tokens)
        >>> logits.shape, state.shape
        ((2, 3, 5), (2, 8))
    """

    vocab_size: int
    hidden_size: int
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        """Make the parameters; see the class for their shapes."""
        vocab, hidden = self.vocab_size, self.hidden_size
        check_sizes(vocab_size=vocab, hidden_size=hidden)
        small, dtype = _init.normal(0.01), self.param_dtype
        self.W_xh = self.param("W_xh", small, (vocab, hidden), dtype)
        self.W_hh = self.param("W_hh", small, (hidden, hidden), dtype)
        self.b_h = self.param("b_h", _init.zeros, (hidden,), dtype)
        self.W_hq = self.param("W_hq", small, (hidden, vocab), dtype)
        self.b_q = self.param("b_q", _init.zeros, (vocab,), dtype)

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
            W_xh=self.W_xh,
            W_hh=self.W_hh,
            b_h=self.b_h,
            W_hq=self.W_hq,
            b_q=self.b_q,
        )


class RNNLM(nn.Module):
    """A character model on ``RNN``, ``GRU`` or ``LSTM``.

    See ``jaxclip.models.RNNLM``; the parameters are those of ``torchref.rnn.RNNLM``,
    in an ``nn.Embed`` named "embedding", the recurrent layers named "rnn", and an
    ``nn.Dense`` named "output".

    Attributes:
        vocab_size: ``V``, the number of different tokens.
        hidden_size: ``H``, the number of hidden units of each layer, and the length
            of an embedding.
        cell: "rnn", "gru" or "lstm".
        num_layers: How many recurrent layers are stacked.
        param_dtype: The dtype of the parameters, and of the computation.

    Example:
        >>> model, tokens = RNNLM(5, 8, cell="gru"), jnp.array([[0, 1, 4], [2, 2, 3]])
        >>> variables = model.init(jax.random.key(0), tokens)
        >>> sorted(variables["params"])
        ['embedding', 'output', 'rnn']
        >>> logits, state = model.apply(variables, tokens)
        >>> logits.shape, state.shape
        ((2, 3, 5), (1, 2, 8))
    """

    vocab_size: int
    hidden_size: int
    cell: str = "rnn"
    num_layers: int = 1
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        """Make the submodules."""
        vocab, hidden, dtype = self.vocab_size, self.hidden_size, self.param_dtype
        check_choice(_CELLS, cell=self.cell)
        check_sizes(vocab_size=vocab, hidden_size=hidden)
        self.embedding = nn.Embed(
            vocab, hidden, embedding_init=_init.normal(), param_dtype=dtype
        )
        self.rnn = _CELLS[self.cell](hidden, hidden, self.num_layers, param_dtype=dtype)
        self.output = nn.Dense(vocab, param_dtype=dtype, **_init.linear(hidden))

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

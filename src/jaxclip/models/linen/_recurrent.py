"""Recurrent layers that hold exactly what torch's hold, in Flax Linen."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxclip.models import _cells, _init
from jaxclip.models._cells import Cell, State
from jaxclip.models._checks import check_choice, check_rate
from jaxclip.models._recurrence import Stack


class _Recurrent(nn.Module):
    """What RNN, GRU and LSTM share: everything but the cell."""

    input_size: int
    hidden_size: int
    num_layers: int = 1
    bias: bool = True
    batch_first: bool = True
    dropout: float = 0.0
    bidirectional: bool = False
    param_dtype: Any = jnp.float32

    def _make(self, cell: Cell, *, proj_size: int = 0) -> None:
        """Make the parameters; see the class for their shapes."""
        check_rate(dropout=self.dropout)
        self.stack = Stack(
            cell,
            self.input_size,
            self.hidden_size,
            self.num_layers,
            bias=self.bias,
            batch_first=self.batch_first,
            bidirectional=self.bidirectional,
            proj_size=proj_size,
        )
        init = _init.uniform(self.hidden_size)
        self.weights = {
            name: self.param(name, init, shape, self.param_dtype)
            for name, shape in self.stack.weight_shapes().items()
        }
        self.between = nn.Dropout(self.dropout)

    def __call__(
        self,
        x: jax.Array,
        state: State | None = None,
        *,
        deterministic: bool | None = None,
    ) -> tuple[jax.Array, State]:
        """Run over whole sequences.

        Args:
            x: The inputs, ``(B, T, input_size)``, batch first, or
                ``(T, B, input_size)`` if not ``batch_first``.
            state: The state to go on from; zeros if None.
            deterministic: Whether dropout is off; must be given if there is dropout.

        Returns:
            The hidden states of the last layer, ``(B, T, H)`` or ``(T, B, H)``, with
            those of the two directions side by side, and the state of every layer
            after the last step.

        Raises:
            ValueError: If ``x`` or ``state`` has a shape or dtype that does not fit.
        """
        # What drops nothing need not be told whether it is to.
        off = deterministic if self.dropout else True
        dropout = partial(self.between, deterministic=off)
        return self.stack.run(self.weights, x, state, dropout=dropout)


class RNN(_Recurrent):
    """Layers of the plain recurrent cell, as ``torch.nn.RNN``.

    See ``jaxclip.models.RNN`` for the formula, and for the names and shapes of the
    parameters, which are torch's.

    Attributes:
        input_size: The length of an input vector.
        hidden_size: The number of hidden units of each layer.
        num_layers: How many layers are stacked.
        bias: Whether the cells have biases.
        batch_first: Whether inputs and outputs are ``(B, T, ...)``, not
            ``(T, B, ...)``.
        dropout: The share of hidden states that is set to zero between two layers,
            in a call that is not ``deterministic``.
        bidirectional: Whether a second cell in each layer runs from the end.
        param_dtype: The dtype of the parameters, and of the computation.
        nonlinearity: "tanh" or "relu".

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> rnn, x = RNN(3, 8, num_layers=2), jnp.ones((5, 7, 3))
        >>> (outputs, state), variables = rnn.init_with_output(jax.random.key(0), x)
        >>> outputs.shape, state.shape
        ((5, 7, 8), (2, 5, 8))
    """

    nonlinearity: str = "tanh"

    def setup(self) -> None:
        """Make the parameters; see the class for their shapes."""
        check_choice(_cells.RNN, nonlinearity=self.nonlinearity)
        self._make(_cells.RNN[self.nonlinearity])


class GRU(_Recurrent):
    """Layers of gated recurrent units, as ``torch.nn.GRU``.

    See ``jaxclip.models.GRU`` for the formulas, and for the names and shapes of the
    parameters, which are torch's.

    Attributes:
        input_size: The length of an input vector.
        hidden_size: The number of hidden units of each layer.
        num_layers: How many layers are stacked.
        bias: Whether the cells have biases.
        batch_first: Whether inputs and outputs are ``(B, T, ...)``, not
            ``(T, B, ...)``.
        dropout: The share of hidden states that is set to zero between two layers,
            in a call that is not ``deterministic``.
        bidirectional: Whether a second cell in each layer runs from the end.
        param_dtype: The dtype of the parameters, and of the computation.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> gru, x = GRU(3, 8), jnp.ones((5, 7, 3))
        >>> (outputs, state), variables = gru.init_with_output(jax.random.key(0), x)
        >>> outputs.shape, state.shape, variables["params"]["weight_ih_l0"].shape
        ((5, 7, 8), (1, 5, 8), (24, 3))
    """

    def setup(self) -> None:
        """Make the parameters; see the class for their shapes."""
        self._make(_cells.GRU)


class LSTM(_Recurrent):
    """Layers of long short-term memory, as ``torch.nn.LSTM``.

    See ``jaxclip.models.LSTM`` for the formulas, and for the names and shapes of the
    parameters, which are torch's.

    Attributes:
        input_size: The length of an input vector.
        hidden_size: The number of hidden units of each layer.
        num_layers: How many layers are stacked.
        bias: Whether the cells have biases.
        batch_first: Whether inputs and outputs are ``(B, T, ...)``, not
            ``(T, B, ...)``.
        dropout: The share of hidden states that is set to zero between two layers,
            in a call that is not ``deterministic``.
        bidirectional: Whether a second cell in each layer runs from the end.
        param_dtype: The dtype of the parameters, and of the computation.
        proj_size: The length that each hidden state is projected to; 0 for none.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> lstm, x = LSTM(3, 8, num_layers=2), jnp.ones((5, 7, 3))
        >>> (outputs, (h, c)), _ = lstm.init_with_output(jax.random.key(0), x)
        >>> outputs.shape, h.shape, c.shape
        ((5, 7, 8), (2, 5, 8), (2, 5, 8))
    """

    proj_size: int = 0

    def setup(self) -> None:
        """Make the parameters; see the class for their shapes."""
        self._make(_cells.LSTM, proj_size=self.proj_size)

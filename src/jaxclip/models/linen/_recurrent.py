"""Recurrent layers that hold exactly what torch's hold, in Flax Linen."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxclip.models import _init, _recurrence
from jaxclip.models._recurrence import State


class _Recurrent(nn.Module):
    """What RNN, GRU and LSTM share: everything but the cell."""

    input_size: int
    hidden_size: int
    num_layers: int = 1
    param_dtype: Any = jnp.float32

    cell: ClassVar[_recurrence.Cell]

    def setup(self) -> None:
        """Make the parameters; see the class for their shapes."""
        shapes = _recurrence.weight_shapes(
            self.cell, self.input_size, self.hidden_size, self.num_layers
        )
        init = _init.uniform(self.hidden_size)
        self.weights = {
            name: self.param(name, init, shape, self.param_dtype)
            for name, shape in shapes.items()
        }

    def __call__(
        self, x: jax.Array, state: State | None = None
    ) -> tuple[jax.Array, State]:
        """Run over whole sequences.

        Args:
            x: The inputs, ``(B, T, input_size)``, batch first.
            state: The state to go on from; zeros if None.

        Returns:
            The hidden states of the last layer, ``(B, T, H)``, and the state of
            every layer after the last step.

        Raises:
            ValueError: If ``x`` or ``state`` has a shape or dtype that does not fit.
        """
        return _recurrence.run(self.cell, self.weights, x, state)


class RNN(_Recurrent):
    """Layers of the plain recurrent cell, as ``torch.nn.RNN`` (tanh, batch first).

    See ``jaxclip.models.RNN`` for the formula, and for the names and shapes of the
    parameters, which are torch's.

    Attributes:
        input_size: The length of an input vector.
        hidden_size: The number of hidden units of each layer.
        num_layers: How many layers are stacked.
        param_dtype: The dtype of the parameters, and of the computation.

    Example:
        >>> rnn, x = RNN(3, 8, num_layers=2), jnp.ones((5, 7, 3))
        >>> (outputs, state), variables = rnn.init_with_output(jax.random.key(0), x)
        >>> outputs.shape, state.shape
        ((5, 7, 8), (2, 5, 8))
    """

    cell = _recurrence.RNN


class GRU(_Recurrent):
    """Layers of gated recurrent units, as ``torch.nn.GRU`` (batch first).

    See ``jaxclip.models.GRU`` for the formulas, and for the names and shapes of the
    parameters, which are torch's.

    Attributes:
        input_size: The length of an input vector.
        hidden_size: The number of hidden units of each layer.
        num_layers: How many layers are stacked.
        param_dtype: The dtype of the parameters, and of the computation.

    Example:
        >>> gru, x = GRU(3, 8), jnp.ones((5, 7, 3))
        >>> (outputs, state), variables = gru.init_with_output(jax.random.key(0), x)
        >>> outputs.shape, state.shape, variables["params"]["weight_ih_l0"].shape
        ((5, 7, 8), (1, 5, 8), (24, 3))
    """

    cell = _recurrence.GRU


class LSTM(_Recurrent):
    """Layers of long short-term memory, as ``torch.nn.LSTM`` (batch first).

    See ``jaxclip.models.LSTM`` for the formulas, and for the names and shapes of the
    parameters, which are torch's.

    Attributes:
        input_size: The length of an input vector.
        hidden_size: The number of hidden units of each layer.
        num_layers: How many layers are stacked.
        param_dtype: The dtype of the parameters, and of the computation.

    Example:
        >>> lstm, x = LSTM(3, 8, num_layers=2), jnp.ones((5, 7, 3))
        >>> (outputs, (h, c)), _ = lstm.init_with_output(jax.random.key(0), x)
        >>> outputs.shape, h.shape, c.shape
        ((5, 7, 8), (2, 5, 8), (2, 5, 8))
    """

    cell = _recurrence.LSTM

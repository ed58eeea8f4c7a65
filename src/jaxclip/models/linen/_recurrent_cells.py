"""Single recurrent cells that hold exactly what torch's hold, in Flax Linen."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxclip.models import _cells, _init
from jaxclip.models._cells import Cell, State
from jaxclip.models._checks import check_choice, check_sizes


class _RecurrentCell(nn.Module):
    """What RNNCell, GRUCell and LSTMCell share: everything but the step."""

    input_size: int
    hidden_size: int
    bias: bool = True
    param_dtype: Any = jnp.float32

    def _make(self, cell: Cell) -> None:
        """Make the parameters; see the class for their shapes."""
        check_sizes(input_size=self.input_size, hidden_size=self.hidden_size)
        self.cell = cell
        shapes = _cells.weight_shapes(
            cell, self.input_size, self.hidden_size, bias=self.bias
        )
        init = _init.uniform(self.hidden_size)
        self.weights = {
            name: self.param(name, init, shape, self.param_dtype)
            for name, shape in shapes.items()
        }

    def __call__(self, x: jax.Array, state: State | None = None) -> State:
        """Run for one time step.

        Args:
            x: The inputs, ``(B, input_size)``.
            state: The state to go on from; zeros if None.

        Returns:
            The state after the step.

        Raises:
            ValueError: If ``x`` or ``state`` has a shape or dtype that does not fit.
        """
        return _cells.run_step(self.cell, self.weights, x, state)


class RNNCell(_RecurrentCell):
    """One step of the plain recurrent cell, as ``torch.nn.RNNCell``.

    See ``jaxclip.models.RNNCell`` for the formula, and for the names and shapes of the
    parameters, which are torch's.

    Attributes:
        input_size: The length of an input vector.
        hidden_size: The number of hidden units.
        bias: Whether there are biases.
        param_dtype: The dtype of the parameters, and of the computation.
        nonlinearity: "tanh" or "relu".

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> cell, x = RNNCell(3, 8), jnp.ones((5, 3))
        >>> h, variables = cell.init_with_output(jax.random.key(0), x)
        >>> cell.apply(variables, x, h).shape
        (5, 8)
    """

    nonlinearity: str = "tanh"

    def setup(self) -> None:
        """Make the parameters; see the class for their shapes."""
        check_choice(_cells.RNN, nonlinearity=self.nonlinearity)
        self._make(_cells.RNN[self.nonlinearity])


class GRUCell(_RecurrentCell):
    """One step of a gated recurrent unit, as ``torch.nn.GRUCell``.

    See ``jaxclip.models.GRU`` for the formulas, and ``jaxclip.models.GRUCell`` for the
    names and shapes of the parameters, which are torch's.

    Attributes:
        input_size: The length of an input vector.
        hidden_size: The number of hidden units.
        bias: Whether there are biases.
        param_dtype: The dtype of the parameters, and of the computation.

    Raises:
        ValueError: If a size is less than 1.

    Example:
        >>> cell, x = GRUCell(3, 8), jnp.ones((5, 3))
        >>> h, variables = cell.init_with_output(jax.random.key(0), x)
        >>> h.shape, variables["params"]["weight_ih"].shape
        ((5, 8), (24, 3))
    """

    def setup(self) -> None:
        """Make the parameters; see the class for their shapes."""
        self._make(_cells.GRU)


class LSTMCell(_RecurrentCell):
    """One step of long short-term memory, as ``torch.nn.LSTMCell``.

    See ``jaxclip.models.LSTM`` for the formulas, and ``jaxclip.models.LSTMCell`` for
    the names and shapes of the parameters, which are torch's.

    Attributes:
        input_size: The length of an input vector.
        hidden_size: The number of hidden units.
        bias: Whether there are biases.
        param_dtype: The dtype of the parameters, and of the computation.

    Raises:
        ValueError: If a size is less than 1.

    Example:
        >>> cell, x = LSTMCell(3, 8), jnp.ones((5, 3))
        >>> (h, c), variables = cell.init_with_output(jax.random.key(0), x)
        >>> h.shape, c.shape
        ((5, 8), (5, 8))
    """

    def setup(self) -> None:
        """Make the parameters; see the class for their shapes."""
        self._make(_cells.LSTM)

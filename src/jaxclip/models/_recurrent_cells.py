"""Single recurrent cells that hold exactly what torch's hold, in Flax NNX."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxclip.models import _cells, _init
from jaxclip.models._cells import Cell, State
from jaxclip.models._checks import check_choice, check_sizes


class _RecurrentCell(nnx.Module):
    """What RNNCell, GRUCell and LSTMCell share: everything but the step."""

    def __init__(
        self,
        cell: Cell,
        input_size: int,
        hidden_size: int,
        *,
        bias: bool,
        rngs: nnx.Rngs,
        param_dtype: Any,
    ) -> None:
        """Draw the parameters."""
        check_sizes(input_size=input_size, hidden_size=hidden_size)
        shapes = _cells.weight_shapes(cell, input_size, hidden_size, bias=bias)
        init = _init.uniform(hidden_size)
        for name, shape in shapes.items():
            setattr(self, name, nnx.Param(init(rngs.params(), shape, param_dtype)))
        self.cell = cell
        self.names = tuple(shapes)

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
        weights = {name: getattr(self, name)[...] for name in self.names}
        return _cells.run_step(self.cell, weights, x, state)


class RNNCell(_RecurrentCell):
    r"""One step of the plain recurrent cell, as ``torch.nn.RNNCell``.

    .. math:: h_t = \tanh(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh})

    or with relu for tanh. The state is one array, ``(B, H)``.

    Differs from ``nnx.SimpleCell``: it has both of torch's biases, takes the input
    first, and returns the state alone.

    Args:
        input_size: The length of an input vector.
        hidden_size: ``H``, the number of hidden units.
        nonlinearity: "tanh" or "relu".
        bias: Whether there are biases.
        rngs: Where the parameters are drawn from: all from ``U(-1/√H, 1/√H)``.
        param_dtype: The dtype of the parameters, and of the computation.

    Attributes:
        weight_ih: ``(H, input_size)``.
        weight_hh: ``(H, H)``.
        bias_ih: ``(H,)``.
        bias_hh: ``(H,)``.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> cell = RNNCell(3, 8, rngs=nnx.Rngs(0))
        >>> h = cell(jnp.ones((5, 3)))
        >>> cell(jnp.ones((5, 3)), h).shape
        (5, 8)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        nonlinearity: str = "tanh",
        bias: bool = True,
        rngs: nnx.Rngs,
        param_dtype: Any = jnp.float32,
    ) -> None:
        """Draw the parameters; see the class for their shapes."""
        check_choice(_cells.RNN, nonlinearity=nonlinearity)
        super().__init__(
            _cells.RNN[nonlinearity],
            input_size,
            hidden_size,
            bias=bias,
            rngs=rngs,
            param_dtype=param_dtype,
        )


class GRUCell(_RecurrentCell):
    """One step of a gated recurrent unit, as ``torch.nn.GRUCell``.

    See ``GRU`` for the formulas and the order of the gates. The state is one array,
    ``(B, H)``.

    Differs from ``nnx.GRUCell``: it has the bias that the reset gate scales, takes the
    input first, and returns the state alone.

    Args:
        input_size: The length of an input vector.
        hidden_size: ``H``, the number of hidden units.
        bias: Whether there are biases.
        rngs: Where the parameters are drawn from: all from ``U(-1/√H, 1/√H)``.
        param_dtype: The dtype of the parameters, and of the computation.

    Attributes:
        weight_ih: ``(3*H, input_size)``.
        weight_hh: ``(3*H, H)``.
        bias_ih: ``(3*H,)``.
        bias_hh: ``(3*H,)``.

    Raises:
        ValueError: If a size is less than 1.

    Example:
        >>> cell = GRUCell(3, 8, rngs=nnx.Rngs(0))
        >>> cell(jnp.ones((5, 3))).shape
        (5, 8)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        bias: bool = True,
        rngs: nnx.Rngs,
        param_dtype: Any = jnp.float32,
    ) -> None:
        """Draw the parameters; see the class for their shapes."""
        super().__init__(
            _cells.GRU,
            input_size,
            hidden_size,
            bias=bias,
            rngs=rngs,
            param_dtype=param_dtype,
        )


class LSTMCell(_RecurrentCell):
    """One step of long short-term memory, as ``torch.nn.LSTMCell``.

    See ``LSTM`` for the formulas and the order of the gates. The state is a pair
    ``(h, c)`` of arrays ``(B, H)``.

    Differs from ``nnx.LSTMCell``: it has both of torch's biases, takes the input
    first, and returns the state alone, hidden state before cell state.

    Args:
        input_size: The length of an input vector.
        hidden_size: ``H``, the number of hidden units.
        bias: Whether there are biases.
        rngs: Where the parameters are drawn from: all from ``U(-1/√H, 1/√H)``.
        param_dtype: The dtype of the parameters, and of the computation.

    Attributes:
        weight_ih: ``(4*H, input_size)``.
        weight_hh: ``(4*H, H)``.
        bias_ih: ``(4*H,)``.
        bias_hh: ``(4*H,)``.

    Raises:
        ValueError: If a size is less than 1.

    Example:
        >>> cell = LSTMCell(3, 8, rngs=nnx.Rngs(0))
        >>> h, c = cell(jnp.ones((5, 3)))
        >>> h.shape, c.shape
        ((5, 8), (5, 8))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        bias: bool = True,
        rngs: nnx.Rngs,
        param_dtype: Any = jnp.float32,
    ) -> None:
        """Draw the parameters; see the class for their shapes."""
        super().__init__(
            _cells.LSTM,
            input_size,
            hidden_size,
            bias=bias,
            rngs=rngs,
            param_dtype=param_dtype,
        )

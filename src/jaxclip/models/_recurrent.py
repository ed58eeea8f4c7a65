"""Recurrent layers that hold exactly what torch's hold, in Flax NNX."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxclip.models import _init, _recurrence
from jaxclip.models._recurrence import State


class _Recurrent(nnx.Module):
    """What RNN, GRU and LSTM share: everything but the cell."""

    cell: ClassVar[_recurrence.Cell]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        rngs: nnx.Rngs,
        param_dtype: Any = jnp.float32,
    ) -> None:
        """Draw the parameters; see the class for their shapes."""
        shapes = _recurrence.weight_shapes(
            self.cell, input_size, hidden_size, num_layers
        )
        init = _init.uniform(hidden_size)
        for name, shape in shapes.items():
            setattr(self, name, nnx.Param(init(rngs.params(), shape, param_dtype)))
        self.names = tuple(shapes)

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
        weights = {name: getattr(self, name)[...] for name in self.names}
        return _recurrence.run(self.cell, weights, x, state)


class RNN(_Recurrent):
    r"""Layers of the plain recurrent cell, as ``torch.nn.RNN`` (tanh, batch first).

    .. math:: h_t = \tanh(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh})

    The state is one array, ``(num_layers, B, H)``.

    Differs from ``nnx.SimpleCell``: both of torch's biases are kept, so that each has
    its own gradient and weights come back as they were.

    Args:
        input_size: The length of an input vector.
        hidden_size: ``H``, the number of hidden units of each layer.
        num_layers: How many layers are stacked.
        rngs: Where the parameters are drawn from: all from ``U(-1/√H, 1/√H)``.
        param_dtype: The dtype of the parameters, and of the computation.

    Attributes:
        weight_ih_l0: ``(H, input_size)``, and ``(H, H)`` in the layers above, whose
            names end in ``_l1``, ``_l2`` and so on.
        weight_hh_l0: ``(H, H)``.
        bias_ih_l0: ``(H,)``.
        bias_hh_l0: ``(H,)``.

    Raises:
        ValueError: If a size is less than 1.

    Example:
        >>> rnn = RNN(3, 8, num_layers=2, rngs=nnx.Rngs(0))
        >>> outputs, state = rnn(jnp.ones((5, 7, 3)))
        >>> outputs.shape, state.shape
        ((5, 7, 8), (2, 5, 8))
    """

    cell = _recurrence.RNN


class GRU(_Recurrent):
    r"""Layers of gated recurrent units, as ``torch.nn.GRU`` (batch first).

    .. math::
        r_t &= \sigma(W_{ir} x_t + b_{ir} + W_{hr} h_{t-1} + b_{hr}) \\
        z_t &= \sigma(W_{iz} x_t + b_{iz} + W_{hz} h_{t-1} + b_{hz}) \\
        n_t &= \tanh(W_{in} x_t + b_{in} + r_t (W_{hn} h_{t-1} + b_{hn})) \\
        h_t &= (1 - z_t) n_t + z_t h_{t-1}

    The gates lie in the rows of each array in the order r, z, n. The state is one
    array, ``(num_layers, B, H)``.

    Differs from ``nnx.GRUCell``, which has no ``b_hn`` and so cannot hold what torch
    trained: the reset gate scales that bias, and no other can stand in for it.

    Args:
        input_size: The length of an input vector.
        hidden_size: ``H``, the number of hidden units of each layer.
        num_layers: How many layers are stacked.
        rngs: Where the parameters are drawn from: all from ``U(-1/√H, 1/√H)``.
        param_dtype: The dtype of the parameters, and of the computation.

    Attributes:
        weight_ih_l0: ``(3*H, input_size)``, and ``(3*H, H)`` in the layers above,
            whose names end in ``_l1``, ``_l2`` and so on.
        weight_hh_l0: ``(3*H, H)``.
        bias_ih_l0: ``(3*H,)``.
        bias_hh_l0: ``(3*H,)``.

    Raises:
        ValueError: If a size is less than 1.

    Example:
        >>> gru = GRU(3, 8, rngs=nnx.Rngs(0))
        >>> outputs, state = gru(jnp.ones((5, 7, 3)))
        >>> outputs.shape, state.shape
        ((5, 7, 8), (1, 5, 8))
        >>> gru.weight_ih_l0.shape
        (24, 3)
    """

    cell = _recurrence.GRU


class LSTM(_Recurrent):
    r"""Layers of long short-term memory, as ``torch.nn.LSTM`` (batch first).

    .. math::
        i_t, f_t, o_t &= \sigma(W_{i\cdot} x_t + b_{i\cdot}
            + W_{h\cdot} h_{t-1} + b_{h\cdot}) \\
        g_t &= \tanh(W_{ig} x_t + b_{ig} + W_{hg} h_{t-1} + b_{hg}) \\
        c_t &= f_t c_{t-1} + i_t g_t \\
        h_t &= o_t \tanh(c_t)

    The gates lie in the rows of each array in the order i, f, g, o. The state is a
    pair ``(h, c)`` of arrays ``(num_layers, B, H)``.

    Differs from ``nnx.LSTMCell``: both of torch's biases are kept, so that each has
    its own gradient and weights come back as they were.

    Args:
        input_size: The length of an input vector.
        hidden_size: ``H``, the number of hidden units of each layer.
        num_layers: How many layers are stacked.
        rngs: Where the parameters are drawn from: all from ``U(-1/√H, 1/√H)``.
        param_dtype: The dtype of the parameters, and of the computation.

    Attributes:
        weight_ih_l0: ``(4*H, input_size)``, and ``(4*H, H)`` in the layers above,
            whose names end in ``_l1``, ``_l2`` and so on.
        weight_hh_l0: ``(4*H, H)``.
        bias_ih_l0: ``(4*H,)``.
        bias_hh_l0: ``(4*H,)``.

    Raises:
        ValueError: If a size is less than 1.

    Example:
        >>> lstm = LSTM(3, 8, num_layers=2, rngs=nnx.Rngs(0))
        >>> outputs, (h, c) = lstm(jnp.ones((5, 7, 3)))
        >>> outputs.shape, h.shape, c.shape
        ((5, 7, 8), (2, 5, 8), (2, 5, 8))
    """

    cell = _recurrence.LSTM

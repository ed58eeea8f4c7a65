"""Recurrent layers that hold exactly what torch's hold, in Flax NNX."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxclip.models import _cells, _init
from jaxclip.models._cells import State
from jaxclip.models._checks import check_choice
from jaxclip.models._dropout import make_dropout
from jaxclip.models._recurrence import Stack


class _Recurrent(nnx.Module):
    """What RNN, GRU and LSTM share: everything but the cell."""

    def __init__(
        self, stack: Stack, dropout: float, rngs: nnx.Rngs, param_dtype: Any
    ) -> None:
        """Draw the parameters."""
        init = _init.uniform(stack.hidden_size)
        for name, shape in stack.weight_shapes().items():
            setattr(self, name, nnx.Param(init(rngs.params(), shape, param_dtype)))
        self.stack = stack
        self.dropout = make_dropout(dropout, rngs)

    def __call__(
        self, x: jax.Array, state: State | None = None
    ) -> tuple[jax.Array, State]:
        """Run over whole sequences.

        Args:
            x: The inputs, ``(B, T, input_size)``, batch first, or
                ``(T, B, input_size)`` if not ``batch_first``.
            state: The state to go on from; zeros if None.

        Returns:
            The hidden states of the last layer, ``(B, T, H)`` or ``(T, B, H)``, with
            those of the two directions side by side, and the state of every layer
            after the last step.

        Raises:
            ValueError: If ``x`` or ``state`` has a shape or dtype that does not fit.
        """
        names = self.stack.weight_shapes()
        weights = {name: getattr(self, name)[...] for name in names}
        return self.stack.run(weights, x, state, dropout=self.dropout)


class RNN(_Recurrent):
    r"""Layers of the plain recurrent cell, as ``torch.nn.RNN``.

    .. math:: h_t = \tanh(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh})

    or with relu for tanh. The state is one array, ``(num_layers, B, H)``; with two
    directions ``(2 * num_layers, B, H)``, layer by layer, forwards first.

    Differs from ``nnx.SimpleCell``: both of torch's biases are kept, so that each has
    its own gradient and weights come back as they were.

    Differs from ``torch.nn.RNN``: ``batch_first`` is the default.

    Args:
        input_size: The length of an input vector.
        hidden_size: ``H``, the number of hidden units of each layer.
        num_layers: How many layers are stacked.
        nonlinearity: "tanh" or "relu".
        bias: Whether the cells have biases.
        batch_first: Whether inputs and outputs are ``(B, T, ...)``, not
            ``(T, B, ...)``.
        dropout: The share of hidden states that is set to zero between two layers,
            while the module is in training mode.
        bidirectional: Whether a second cell in each layer runs from the end.
        rngs: Where the parameters are drawn from: all from ``U(-1/√H, 1/√H)``.
        param_dtype: The dtype of the parameters, and of the computation.

    Attributes:
        weight_ih_l0: ``(H, input_size)``, and ``(H, H)`` in the layers above, whose
            names end in ``_l1``, ``_l2`` and so on.
        weight_hh_l0: ``(H, H)``.
        bias_ih_l0: ``(H,)``.
        bias_hh_l0: ``(H,)``.
        weight_ih_l0_reverse: The like for the second direction, if there is one. The
            layers above take the hidden states of both, ``(..., 2*H)``.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> rnn = RNN(3, 8, num_layers=2, rngs=nnx.Rngs(0))
        >>> outputs, state = rnn(jnp.ones((5, 7, 3)))
        >>> outputs.shape, state.shape
        ((5, 7, 8), (2, 5, 8))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = True,
        dropout: float = 0.0,
        bidirectional: bool = False,
        rngs: nnx.Rngs,
        param_dtype: Any = jnp.float32,
    ) -> None:
        """Draw the parameters; see the class for their shapes."""
        check_choice(_cells.RNN, nonlinearity=nonlinearity)
        stack = Stack(
            _cells.RNN[nonlinearity],
            input_size,
            hidden_size,
            num_layers,
            bias=bias,
            batch_first=batch_first,
            bidirectional=bidirectional,
        )
        super().__init__(stack, dropout, rngs, param_dtype)


class GRU(_Recurrent):
    r"""Layers of gated recurrent units, as ``torch.nn.GRU``.

    .. math::
        r_t &= \sigma(W_{ir} x_t + b_{ir} + W_{hr} h_{t-1} + b_{hr}) \\
        z_t &= \sigma(W_{iz} x_t + b_{iz} + W_{hz} h_{t-1} + b_{hz}) \\
        n_t &= \tanh(W_{in} x_t + b_{in} + r_t (W_{hn} h_{t-1} + b_{hn})) \\
        h_t &= (1 - z_t) n_t + z_t h_{t-1}

    The gates lie in the rows of each array in the order r, z, n. The state is one
    array, ``(num_layers, B, H)``; with two directions ``(2 * num_layers, B, H)``, layer
    by layer, forwards first.

    Differs from ``nnx.GRUCell``, which has no ``b_hn`` and so cannot hold what torch
    trained: the reset gate scales that bias, and no other can stand in for it.

    Differs from ``torch.nn.GRU``: ``batch_first`` is the default.

    Args:
        input_size: The length of an input vector.
        hidden_size: ``H``, the number of hidden units of each layer.
        num_layers: How many layers are stacked.
        bias: Whether the cells have biases.
        batch_first: Whether inputs and outputs are ``(B, T, ...)``, not
            ``(T, B, ...)``.
        dropout: The share of hidden states that is set to zero between two layers,
            while the module is in training mode.
        bidirectional: Whether a second cell in each layer runs from the end.
        rngs: Where the parameters are drawn from: all from ``U(-1/√H, 1/√H)``.
        param_dtype: The dtype of the parameters, and of the computation.

    Attributes:
        weight_ih_l0: ``(3*H, input_size)``, and ``(3*H, H)`` in the layers above,
            whose names end in ``_l1``, ``_l2`` and so on.
        weight_hh_l0: ``(3*H, H)``.
        bias_ih_l0: ``(3*H,)``.
        bias_hh_l0: ``(3*H,)``.
        weight_ih_l0_reverse: The like for the second direction, if there is one. The
            layers above take the hidden states of both, ``(..., 2*H)``.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> gru = GRU(3, 8, rngs=nnx.Rngs(0))
        >>> outputs, state = gru(jnp.ones((5, 7, 3)))
        >>> outputs.shape, state.shape
        ((5, 7, 8), (1, 5, 8))
        >>> gru.weight_ih_l0.shape
        (24, 3)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        batch_first: bool = True,
        dropout: float = 0.0,
        bidirectional: bool = False,
        rngs: nnx.Rngs,
        param_dtype: Any = jnp.float32,
    ) -> None:
        """Draw the parameters; see the class for their shapes."""
        stack = Stack(
            _cells.GRU,
            input_size,
            hidden_size,
            num_layers,
            bias=bias,
            batch_first=batch_first,
            bidirectional=bidirectional,
        )
        super().__init__(stack, dropout, rngs, param_dtype)


class LSTM(_Recurrent):
    r"""Layers of long short-term memory, as ``torch.nn.LSTM``.

    .. math::
        i_t, f_t, o_t &= \sigma(W_{i\cdot} x_t + b_{i\cdot}
            + W_{h\cdot} h_{t-1} + b_{h\cdot}) \\
        g_t &= \tanh(W_{ig} x_t + b_{ig} + W_{hg} h_{t-1} + b_{hg}) \\
        c_t &= f_t c_{t-1} + i_t g_t \\
        h_t &= o_t \tanh(c_t)

    The gates lie in the rows of each array in the order i, f, g, o. The state is a
    pair ``(h, c)`` of arrays ``(num_layers, B, H)``; with two directions
    ``(2 * num_layers, B, H)``, layer by layer, forwards first. With ``proj_size=P``
    every ``h_t`` is ``W_{hr} o_t \tanh(c_t)`` instead, and has ``P`` elements.

    Differs from ``nnx.LSTMCell``: both of torch's biases are kept, so that each has
    its own gradient and weights come back as they were.

    Differs from ``torch.nn.LSTM``: ``batch_first`` is the default.

    Args:
        input_size: The length of an input vector.
        hidden_size: ``H``, the number of hidden units of each layer.
        num_layers: How many layers are stacked.
        bias: Whether the cells have biases.
        batch_first: Whether inputs and outputs are ``(B, T, ...)``, not
            ``(T, B, ...)``.
        dropout: The share of hidden states that is set to zero between two layers,
            while the module is in training mode.
        bidirectional: Whether a second cell in each layer runs from the end.
        proj_size: The length ``P`` that each hidden state is projected to, by one more
            matrix in each cell; 0 for no projection.
        rngs: Where the parameters are drawn from: all from ``U(-1/√H, 1/√H)``.
        param_dtype: The dtype of the parameters, and of the computation.

    Attributes:
        weight_ih_l0: ``(4*H, input_size)``, and ``(4*H, H)`` in the layers above,
            whose names end in ``_l1``, ``_l2`` and so on.
        weight_hh_l0: ``(4*H, H)``.
        bias_ih_l0: ``(4*H,)``.
        bias_hh_l0: ``(4*H,)``.
        weight_hr_l0: ``(P, H)``, if there is a projection; then ``weight_hh_l0``, and
            ``weight_ih`` in the layers above, have ``P`` columns.
        weight_ih_l0_reverse: The like for the second direction, if there is one. The
            layers above take the hidden states of both, ``(..., 2*H)``.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> lstm = LSTM(3, 8, num_layers=2, rngs=nnx.Rngs(0))
        >>> outputs, (h, c) = lstm(jnp.ones((5, 7, 3)))
        >>> outputs.shape, h.shape, c.shape
        ((5, 7, 8), (2, 5, 8), (2, 5, 8))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        batch_first: bool = True,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        rngs: nnx.Rngs,
        param_dtype: Any = jnp.float32,
    ) -> None:
        """Draw the parameters; see the class for their shapes."""
        stack = Stack(
            _cells.LSTM,
            input_size,
            hidden_size,
            num_layers,
            bias=bias,
            batch_first=batch_first,
            bidirectional=bidirectional,
            proj_size=proj_size,
        )
        super().__init__(stack, dropout, rngs, param_dtype)

"""The models of ``jaxclip.models`` in Flax Linen, class for class.

Every module makes its parameters and submodules in ``setup()``, so that what it
holds can be seen without running it: ``jaxclip.convert`` needs no example input.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxclip.models import _init, _recurrence
from jaxclip.models._checks import (
    check_cell,
    check_layer_names,
    check_sizes,
    check_tokens,
)
from jaxclip.models._recurrence import State


class MyLinear(nn.Module):
    r"""Two affine maps in a row, the first of them written out by hand.

    .. math:: y = (x W + b) A + c

    The counterpart of ``torchref.my_linear.MyLinear``. ``W`` and ``b`` are raw
    parameters and lie as torch's do; ``A`` is the kernel of an ``nn.Dense``, which is
    the *transpose* of the weight of torch's ``nn.Linear``.

    Attributes:
        in_features: The length of an input vector.
        out_features: The length of an output vector.
        param_dtype: The dtype of the parameters.

    Example:
        >>> layer = MyLinear(4, 3)
        >>> params = layer.init(jax.random.key(0), jnp.ones(4))["params"]
        >>> params["weight"].shape, params["bias"].shape, params["fc"]["kernel"].shape
        ((4, 3), (3,), (3, 3))
    """

    in_features: int
    out_features: int
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        """Make ``W``, ``b`` and the dense layer; see the class for their shapes."""
        normal, dtype = _init.normal(), self.param_dtype
        shape = (self.in_features, self.out_features)
        self.weight = self.param("weight", normal, shape, dtype)
        self.bias = self.param("bias", normal, (self.out_features,), dtype)
        self.fc = nn.Dense(
            self.out_features, param_dtype=dtype, **_init.linear(self.out_features)
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``x``, of shape ``(..., in_features)``, to ``(..., out_features)``."""
        return self.fc(x @ self.weight + self.bias)


class Sequential(nn.Module):
    """Layers applied one after another, each under the name that it is given.

    The counterpart of a ``torch.nn.Sequential`` whose modules were added by name: a
    parameter's path starts with that name, where ``flax.linen.Sequential`` would put
    ``layers_`` and a number.

    Attributes:
        layers: The layers by name, in the order in which they are applied. A name is
            a non-empty string without a dot.

    Raises:
        ValueError: If a name is empty or holds a dot.

    Example:
        >>> net = Sequential({"in": nn.Dense(8), "act": nn.relu, "out": nn.Dense(1)})
        >>> params = net.init(jax.random.key(0), jnp.ones(2))["params"]
        >>> sorted(params)
        ['in', 'out']
    """

    layers: Mapping[str, Callable[[jax.Array], jax.Array]]

    # Flax would name the layers after the field that they are passed in.
    preserve_adopted_names: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Give each layer its name."""
        check_layer_names(self.layers)
        self.layers = {
            name: layer.clone(name=name) if isinstance(layer, nn.Module) else layer
            for name, layer in self.layers.items()
        }
        super().__post_init__()

    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply each layer to the output of the one before."""
        for layer in self.layers.values():
            x = layer(x)
        return x


def my_net(*, param_dtype: Any = jnp.float32) -> Sequential:
    """Build ``MyLinear(4, 3)``, named "1", then ``nn.Dense(1)``, named "3".

    The counterpart of ``torchref.my_linear.my_net``.

    Args:
        param_dtype: The dtype of the parameters.

    Returns:
        The net, which maps ``(..., 4)`` to ``(..., 1)``.

    Example:
        >>> net = my_net()
        >>> variables = net.init(jax.random.key(0), jnp.ones(4))
        >>> net.apply(variables, jnp.ones(4)).shape
        (1,)
        >>> sorted(variables["params"]), sorted(variables["params"]["1"])
        (['1', '3'], ['bias', 'fc', 'weight'])
    """
    last = nn.Dense(1, param_dtype=param_dtype, **_init.linear(3))
    return Sequential({"1": MyLinear(4, 3, param_dtype=param_dtype), "3": last})


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
        return _recurrence.run_scratch(
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
        check_cell(self.cell, _CELLS)
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

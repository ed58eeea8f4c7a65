r"""The recurrences that the NNX and the Linen models run, as pure functions.

Every cell takes, for one time step, what the input contributes to its gates,
``W_ih x + b_ih``, what the hidden state contributes, ``W_hh h + b_hh``, and what it
remembers. The first does not depend on the step before, so it is computed for the
whole sequence in one matrix product, outside the scan.

Letters: ``B`` sequences of ``T`` steps, ``I`` inputs and ``H`` hidden units, ``G``
gates, ``L`` layers, ``V`` tokens in the vocabulary.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxclip.models._checks import check_inputs, check_sizes, check_state, check_tokens

State = jax.Array | tuple[jax.Array, jax.Array]
"""The state as torch shapes it: ``(L, B, H)``, or a pair ``(h, c)`` of these."""

Carry = tuple[jax.Array, ...]
"""What one layer remembers: ``(h,)`` or ``(h, c)``, each ``(B, H)``."""


class Cell(NamedTuple):
    """A recurrent cell: how wide it is, what it remembers, and its one step."""

    gates: int
    carries: int
    step: Callable[[jax.Array, jax.Array, Carry], Carry]


def _rnn_step(from_input: jax.Array, from_hidden: jax.Array, carry: Carry) -> Carry:
    return (jnp.tanh(from_input + from_hidden),)


def _gru_step(from_input: jax.Array, from_hidden: jax.Array, carry: Carry) -> Carry:
    (h,) = carry
    input_r, input_z, input_n = jnp.split(from_input, 3, axis=-1)
    hidden_r, hidden_z, hidden_n = jnp.split(from_hidden, 3, axis=-1)
    r = jax.nn.sigmoid(input_r + hidden_r)
    z = jax.nn.sigmoid(input_z + hidden_z)
    # hidden_n holds its bias: the reset gate scales that too.
    n = jnp.tanh(input_n + r * hidden_n)
    return ((h - n) * z + n,)


def _lstm_step(from_input: jax.Array, from_hidden: jax.Array, carry: Carry) -> Carry:
    _, c = carry
    i, f, g, o = jnp.split(from_input + from_hidden, 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return (jax.nn.sigmoid(o) * jnp.tanh(c), c)


RNN = Cell(gates=1, carries=1, step=_rnn_step)
GRU = Cell(gates=3, carries=1, step=_gru_step)
LSTM = Cell(gates=4, carries=2, step=_lstm_step)


def weight_shapes(
    cell: Cell, input_size: int, hidden_size: int, num_layers: int
) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight of a stack of layers, by torch's name for it.

    Raises:
        ValueError: If a size is less than 1.
    """
    check_sizes(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
    rows = cell.gates * hidden_size
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(num_layers):
        columns = hidden_size if layer else input_size
        shapes |= {
            f"weight_ih_l{layer}": (rows, columns),
            f"weight_hh_l{layer}": (rows, hidden_size),
            f"bias_ih_l{layer}": (rows,),
            f"bias_hh_l{layer}": (rows,),
        }
    return shapes


def run(
    cell: Cell, weights: Mapping[str, jax.Array], x: jax.Array, state: State | None
) -> tuple[jax.Array, State]:
    """Run a stack of recurrent layers over whole sequences.

    Args:
        cell: The kind of every layer.
        weights: The arrays that ``weight_shapes`` lists.
        x: The inputs, ``(B, T, I)``, batch first.
        state: The state to go on from; zeros if None.

    Returns:
        The hidden states of the last layer, ``(B, T, H)``, and the state of every
        layer after the last step.

    Raises:
        ValueError: If ``x`` or ``state`` has a shape or dtype that does not fit.
    """
    input_size, dtype = weights["weight_ih_l0"].shape[1], weights["weight_ih_l0"].dtype
    num_layers, hidden_size = len(weights) // 4, weights["weight_hh_l0"].shape[1]
    x = check_inputs(x, input_size, dtype)
    carries = _carries(cell, state, (num_layers, x.shape[0], hidden_size), dtype)

    outputs = x.swapaxes(0, 1)  # (T, B, I): the scan walks the leading axis
    lasts = []
    for layer in range(num_layers):
        outputs, last = _run_layer(
            cell,
            outputs,
            tuple(carry[layer] for carry in carries),
            weight_ih=weights[f"weight_ih_l{layer}"],
            weight_hh=weights[f"weight_hh_l{layer}"],
            bias_ih=weights[f"bias_ih_l{layer}"],
            bias_hh=weights[f"bias_hh_l{layer}"],
        )
        lasts.append(last)
    h, *c = (jnp.stack(carry) for carry in zip(*lasts, strict=True))  # (L, B, H)
    return outputs.swapaxes(0, 1), (h, c[0]) if c else h


def _run_layer(
    cell: Cell,
    x: jax.Array,
    carry: Carry,
    *,
    weight_ih: jax.Array,
    weight_hh: jax.Array,
    bias_ih: jax.Array,
    bias_hh: jax.Array,
) -> tuple[jax.Array, Carry]:
    def step(carry: Carry, from_input: jax.Array) -> tuple[Carry, jax.Array]:
        from_hidden = carry[0] @ weight_hh.T + bias_hh  # (B, G*H)
        carry = cell.step(from_input, from_hidden, carry)
        return carry, carry[0]

    from_inputs = x @ weight_ih.T + bias_ih  # (T, B, G*H)
    carry, outputs = jax.lax.scan(step, carry, from_inputs)
    return outputs, carry


def run_scratch(
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


def _carries(
    cell: Cell, state: State | None, shape: tuple[int, int, int], dtype: jnp.dtype
) -> Carry:
    if state is None:
        return (jnp.zeros(shape, dtype),) * cell.carries
    given = state if isinstance(state, tuple | list) else (state,)
    if len(given) != cell.carries:
        expected = "one array h" if cell.carries == 1 else "a pair (h, c)"
        raise ValueError(
            f"state is {len(given)} array(s); this cell remembers {expected}. "
            "Pass the state that the previous call returned, or None for zeros."
        )
    names = ("state",) if cell.carries == 1 else ("state[0]", "state[1]")
    return tuple(
        check_state(array, shape, dtype, name=name)
        for name, array in zip(names, given, strict=True)
    )

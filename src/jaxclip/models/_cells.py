r"""The steps of the recurrent cells, as pure functions.

Every cell takes, for one time step, what the input contributes to its gates,
``W_ih x + b_ih``, what the hidden state contributes, ``W_hh h + b_hh``, and what it
remembers. Where the biases lie inside these two is the cell's own business: the GRU
scales one of them by a gate.

Letters: ``B`` sequences, ``H`` hidden units, ``G`` gates.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxclip.models._checks import check_state, check_vectors

State = jax.Array | tuple[jax.Array, jax.Array]
"""The state as torch shapes it: one array ``h``, or a pair ``(h, c)``."""

Carry = tuple[jax.Array, ...]
"""What a cell remembers: ``(h,)`` or ``(h, c)``, each ``(B, H)``."""


class Cell(NamedTuple):
    """A recurrent cell: how wide it is, what it remembers, and its one step."""

    gates: int
    carries: int
    step: Callable[[jax.Array, jax.Array, Carry], Carry]


def _tanh_step(from_input: jax.Array, from_hidden: jax.Array, carry: Carry) -> Carry:
    return (jnp.tanh(from_input + from_hidden),)


def _relu_step(from_input: jax.Array, from_hidden: jax.Array, carry: Carry) -> Carry:
    return (jax.nn.relu(from_input + from_hidden),)


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


RNN = {
    "tanh": Cell(gates=1, carries=1, step=_tanh_step),
    "relu": Cell(gates=1, carries=1, step=_relu_step),
}
"""The plain cell, by its nonlinearity."""

GRU = Cell(gates=3, carries=1, step=_gru_step)
LSTM = Cell(gates=4, carries=2, step=_lstm_step)


def weight_shapes(
    cell: Cell, input_size: int, hidden_size: int, *, bias: bool, proj_size: int = 0
) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight of one cell, by torch's name for it.

    Args:
        cell: The kind of cell.
        input_size: The length of an input vector.
        hidden_size: ``H``.
        bias: Whether there are biases.
        proj_size: The length that the hidden state is projected to; 0 for none.
    """
    rows = cell.gates * hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "weight_ih": (rows, input_size),
        "weight_hh": (rows, proj_size or hidden_size),
    }
    if bias:
        shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
    if proj_size:
        shapes |= {"weight_hr": (proj_size, hidden_size)}
    return shapes


def affine(x: jax.Array, weight: jax.Array, bias: jax.Array | None) -> jax.Array:
    """Return ``x Wᵀ + b``, or without ``b`` where there is none."""
    product = x @ weight.T
    return product if bias is None else product + bias


def carry_from(
    cell: Cell,
    state: State | None,
    shapes: Sequence[tuple[int, ...]],
    dtype: jnp.dtype,
    *,
    axes: str = "(B, H)",
) -> Carry:
    """Return a state as what the cell remembers, zeros where there is none.

    Args:
        cell: The kind of cell.
        state: The state as users pass it.
        shapes: The shape that each array of it must have.
        dtype: The dtype that they must have.
        axes: What to call the shape.

    Raises:
        ValueError: If the state is a pair where the cell remembers one array, or the
            reverse, or has a shape or dtype that does not fit.
    """
    if state is None:
        return tuple(jnp.zeros(shape, dtype) for shape in shapes)
    given = state if isinstance(state, tuple | list) else (state,)
    if len(given) != cell.carries:
        expected = "one array h" if cell.carries == 1 else "a pair (h, c)"
        raise ValueError(
            f"state is {len(given)} array(s); this cell remembers {expected}. "
            "Pass the state that the previous call returned, or None for zeros."
        )
    names = ("state",) if cell.carries == 1 else ("state[0]", "state[1]")
    return tuple(
        check_state(array, shape, dtype, name=name, axes=axes)
        for name, array, shape in zip(names, given, shapes, strict=True)
    )


def join_state(carry: Carry) -> State:
    """Return what a cell remembers as a state."""
    h, *c = carry
    return (h, c[0]) if c else h


def run_step(
    cell: Cell, weights: Mapping[str, jax.Array], x: jax.Array, state: State | None
) -> State:
    """Run a cell for one time step.

    Args:
        cell: The kind of cell.
        weights: The arrays that ``weight_shapes`` lists.
        x: The inputs, ``(B, I)``.
        state: The state to go on from, ``(B, H)`` or a pair of such; zeros if None.

    Returns:
        The state after the step.

    Raises:
        ValueError: If ``x`` or ``state`` has a shape or dtype that does not fit.
    """
    weight_ih, weight_hh = weights["weight_ih"], weights["weight_hh"]
    x = check_vectors(x, weight_ih.shape[1], weight_ih.dtype)
    shapes = [(x.shape[0], weight_hh.shape[1])] * cell.carries
    carry = carry_from(cell, state, shapes, weight_hh.dtype)
    from_input = affine(x, weight_ih, weights.get("bias_ih"))  # (B, G*H)
    from_hidden = affine(carry[0], weight_hh, weights.get("bias_hh"))  # (B, G*H)
    return join_state(cell.step(from_input, from_hidden, carry))

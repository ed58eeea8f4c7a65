r"""The recurrences that the NNX and the Linen models run, as pure functions.

What the inputs contribute to a layer's gates does not depend on the step before, so
it is computed for the whole sequence in one matrix product, outside the scan.

Letters: ``B`` sequences of ``T`` steps, ``I`` inputs and ``H`` hidden units, ``G``
gates, ``L`` layers, ``D`` directions, ``V`` tokens in the vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxclip.models import _cells
from jaxclip.models._cells import Carry, Cell, State
from jaxclip.models._checks import check_sequences, check_sizes


@dataclass(frozen=True)
class Stack:
    """A stack of recurrent layers: the kind of cell, and how many there are of it.

    Attributes:
        cell: The kind of every layer.
        input_size: ``I``.
        hidden_size: ``H``.
        num_layers: ``L``.
        bias: Whether the cells have biases.
        batch_first: Whether sequences are ``(B, T, ...)``, not ``(T, B, ...)``.
        bidirectional: Whether a second cell in each layer runs from the end.
        proj_size: The length that hidden states are projected to; 0 for none.

    Raises:
        ValueError: If a size is less than 1, or ``proj_size`` is not below
            ``hidden_size``.
    """

    cell: Cell
    input_size: int
    hidden_size: int
    num_layers: int = 1
    bias: bool = True
    batch_first: bool = True
    bidirectional: bool = False
    proj_size: int = 0

    def __post_init__(self) -> None:
        """Check the sizes."""
        check_sizes(
            input_size=self.input_size,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
        )
        if not 0 <= self.proj_size < self.hidden_size:
            raise ValueError(
                f"proj_size is {self.proj_size}; it must be below hidden_size, which "
                f"is {self.hidden_size}, or 0 for no projection."
            )

    @property
    def output_size(self) -> int:
        """The length of a hidden state: what is left of ``H`` after projection."""
        return self.proj_size or self.hidden_size

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each weight, by torch's name for it."""
        shapes: dict[str, tuple[int, ...]] = {}
        below = self.input_size
        for layer in range(self.num_layers):
            cell = _cells.weight_shapes(
                self.cell,
                below,
                self.hidden_size,
                bias=self.bias,
                proj_size=self.proj_size,
            )
            for direction in self._directions:
                ending = f"_l{layer}{direction}"
                shapes |= {f"{name}{ending}": shape for name, shape in cell.items()}
            below = self.output_size * len(self._directions)
        return shapes

    def run(
        self,
        weights: Mapping[str, jax.Array],
        x: jax.Array,
        state: State | None = None,
        *,
        dropout: Callable[[jax.Array], jax.Array],
    ) -> tuple[jax.Array, State]:
        """Run over whole sequences.

        Args:
            weights: The arrays that ``weight_shapes`` lists.
            x: The inputs, ``(B, T, I)``, or ``(T, B, I)`` if not ``batch_first``.
            state: The state to go on from; zeros if None.
            dropout: What is applied to the hidden states between two layers.

        Returns:
            The hidden states of the last layer, ``(B, T, D*H)`` or ``(T, B, D*H)``,
            and the state of every layer and direction after its last step,
            ``(L*D, B, H)``, or a pair ``(h, c)`` of such arrays.

        Raises:
            ValueError: If ``x`` or ``state`` has a shape or dtype that does not fit.
        """
        dtype = weights["weight_ih_l0"].dtype
        x = check_sequences(x, self.input_size, dtype, batch_first=self.batch_first)
        if self.batch_first:
            x = x.swapaxes(0, 1)  # (T, B, I): the scan walks the leading axis
        carry = self._carry(state, x.shape[1], dtype)

        lasts: list[Carry] = []
        for layer in range(self.num_layers):
            if layer:
                x = dropout(x)
            runs = [
                _run_cell(
                    self.cell,
                    x,
                    tuple(array[len(lasts) + index] for array in carry),
                    weights=_with_ending(weights, f"_l{layer}{direction}"),
                    reverse=direction == "_reverse",
                )
                for index, direction in enumerate(self._directions)
            ]
            x = jnp.concatenate([outputs for outputs, _ in runs], axis=-1)  # (T, B, DH)
            lasts += [last for _, last in runs]
        outputs = x.swapaxes(0, 1) if self.batch_first else x
        stacked = tuple(map(jnp.stack, zip(*lasts, strict=True)))  # (L*D, B, H)
        return outputs, _cells.join_state(stacked)

    @property
    def _directions(self) -> tuple[str, ...]:
        """What the names of the weights of each direction end in."""
        return ("", "_reverse") if self.bidirectional else ("",)

    def _carry(self, state: State | None, batch: int, dtype: jnp.dtype) -> Carry:
        """Return what all the cells remember, each array ``(L*D, B, H)``."""
        count = self.num_layers * len(self._directions)
        # Only h is projected.
        sizes = (self.output_size, self.hidden_size)[: self.cell.carries]
        return _cells.carry_from(
            self.cell,
            state,
            [(count, batch, size) for size in sizes],
            dtype,
            axes=f"({'2 * ' if self.bidirectional else ''}num_layers, B, H)",
        )


def _with_ending(weights: Mapping[str, jax.Array], ending: str) -> dict[str, jax.Array]:
    """Return the weights whose names end so, by what is left of the names."""
    return {
        name.removesuffix(ending): weight
        for name, weight in weights.items()
        if name.endswith(ending)
    }


def _run_cell(
    cell: Cell,
    x: jax.Array,
    carry: Carry,
    *,
    weights: Mapping[str, jax.Array],
    reverse: bool,
) -> tuple[jax.Array, Carry]:
    def step(carry: Carry, from_input: jax.Array) -> tuple[Carry, jax.Array]:
        from_hidden = _cells.affine(
            carry[0], weights["weight_hh"], weights.get("bias_hh")
        )  # (B, G*H)
        h, *c = cell.step(from_input, from_hidden, carry)
        if "weight_hr" in weights:
            h = h @ weights["weight_hr"].T
        return (h, *c), h

    # (T, B, G*H)
    from_inputs = _cells.affine(x, weights["weight_ih"], weights.get("bias_ih"))
    carry, outputs = jax.lax.scan(step, carry, from_inputs, reverse=reverse)
    return outputs, carry

"""Which axes of a variable are which of torch's, for optimizers of matrices."""

import itertools

import numpy as np

from jaxclip.convert._plan import Entry


def axes_of(entry: Entry) -> list[tuple[int, ...]] | None:
    """Return the axes of a variable that each axis of torch's tensor has become.

    Args:
        entry: The entry of the variable.

    Returns:
        For each of torch's axes, the variable's, outermost first; None where several
        tensors or variables are one on the other side, or an axis mixes two.
    """
    if len(entry.names) != 1 or len(entry.leaves) != 1:
        return None
    (spec,), (leaf,) = entry.expected.values(), entry.leaves
    axes = [_varying(entry, spec.shape, axis) for axis in range(len(spec.shape))]
    found = [axis for own in axes for axis in own]
    if len(found) > len({*found}):
        return None
    # An axis of length 1 varies along none, and may be any that is left.
    spare = iter(n for n in range(len(leaf.value.shape)) if n not in found)
    return [own or tuple(itertools.islice(spare, 1)) for own in axes]


def _varying(entry: Entry, shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """Return along which axes of the variable the index along one of torch's varies."""
    along = [length if axis == n else 1 for n, length in enumerate(shape)]
    index = np.broadcast_to(np.arange(shape[axis]).reshape(along), shape)
    (made,) = entry.to_flax(index)
    return tuple(
        n for n in range(made.ndim) if not np.array_equal(made, _first(made, n))
    )


def _first(array: np.ndarray, axis: int) -> np.ndarray:
    return np.broadcast_to(np.take(array, [0], axis), array.shape)

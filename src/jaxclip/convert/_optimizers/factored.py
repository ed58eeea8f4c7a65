"""Adafactor's averages over the rows and the columns of a matrix.

torch's rows and columns are those of its own layout. In Flax's they may be the other
way round, as in the transposed kernel of a ``Linear``, and of a convolution they are
other axes. Which of the arrays here is which of torch's, and in which order, is found
by laying out the numbers of their elements as the weight is.
"""

import math
from collections.abc import Mapping

import numpy as np

from jaxclip.convert._errors import Shape
from jaxclip.convert._plan import Entry
from jaxclip.convert._rules.links import Arrays

FACTORS = ("row_var", "col_var")


def factors_to_flax(
    entry: Entry, torch: Mapping[str, Arrays], shapes: Mapping[str, Shape]
) -> dict[str, np.ndarray] | None:
    """Return the factors of a variable; None if they are not those of torch's axes.

    Args:
        entry: The entry of the variable.
        torch: torch's factors of each tensor of the entry.
        shapes: The shapes of the variable's own factors.
    """
    made = {}
    for name, (key, numbers) in _correspondence(entry, shapes).items():
        flat = np.concatenate([array.reshape(-1) for array in torch[key]])
        made[name] = flat[numbers]
    return made if len(made) == len(shapes) else None


def factors_to_torch(
    entry: Entry, flax: Mapping[str, np.ndarray]
) -> dict[str, Arrays] | None:
    """Return torch's factors of each tensor, from those of a variable, or None."""
    found = _correspondence(entry, {name: array.shape for name, array in flax.items()})
    if len(found) < len(flax):
        return None
    made = {}
    for name, (key, numbers) in found.items():
        shapes = _torch_shapes(entry, key)
        ends = np.cumsum([math.prod(shape) for shape in shapes])
        flat = np.empty(int(ends[-1]), flax[name].dtype)
        flat[numbers] = flax[name]
        parts = np.split(flat, ends[:-1])
        made[key] = tuple(p.reshape(s) for p, s in zip(parts, shapes, strict=True))
    return made


def not_factored(entry: Entry) -> str:
    """Say that an entry's factors are none of torch's."""
    return (
        f"{entry} is not factored along the axes of torch's "
        f"{', '.join(map(repr, entry.names))}. See factored_axes of "
        "jaxclip.optim.adafactor."
    )


def _correspondence(
    entry: Entry, shapes: Mapping[str, Shape]
) -> dict[str, tuple[str, np.ndarray]]:
    """Say which of torch's factors each is, and the numbers of its elements there."""
    found: dict[str, tuple[str, np.ndarray]] = {}
    if len(entry.leaves) != 1:
        return found
    for key in FACTORS:
        numbers, start = [], 0
        for spec, shape in zip(
            entry.expected.values(), _torch_shapes(entry, key), strict=True
        ):
            size = math.prod(shape)
            own = np.arange(start, start + size).reshape(shape)
            numbers.append(np.broadcast_to(own, spec.shape))
            start += size
        (whole,) = entry.to_flax(*numbers)
        for name, shape in shapes.items():
            # The first along each axis that the average is over.
            part = whole[tuple(slice(length) for length in shape)]
            fits = part.size == start and np.array_equal(
                np.broadcast_to(part, whole.shape), whole
            )
            if fits and name not in found:
                found[name] = (key, part)
                break
    return found


def _torch_shapes(entry: Entry, key: str) -> list[Shape]:
    """Return the shapes of torch's factors, which are those of its last two axes."""
    shapes = [spec.shape for spec in entry.expected.values()]
    if key == "row_var":
        return [(*shape[:-1], 1) for shape in shapes]
    return [(*shape[:-2], 1, shape[-1]) for shape in shapes]

"""How large arrays are: norms that do not overflow, greatest magnitudes, and both."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from jaxclip.parity._arrays import Array

_SAFE = 2.0**-900, 2.0**900
"""Between these no square that matters to a sum of squares was lost."""


def l2(values: Array) -> float:
    """Return the L2 norm of an array that has an element."""
    flat = values.ravel(order="K")  # as it lies, without a copy
    squares = float(np.vdot(flat, flat).real)
    if _SAFE[0] < squares < _SAFE[1]:
        return math.sqrt(squares)
    most = peak(values)  # divided by it, no square overflows
    return most * math.sqrt(np.sum(np.square(values / most))) if most else 0.0


def peak(values: Array) -> float:
    """Return the greatest magnitude in an array that has an element."""
    if np.iscomplexobj(values):
        return float(np.abs(values).max())
    return max(float(values.max()), -float(values.min()))  # NaN is both


@dataclass(frozen=True)
class Size:
    """How large the elements of an array are, together and at most.

    Attributes:
        norm: The L2 norm.
        peak: The greatest magnitude.
    """

    norm: float = 0.0
    peak: float = 0.0


def sizes(parts: Iterable[Sequence[Array]], count: int) -> list[Size]:
    """Measure so many arrays, of which part comes after part; 0 if no part comes."""
    measured = [[(l2(x), peak(x)) for x in part] for part in parts]
    if not measured:
        return [Size()] * count
    if len(measured) == 1:
        return [Size(*found) for found in measured[0]]
    return [
        Size(math.hypot(*norms), float(np.max(peaks)))
        for norms, peaks in (
            zip(*found, strict=True) for found in zip(*measured, strict=True)
        )
    ]

"""A small picture of how a tensor differs: by how much, and where in it."""

import math

import numpy as np

from jaxclip.parity._arrays import Array, differences
from jaxclip.parity._verify._judge._rules import Rule
from jaxclip.parity._verify._judge._samples import Sample
from jaxclip.parity._verify._report._difference import Difference

MOST_CELLS = 64
"""How many rows and columns of cells a picture has at most."""

_MOST_BINS = 48


@np.errstate(all="ignore")  # it is for the picture to show NaN and overflow
def pictured(sample: Sample, rule: Rule) -> Difference | None:
    """Draw how a sample differs; None if its elements cannot be held side by side.

    Args:
        sample: The tensor on all sides.
        rule: What says by how much each element may differ.
    """
    if sample.torch.shape != sample.port.shape or not sample.torch.size:
        return None
    _, allowed = rule(sample)
    apart, _ = differences(sample.torch, sample.port)
    relative = bool(np.any(allowed))
    if relative:
        apart = np.where(apart == 0, 0.0, apart / allowed)
    split = _split(apart.shape)
    axes = (*range(apart.ndim),)
    height = math.prod(apart.shape[:split])
    cells, block = _reduced(apart.reshape(height, -1))
    exponents, counts = _histogram(apart[(apart > 0) & np.isfinite(apart)])
    return Difference(
        unit="allowed" if relative else "absolute",
        shape=apart.shape,
        rows=axes[:split],
        columns=axes[split:],
        block=block,
        cells=cells,
        equal=int(np.count_nonzero(apart == 0)),
        infinite=int(np.count_nonzero(np.isinf(apart))),
        exponents=exponents,
        counts=counts,
    )


def _split(shape: tuple[int, ...]) -> int:
    """Return how many leading axes to fold to rows, for a picture near a square."""
    if len(shape) < 2:
        return 0
    return min(
        range(1, len(shape)),
        key=lambda k: abs(math.log(math.prod(shape[:k]) / math.prod(shape[k:]))),
    )


def _reduced(
    folded: Array,
) -> tuple[tuple[tuple[float, ...], ...], tuple[int, int]]:
    """Reduce blocks of an array to their greatest elements, and say their size."""
    sizes = []
    for axis in (0, 1):
        size = -(-folded.shape[axis] // MOST_CELLS)
        starts = np.arange(0, folded.shape[axis], size)
        folded = np.maximum.reduceat(folded, starts, axis=axis)
        sizes.append(size)
    height, width = sizes
    # Four digits are more than a picture can show.
    rows = (tuple(float(f"{x:.4g}") for x in row) for row in folded)
    return tuple(rows), (height, width)


def _histogram(apart: Array) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Count positive numbers in bins of a power of ten, or of a part of one."""
    if not apart.size:
        return (), ()
    logs = np.log10(apart)
    for parts in (4, 2, 1):
        bins = np.floor(logs * parts).astype(np.int64)
        last = int(bins.max())
        first = max(int(bins.min()), last - _MOST_BINS + 1)
        if first == bins.min():
            break
    counts = np.bincount(np.maximum(bins, first) - first)
    bounds = tuple(k / parts for k in range(first, last + 2))
    return bounds, tuple(map(int, counts))

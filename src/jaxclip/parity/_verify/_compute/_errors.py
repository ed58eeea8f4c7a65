"""How far the port's runs are from that in float64: what is kept of them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from jaxclip.parity._arrays import Array, pieces, widened
from jaxclip.parity._sizes import l2, sizes
from jaxclip.parity._trace._digest import BLOCKS, block_of, project

K = TypeVar("K")


@dataclass(frozen=True)
class Sketch:
    """What a digest would tell of an error.

    Attributes:
        projections: Its random projections, ``(256, 2)``.
        blocks: The L2 norm of each block, ``(256,)``.
    """

    projections: Array
    blocks: Array


@dataclass(frozen=True)
class Error:
    """How far an array of a run is from that of the run in float64.

    Elements that are not finite in float64 are left out.

    Attributes:
        norm: The L2 norm.
        peak: The greatest magnitude.
        sketch: What a digest would tell of it; None if nobody asked.
    """

    norm: float
    peak: float
    sketch: Sketch | None = None

    @classmethod
    def of(cls, array: Array, wide: Array, *, sketched: bool = False) -> "Error":
        """Measure an array.

        Args:
            array: As a run in the recorded dtype has it.
            wide: As that in float64 has it.
            sketched: Whether to keep what a digest would tell.
        """
        with np.errstate(all="ignore"):
            parts = pieces(*_turned(array, wide))
            [size] = sizes(([_apart(a, b)] for a, b in parts), 1)
            drawn = sketch(_apart(array, wide)) if sketched else None
            return cls(size.norm, size.peak, drawn)


def _turned(*arrays: Array) -> tuple[Array, ...]:
    """Turn arrays that lie in columns, as Flax's kernels do in torch's layout."""
    columns = all(array.flags.f_contiguous for array in arrays)
    return tuple(array.T for array in arrays) if columns else arrays


def _apart(array: Array, wide: Array) -> Array:
    apart = np.asarray(widened(array) - widened(wide))
    return np.where(np.isfinite(wide), apart, 0.0)


def sketch(error: Array) -> Sketch:
    """Return what a digest would tell of an error; what is not finite is 0 in it."""
    error = np.where(np.isfinite(error), error, 0.0)
    [projections] = project([error])
    return Sketch(projections, block_norms(error))


def block_norms(array: Array) -> Array:
    """Return the L2 norm of each block of which a digest has projections."""
    flat = np.ascontiguousarray(array).reshape(-1)
    blocks = (flat[block_of(flat.size, index)] for index in range(BLOCKS))
    return np.asarray([l2(block) if block.size else 0.0 for block in blocks])


def errors_of(
    arrays: Mapping[K, Array], wide: Mapping[K, Array], sketched: Collection[Any] = ()
) -> dict[K, Error]:
    """Return the errors of arrays by name, of those that both runs have.

    Args:
        arrays: Of a run in the recorded dtype.
        wide: Of that in float64.
        sketched: The names of those of which to keep what a digest would tell.
    """
    return {
        name: Error.of(array, wide[name], sketched=name in sketched)
        for name, array in arrays.items()
        if name in wide
    }

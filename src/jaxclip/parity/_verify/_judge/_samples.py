"""One tensor as torch and the port have it, and what is measured of it."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxclip.parity._arrays import (
    Array,
    chosen,
    finite_elements,
    is_float,
    pieces,
    widened,
)
from jaxclip.parity._comparison import Leaf
from jaxclip.parity._sizes import Size, sizes
from jaxclip.parity._verify._compute._errors import Error
from jaxclip.parity._verify._report._words import TORCH, Words

FLOOR_ULPS = 4.0
"""The least noise to assume, in ulps."""

COARSE_FLOOR_ULPS = 0.5
"""The same in bfloat16 and float16, where a few ulps would be a tenth."""


@dataclass(frozen=True)
class Sample:
    """A tensor on all sides, in torch's layout.

    Attributes:
        name: What to call it.
        module: The path of the torch module that it belongs to; "" is the model.
        torch: As recorded.
        narrow: As the port computes it in the recorded dtype, or in float32 if that is
            float64.
        wide: As the port computes it in float64.
        grain: To what each element was rounded besides, in absolute terms: a difference
            of parameters is as coarse as the parameters.
        words: What the two sides are called.
        draws: How far the port is from float64 with what it is given changed by an
            ulp, for each draw of that.
    """

    name: str
    module: str
    torch: Array
    narrow: Array
    wide: Array
    grain: Array | None = None
    words: Words = TORCH
    draws: tuple[Error, ...] = ()

    @property
    def leaf(self) -> Leaf:
        """The recorded and the computed tensor."""
        sides = zip(self.words.labels, (self.torch, self.port), strict=True)
        return Leaf(self.name, dict(sides))

    @property
    def is_wide(self) -> bool:
        """Whether it was recorded in float64."""
        return bool(self.torch.dtype == np.float64)

    @property
    def port(self) -> Array:
        """What the port computes in the recorded dtype."""
        return self.wide if self.is_wide else self.narrow

    @cached_property
    def finite(self) -> NDArray[np.bool_]:
        """Which elements are finite in what is compared."""
        return finite_elements(self.torch, self.port, self.wide)

    @cached_property
    def measures(self) -> "Measures":
        """What is measured of the elements that are finite."""
        return Measures.of(self)

    def pieces(self) -> Iterator["Sample"]:
        """Yield the elements that are finite, some after some."""
        every = {name: getattr(self, name) for name in _ARRAYS}
        given = {name: x for name, x in every.items() if x is not None}
        finite = (chosen(array, self.finite) for array in given.values())
        for part in pieces(*finite):
            changes: dict[str, Any] = dict(zip(given, part, strict=True))
            yield dataclasses.replace(self, **changes)


_ARRAYS = "torch", "narrow", "wide", "grain"


@dataclass(frozen=True)
class Measures:
    """What is measured of a tensor, in float64, of the elements that are finite.

    Attributes:
        torch: How large torch's is.
        narrow: How large the port's in the recorded dtype is.
        wide: How large the port's in float64 is.
        torch_error: How far torch's is from the port's in float64.
        narrow_error: How far the port's in the recorded dtype is from it.
        apart: How far what is compared of the port's is from torch's.
        floor: The least noise to assume.
        dot: The sum of the products of torch's elements and the port's.
        needed: The tolerance, relative to an element and to the greatest, that passes.
        size: How many elements there are.
        is_wide: Whether the port's in float64 is what is compared.
    """

    torch: Size
    narrow: Size
    wide: Size
    torch_error: Size
    narrow_error: Size
    apart: Size
    floor: Size
    dot: float
    needed: float
    size: int
    is_wide: bool

    @property
    def port(self) -> Size:
        """How large what is compared of the port's is."""
        return self.wide if self.is_wide else self.narrow

    @property
    def port_error(self) -> Size:
        """How far what is compared of the port's is from the port's in float64."""
        return Size() if self.is_wide else self.narrow_error

    @classmethod
    @np.errstate(all="ignore")  # it is for the report to speak of what overflows
    def of(cls, sample: Sample) -> "Measures":
        """Measure a sample."""
        compared = chosen(sample.torch, sample.finite)
        [own] = sizes(([widened(part)] for [part] in pieces(compared)), 1)
        dots, needed = [], []

        def measured() -> Iterator[tuple[Array, ...]]:
            for piece in sample.pieces():
                sides = piece.torch, piece.port, piece.narrow, piece.wide
                torch, port, narrow, wide = map(widened, sides)
                apart, floor = np.abs(port - torch), floor_of(piece)
                dots.append(float(np.vdot(torch, port).real))
                needed.append(_needed(torch, apart, own.peak))
                yield narrow, wide, torch - wide, narrow - wide, apart, floor

        found = sizes(measured(), 6)
        narrow, wide, torch_error, narrow_error, between, floor = found
        return cls(
            torch=own,
            narrow=narrow,
            wide=wide,
            torch_error=torch_error,
            narrow_error=narrow_error,
            apart=between,
            floor=floor,
            dot=sum(dots),
            needed=max(needed, default=0.0),
            size=compared.size,
            is_wide=sample.is_wide,
        )


def _needed(yardstick: Array, apart: Array, most: float) -> float:
    """Return the tolerance, relative to an element and to the greatest, that passes."""
    scale = np.abs(yardstick) + most
    shares = np.divide(apart, scale, out=np.zeros_like(scale), where=apart != 0)
    return float(np.max(shares))


def floor_of(sample: Sample) -> Array:
    """Return the least noise to assume of each element."""
    if not is_float(sample.torch):
        return np.zeros(sample.wide.shape)
    finfo = jnp.finfo(sample.torch.dtype)
    # What computes in float32 may flush what is below its smallest normal to zero.
    least = np.finfo(np.float64 if sample.is_wide else np.float32)
    tiny = max(float(finfo.smallest_subnormal), float(least.tiny))
    ulps = FLOOR_ULPS if finfo.bits >= 32 else COARSE_FLOOR_ULPS
    floor = ulps * (float(finfo.eps) * np.abs(widened(sample.wide)) + tiny)
    return floor if sample.grain is None else np.maximum(floor, sample.grain)

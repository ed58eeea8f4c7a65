"""What is known of an array of torch's of which a digest was kept."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxclip.parity._arrays import Array, widened
from jaxclip.parity._trace._digest import Digest, digest
from jaxclip.parity._trace._step import Step
from jaxclip.parity._verify._alignment._places import output_name


@dataclass(frozen=True)
class Known:
    """What is known of an array of torch's.

    Attributes:
        shape: Its shape.
        dtype: Its dtype.
        projections: Its random projections, ``(256, 2)``.
        facts: Its norms and extremes, and its histogram; None if the projections are
            all, as of the difference of two arrays.
        binned: Whether the histogram is known.
        subtrahend: What was taken away from the projections; they are rounded as it is.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    projections: Array
    facts: Digest | None = None
    binned: bool = True
    subtrahend: Array | None = None

    @classmethod
    def of(cls, held: Digest) -> "Known":
        """Read a digest."""
        return cls(held.shape, jnp.dtype(held.dtype), held.projections, held)

    @property
    def l2(self) -> float:
        """Its L2 norm; NaN if it is not known."""
        return math.nan if self.facts is None else self.facts.l2

    def scaled(self, share: float) -> "Known":
        """Return what is known of a multiple."""
        if self.facts is None or share == 1.0:
            return self
        numbers = self.facts.numbers.copy()
        numbers[2:6] *= share  # the norms and extremes; the bins are others then
        facts = dataclasses.replace(self.facts, numbers=numbers)
        return dataclasses.replace(
            self, projections=share * self.projections, facts=facts, binned=False
        )


def change(after: Known, before: Array) -> Known:
    """Return what is known of by how much an array was changed."""
    projections = after.projections - digest(before).projections
    return Known(after.shape, after.dtype, projections, subtrahend=widened(before))


def whole(held: Digest) -> Array | None:
    """Return the array, if all its elements are equal: the digest tells what they are.

    A count of steps is such an array.
    """
    if held.nans or held.infinities or held.minimum != held.maximum:
        return None
    return np.full(held.shape, held.minimum, jnp.dtype(held.dtype))


def found_in(step: Step, stage: str, arrays: Mapping[str, Array]) -> dict[str, Any]:
    """Return arrays of a stage, and what is known of those that are digests."""
    return {**arrays, **{n: read(d) for n, d in step.digests.get(stage, {}).items()}}


def outputs_in(step: Step) -> dict[str, Array | Known]:
    """Return what the model returned in all its calls, and what is known of digests."""
    whole = {
        output_name(call, place): array
        for call, arrays in enumerate(step.outputs)
        for place, array in arrays.items()
    }
    return {**whole, **{n: read(d) for n, d in output_digests(step).items()}}


def output_digests(step: Step) -> dict[str, Digest]:
    """Return the digests of what the model returned."""
    digests: dict[str, Digest] = {}
    for name, held in step.digests.get("outputs", {}).items():
        call, _, place = name.partition("/")
        digests[output_name(int(call), place)] = held
    return digests


def digested(step: Step, stage: str) -> list[str]:
    """Name the arrays of a stage of which a digest is all that is known."""
    found = found_in(step, stage, {})
    return [name for name, array in found.items() if isinstance(array, Known)]


def read(held: Digest) -> Array | Known:
    """Return the array, if its digest tells all of it, or what is known of it."""
    array = whole(held)
    return Known.of(held) if array is None else array


def arrays_in(step: Step, stage: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return those arrays of a stage that are known element by element."""
    found = found_in(step, stage, arrays)
    return {n: array for n, array in found.items() if not isinstance(array, Known)}

"""Trees of arrays compared leaf by leaf, and the report of what differs.

Structure comes first, then shape; dtypes and values are for a rule to judge (the
rules are in `_noise`). Nothing is broadcast, transposed, cast or skipped, and
comparing nothing is an error.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from jaxclip.parity._arrays import (
    ULP_DTYPES,
    Array,
    as_array,
    differences,
    pieces,
    ulp_distance,
)

Rule = Callable[["Leaf"], "TensorComparison"]


class ParityError(AssertionError):
    """What should agree does not, or there was nothing to compare."""

    __module__ = "jaxclip.parity"


@dataclasses.dataclass(frozen=True)
class TensorComparison:
    """One tensor compared: the verdict, and the figures that it rests on.

    The sides stand in the order in which they are compared, the yardstick first:
    reference, candidate, exact; or expected, actual. A figure is NaN (`max_ulps` is
    `None`) where it was not measured, because the sides differ in shape or dtype or
    because it belongs to another rule. True exactly if the tensor passed.

    Attributes:
        name: The path of the tensor in its tree, such as `['rnn']['bias'][0]`.
        shapes: The shape on each side, `None` where the side has no such tensor.
        dtypes: The dtype on each side, `None` likewise.
        passed: The verdict.
        detail: The reason for it, in words.
        ratio: What was found over what it is measured by. Noise: `reference_error /
            max(candidate_error, floor)`, up to `factor` passes. Tolerance: the
            greatest difference over its tolerance, up to 1 passes. Bits: 0 or
            infinite. Infinite too where values cannot be measured.
        peak_ratio: `ratio` with the largest magnitude for a norm (noise).
        candidate_ratio: The greater of both with the errors exchanged, up to
            `candidate_factor` passes (noise).
        reference_error: The L2 distance of reference from exact (noise).
        candidate_error: The L2 distance of candidate from exact (noise).
        allowed: The greatest `reference_error` for which `ratio` passes (noise).
        max_abs_diff: The greatest absolute difference of the first two sides.
        max_abs_index: Where that is.
        max_rel_diff: Their greatest difference relative to the first side.
        max_ulps: Their greatest `ulp_distance`.
    """

    name: str
    shapes: tuple[tuple[int, ...] | None, ...]
    dtypes: tuple[np.dtype[Any] | None, ...]
    passed: bool
    detail: str
    ratio: float = math.inf
    peak_ratio: float = math.nan
    candidate_ratio: float = math.nan
    reference_error: float = math.nan
    candidate_error: float = math.nan
    allowed: float = math.nan
    max_abs_diff: float = math.nan
    max_abs_index: tuple[int, ...] = ()
    max_rel_diff: float = math.nan
    max_ulps: int | None = None

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        verdict = "pass" if self.passed else "FAIL"
        text = f"{verdict} {self.name or 'tensor'}: {self.detail}"
        if not math.isnan(self.max_abs_diff):
            text += (
                f"; greatest difference {self.max_abs_diff:.3g} at "
                f"{self.max_abs_index}, relative {self.max_rel_diff:.3g}"
            )
        if self.max_ulps is not None:
            text += f", {self.max_ulps} ulps"
        return text


@dataclasses.dataclass(frozen=True)
class TreeComparison:
    """Every tensor of a tree compared. True exactly if all of them passed.

    Attributes:
        tensors: A comparison for each tensor, in the order of the first side; tensors
            that the first side lacks come last.

    Raises:
        ParityError: If no side of any tensor has an element.
    """

    tensors: tuple[TensorComparison, ...]

    def __post_init__(self) -> None:
        shapes = [shape for tensor in self.tensors for shape in tensor.shapes]
        if self.passed and not any(math.prod(s) for s in shapes if s is not None):
            raise ParityError(
                "nothing was compared: the trees hold no array with an element in it; "
                "check that what you pass is what you mean to compare"
            )

    @property
    def failures(self) -> tuple[TensorComparison, ...]:
        """The tensors that did not pass, in order: at the first, the sides part."""
        return tuple(tensor for tensor in self.tensors if not tensor.passed)

    @property
    def passed(self) -> bool:
        """Whether every tensor passed."""
        return not self.failures

    @property
    def worst(self) -> TensorComparison:
        """The tensor with the greatest ratio, among the failures if there are any."""
        tensors = self.failures or self.tensors
        return max(tensors, key=lambda tensor: np.fmax(tensor.ratio, tensor.peak_ratio))

    def raise_if_different(self) -> None:
        """Raise a `ParityError` that reports every tensor which did not pass."""
        __tracebackhide__ = True
        if not self.passed:
            raise ParityError(str(self))

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        if self.passed:
            return f"all {len(self.tensors)} tensors pass, at worst:\n  {self.worst}"
        counts = f"{len(self.failures)} of {len(self.tensors)} tensors"
        title = f"{counts} FAIL, at worst {self.worst.name or 'tensor'}:"
        return "\n  ".join([title, *map(str, self.failures)])


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One tensor as each side has it: what a rule judges.

    Attributes:
        name: The path of the tensor in its tree.
        sides: The array of each side, the yardstick first; `None` where it has none.
    """

    name: str
    sides: Mapping[str, Array | None]

    @property
    def arrays(self) -> list[Array]:
        """The arrays, without those that are missing."""
        return [array for array in self.sides.values() if array is not None]

    def conflict(self, what: str, describe: Callable[[Array], object]) -> str:
        """Say how the sides differ in `what`, or nothing if they do not."""
        seen = {
            side: "nothing" if array is None else str(describe(array))
            for side, array in self.sides.items()
        }
        if len(set(seen.values())) == 1:
            return ""
        return f"{what} differs: {_enumerated(seen)}"

    def mismatch(self, wrong: NDArray[np.bool_], how: str) -> str:
        """Say how many elements are wrong, and show the first."""
        index = _plain(np.argwhere(wrong)[0])
        values = [str(array[index]) for array in self.arrays]
        seen = dict(zip(self.sides, values, strict=True))
        return (
            f"{np.count_nonzero(wrong)} of {wrong.size} elements {how}, "
            f"first at {index}: {_enumerated(seen)}"
        )

    def refused(self, detail: str) -> TensorComparison:
        """The verdict on sides whose values cannot be compared."""
        arrays = self.sides.values()
        shapes = tuple(None if array is None else array.shape for array in arrays)
        dtypes = tuple(None if array is None else array.dtype for array in arrays)
        return TensorComparison(self.name, shapes, dtypes, passed=False, detail=detail)

    def judged(
        self, passed: bool, detail: str, *, ratio: float, **figures: Any
    ) -> TensorComparison:
        """The verdict of a rule, with how far apart the first two sides are."""
        first, second = self.arrays[:2]
        return dataclasses.replace(
            self.refused(detail),
            passed=passed,
            ratio=ratio,
            **_furthest(first, second),
            **figures,
        )


@np.errstate(all="ignore")  # it is for the report to speak of NaN and overflow
def compare(sides: Mapping[str, Any], rule: Rule) -> TreeComparison:
    """Compare trees leaf by leaf: structure, then shape, then what the rule says.

    Args:
        sides: A tree of arrays for each side, the yardstick first.
        rule: What judges dtypes and values, once shapes are equal.

    Returns:
        The comparison of every leaf that any side has.

    Raises:
        ParityError: If there is nothing to compare.
        TypeError: If a leaf is not an array.
    """
    trees = {side: _named_arrays(tree, side) for side, tree in sides.items()}
    names = dict.fromkeys(name for arrays in trees.values() for name in arrays)
    tensors = []
    for name in names:
        leaf = Leaf(name, {side: arrays.get(name) for side, arrays in trees.items()})
        problem = leaf.conflict("structure", lambda _: "an array")
        problem = problem or leaf.conflict("shape", lambda array: array.shape)
        tensors.append(leaf.refused(problem) if problem else rule(leaf))
    return TreeComparison(tuple(tensors))


def _named_arrays(tree: Any, side: str) -> dict[str, Array]:
    """The arrays of a tree under their paths, in the tree's own order."""
    arrays: dict[str, Array] = {}
    for name, leaf in _named_leaves(tree):
        if name in arrays:
            raise ValueError(f"{side} has two leaves at the path {name}")
        arrays[name] = as_array(leaf, f"{side}{name}")
    return arrays


def _named_leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    # JAX sorts the keys of a dict; here a mapping keeps its order, which in a
    # recording is the order of computation, so that the first failure comes first.
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _named_leaves(value, f"{prefix}[{key!r}]")
        return
    leaves, _ = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda node: isinstance(node, Mapping)
    )
    for path, leaf in leaves:
        name = prefix + jax.tree_util.keystr(path)
        if isinstance(leaf, Mapping):
            yield from _named_leaves(leaf, name)
        else:
            yield name, leaf


def _furthest(first: Array, second: Array) -> dict[str, Any]:
    """Measure by how much two arrays of one shape differ at most, and where."""
    counted = first.dtype == second.dtype and first.dtype in ULP_DTYPES
    most, index, relative, ulps, start = 0.0, 0, 0.0, 0, 0
    for a, b in pieces(first, second):
        absolute, shares = differences(a, b)
        worst = int(np.argmax(absolute))
        if absolute[worst] > most:
            most, index = float(absolute[worst]), start + worst
        relative = max(relative, float(np.max(shares)))
        if counted and absolute[worst] > 0:
            apart = ulp_distance(a, b)[absolute > 0]  # not from NaN to NaN
            ulps = max(ulps, int(np.max(apart)))
        start += a.size
    return {
        "max_abs_diff": most,
        "max_abs_index": _plain(np.unravel_index(index, first.shape))
        if first.size
        else (),
        "max_rel_diff": relative,
        "max_ulps": ulps if counted else None,
    }


def _plain(index: Any) -> tuple[int, ...]:
    return tuple(int(i) for i in index)


def _enumerated(seen: Mapping[str, str]) -> str:
    return ", ".join(f"{what} in {side}" for side, what in seen.items())

"""The three rules on values: to the bit, within a tolerance, within rounding noise."""

import dataclasses
import functools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxclip.parity._arrays import (
    Array,
    as_array,
    differences,
    finite_elements,
    widened,
)
from jaxclip.parity._comparison import Leaf, TensorComparison, TreeComparison, compare
from jaxclip.parity._sizes import l2, peak


def compare_to_noise(
    reference: Any,
    candidate: Any,
    exact: Any,
    *,
    name: str = "",
    factor: float = 4.0,
    candidate_factor: float = 100.0,
    floor_ulps: float = 4.0,
    equal_nan: bool = False,
) -> TensorComparison:
    """Compare a port with its reference, by the port's own rounding noise.

    Two float32 programs that compute the same differ by rounding, and by how much
    depends on how the problem amplifies rounding. So the noise is measured: the port
    is run in float32 (`candidate`) and in float64 (`exact`) on the same input, and

        ‖reference - exact‖ <= factor * max(‖candidate - exact‖, floor)
        ‖candidate - exact‖ <= candidate_factor * max(‖reference - exact‖, floor)
        floor = floor_ulps * ‖eps * |exact| + tiny‖

    with the `eps` of the candidate's dtype and `tiny` for what may be flushed to zero.
    The first line finds a port that computes something else; the second, one that is
    right in float64 alone and loses digits in float32. Both must hold in the L2 norm,
    which sees a small error everywhere, and in the largest magnitude, which sees one
    wrong element in a million. Norms are taken in float64. Correct ports have a
    `ratio` of the order of 1; the floor keeps those that happen to be exact from
    asking too much.

    Two things fail besides. Elements that are not finite must be equal on all three
    sides. And the noise must leave something to compare: where zeros in place of the
    reference would pass, `exact` was made from other weights or inputs, or the
    problem amplifies rounding until no digit is left (an exploding recurrent net).
    Only where `exact` itself vanishes beside the candidate is noise all there is.

    `exact` is the instrument: a small error in it alone looks like noise. And both
    errors are reported, but an inaccurate reference looks like a wrong port: a float64
    run of the reference tells which it is. Integers and booleans do not round, and
    must be equal.

    Noise is one draw. In a tensor of a few elements, or of errors that all point one
    way, it can be small by luck: for a single element far above the floor, one correct
    port in six exceeds a factor of 4. Compare a curve of losses, not a loss.

    Args:
        reference: The other framework's result, in float32 or narrower.
        candidate: The port's result in the same dtype.
        exact: The port's result in float64.
        name: What to call the tensor in reports.
        factor: How many times the candidate's error the reference's may be.
        candidate_factor: How many times the reference's error the candidate's may be.
            The default lets it lose two digits.
        floor_ulps: The least noise to assume, in ulps of the exact elements.
        equal_nan: Whether NaN equals NaN.

    Returns:
        The verdict with its figures; also where shapes or dtypes differ, which fails.

    Raises:
        ParityError: If the arrays are empty.
        TypeError: If one is not an array.
        ValueError: If a factor or `floor_ulps` is not a positive finite number.

    Example:
        >>> import numpy as np
        >>> from jaxclip.parity import compare_to_noise
        >>> exact = np.linspace(1.0, 2.0, 5)
        >>> port = exact.astype(np.float32)
        >>> compare_to_noise(port * np.float32(1 + 2e-7), port, exact).passed
        True
        >>> comparison = compare_to_noise(port * np.float32(1 + 1e-5), port, exact)
        >>> comparison.passed, round(comparison.ratio)
        (False, 21)
    """
    sides = {"reference": reference, "candidate": candidate, "exact": exact}
    arrays = {side: as_array(value, side) for side, value in sides.items()}
    rule = _Noise(factor, candidate_factor, floor_ulps, equal_nan)
    [tensor] = compare(arrays, rule).tensors
    return dataclasses.replace(tensor, name=name)


def compare_trees(
    reference: Any,
    candidate: Any,
    exact: Any,
    *,
    factor: float = 4.0,
    candidate_factor: float = 100.0,
    floor_ulps: float = 4.0,
    equal_nan: bool = False,
) -> TreeComparison:
    """Compare a port with its reference tensor by tensor, as `compare_to_noise` does.

    The trees are nested dicts or other pytrees of NumPy, JAX and torch arrays and
    Python numbers. The paths to the arrays must be the same, not the containers: a
    `FrozenDict` matches a dict, a list a tuple. `None` holds nothing, as in JAX.

    Args:
        reference: The other framework's results; its order is the report's.
        candidate: The port's results in the same dtypes.
        exact: The port's results in float64.
        factor: As in `compare_to_noise`.
        candidate_factor: As in `compare_to_noise`.
        floor_ulps: As in `compare_to_noise`.
        equal_nan: As in `compare_to_noise`.

    Returns:
        Every tensor's comparison, those in it that only some sides have.

    Raises:
        ParityError: If there is nothing to compare.
        TypeError: If a leaf is not an array.
        ValueError: If a factor or `floor_ulps` is not a positive finite number.

    Example:
        >>> import numpy as np
        >>> from jaxclip.parity import compare_trees
        >>> exact = {"w": np.linspace(1.0, 2.0, 5), "loss": np.float64(0.1)}
        >>> port = {name: value.astype(np.float32) for name, value in exact.items()}
        >>> torch = port | {"w": port["w"][::-1]}
        >>> [tensor.name for tensor in compare_trees(torch, port, exact).failures]
        ["['w']"]
    """
    sides = {"reference": reference, "candidate": candidate, "exact": exact}
    return compare(sides, _Noise(factor, candidate_factor, floor_ulps, equal_nan))


def assert_trees_equal(actual: Any, expected: Any, *, equal_nan: bool = False) -> None:
    """Assert that two trees hold the same arrays, to the bit.

    Trees and paths are as in `compare_trees`. Zeros of different sign have different
    bits, and so differ.

    Args:
        actual: The tree under test.
        expected: What it should be; its order is the report's.
        equal_nan: Whether NaN equals NaN, whatever its sign and payload.

    Raises:
        ParityError: If the trees differ in structure, shape, dtype or bits, with every
            tensor that does; or if there is nothing to compare.
        TypeError: If a leaf is not an array.

    Example:
        >>> import numpy as np
        >>> from jaxclip.parity import assert_trees_equal
        >>> weights = {"w": np.ones((2, 3), np.float32)}
        >>> assert_trees_equal({"w": np.ones((2, 3), np.float32)}, weights)
        >>> assert_trees_equal({"w": np.ones((2, 3))}, weights)
        Traceback (most recent call last):
            ...
        jaxclip.parity.ParityError: 1 of 1 tensors FAIL, at worst ['w']:
          FAIL ['w']: dtype differs: float32 in expected, float64 in actual
    """
    __tracebackhide__ = True
    rule = functools.partial(bitwise, equal_nan=equal_nan)
    compare({"expected": expected, "actual": actual}, rule).raise_if_different()


def assert_trees_close(
    actual: Any, expected: Any, *, rtol: float, atol: float, equal_nan: bool = False
) -> None:
    """Assert that two trees hold the same arrays, within a tolerance.

    `|actual - expected| <= atol + rtol * |expected|` for each element, in float64.
    Elements that are not finite must be equal, and so must integers and booleans,
    which do not round. Trees and paths are as in `compare_trees`.

    Args:
        actual: The tree under test.
        expected: What it should be; its order is the report's.
        rtol: The tolerance relative to the expected element.
        atol: The absolute tolerance. Neither has a default: there is none that suits.
        equal_nan: Whether NaN equals NaN.

    Raises:
        ParityError: If the trees differ in structure, shape, dtype or by more than the
            tolerance, with every tensor that does; or if there is nothing to compare.
        TypeError: If a leaf is not an array.
        ValueError: If a tolerance is negative or not finite.

    Example:
        >>> from jaxclip.parity import assert_trees_close
        >>> assert_trees_close({"loss": 1.0001}, {"loss": 1.0}, rtol=1e-3, atol=0.0)
    """
    __tracebackhide__ = True
    for name, value in {"rtol": rtol, "atol": atol}.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}={value} is no tolerance: give 0 or more, finite")
    rule = functools.partial(tolerance, rtol=rtol, atol=atol, equal_nan=equal_nan)
    compare({"expected": expected, "actual": actual}, rule).raise_if_different()


def bitwise(leaf: Leaf, *, equal_nan: bool) -> TensorComparison:
    """Judge the two sides of a leaf by their bits."""
    if problem := leaf.conflict("dtype", lambda array: array.dtype):
        return leaf.refused(problem)
    expected, actual = leaf.arrays
    octets = [
        np.ascontiguousarray(x).reshape(-1).view(np.uint8).reshape(x.size, x.itemsize)
        for x in (expected, actual)
    ]
    differ = (octets[0] != octets[1]).any(axis=1).reshape(expected.shape)
    nan = (expected != expected) & (actual != actual)
    wrong = np.where(nan, not equal_nan, differ)
    if wrong.any():
        problem = leaf.mismatch(wrong, "differ in their bits" + _nan_hint(wrong & nan))
        return leaf.judged(False, problem, ratio=math.inf)
    return leaf.judged(True, "equal to the bit", ratio=0.0)


def tolerance(
    leaf: Leaf, *, rtol: float, atol: float, equal_nan: bool
) -> TensorComparison:
    """Judge the first two sides of a leaf by a tolerance."""
    if problem := leaf.conflict("dtype", lambda array: array.dtype):
        return leaf.refused(problem)
    rounded, problem = rounded_elements(leaf, equal_nan)
    if problem:
        return leaf.judged(False, problem, ratio=math.inf)
    expected, actual = leaf.arrays
    absolute, _ = differences(expected, actual)
    allowed = atol + rtol * np.where(rounded, np.abs(widened(expected)), 0.0)
    ratios = np.where(absolute == 0, 0.0, absolute / allowed)
    ratio = float(np.max(ratios, initial=0.0))
    limits = f"rtol={rtol:g}, atol={atol:g}"
    wrong = absolute > allowed
    if wrong.any():
        how = f"differ by more than {limits}, {ratio:.3g} times at worst"
        return leaf.judged(False, leaf.mismatch(wrong, how), ratio=ratio)
    return leaf.judged(True, f"within {limits}", ratio=ratio)


@dataclasses.dataclass(frozen=True)
class _Noise:
    """The rule of `compare_to_noise`."""

    factor: float
    candidate_factor: float
    floor_ulps: float
    equal_nan: bool

    def __post_init__(self) -> None:
        for name in ("factor", "candidate_factor", "floor_ulps"):
            if not 0 < (value := getattr(self, name)) < math.inf:
                raise ValueError(f"{name}={value} must be more than 0, and finite")

    def __call__(self, leaf: Leaf) -> TensorComparison:
        if problem := noise_dtypes(*leaf.arrays):
            return leaf.refused(problem)
        rounded, problem = rounded_elements(leaf, self.equal_nan)
        if problem:
            return leaf.judged(False, problem, ratio=math.inf)
        if not rounded.any():
            return leaf.judged(True, "equal", ratio=0.0)
        return self._measure(leaf, *(widened(array[rounded]) for array in leaf.arrays))

    def _measure(
        self, leaf: Leaf, t32: Array, j32: Array, j64: Array
    ) -> TensorComparison:
        finfo = jnp.finfo(leaf.arrays[1].dtype)
        # What computes in float32 may flush what is below its smallest normal to zero.
        tiny = max(float(finfo.smallest_subnormal), float(np.finfo(np.float32).tiny))
        ulps = float(finfo.eps) * np.abs(j64) + tiny
        errors = t32 - j64, j32 - j64, self.floor_ulps * ulps
        reference_error, candidate_error, floor = map(l2, errors)
        allowed = self.factor * max(candidate_error, floor)
        ratio, candidate_ratio = _ratios(reference_error, candidate_error, floor)
        peak_ratio, candidate_peak_ratio = _ratios(*map(peak, errors))
        candidate_ratio = max(candidate_ratio, candidate_peak_ratio)

        # Would zeros pass for the reference, although it is not zero that is right?
        scale = l2(j64)
        vanishes = scale <= float(finfo.eps) * l2(j32)
        drowned = allowed >= scale and candidate_error > floor and not vanishes
        if drowned:
            verdict = "noise leaves nothing to compare, or exact had another input"
        elif max(ratio, peak_ratio) > self.factor:
            verdict = "more than noise, or an inaccurate reference (run it in float64)"
        elif candidate_ratio > self.candidate_factor:
            verdict = "candidate loses digits that reference keeps"
        else:
            verdict = "within noise"
        return leaf.judged(
            verdict == "within noise",
            f"{verdict}: reference is {reference_error:.3g} and candidate "
            f"{candidate_error:.3g} from exact, which has norm {scale:.3g}; "
            f"ratio {ratio:.3g}, peak ratio {peak_ratio:.3g} (up to {self.factor:g}), "
            f"candidate ratio {candidate_ratio:.3g} (up to {self.candidate_factor:g})",
            ratio=ratio,
            peak_ratio=peak_ratio,
            candidate_ratio=candidate_ratio,
            reference_error=reference_error,
            candidate_error=candidate_error,
            allowed=allowed,
        )


def _ratios(
    reference_error: float, candidate_error: float, floor: float
) -> tuple[float, float]:
    return (
        reference_error / max(candidate_error, floor),
        candidate_error / max(reference_error, floor),
    )


def noise_dtypes(reference: Array, candidate: Array, exact: Array) -> str:
    """Say what is wrong with the dtypes, or nothing."""
    given = f"{candidate.dtype} in candidate, {exact.dtype} in exact"
    if reference.dtype != candidate.dtype:
        return f"dtype differs: {reference.dtype} in reference, {given}"
    if np.iscomplexobj(candidate):
        return f"dtype {candidate.dtype}: compare the real and the imaginary part"
    if not _rounds(candidate.dtype):
        same = candidate.dtype.kind == exact.dtype.kind
        return "" if same else f"dtype differs: {given}"
    if exact.dtype != np.float64:
        return f"dtype of exact must be float64 (see jax.enable_x64): {given}"
    if candidate.dtype == np.float64:
        return f"dtype leaves no noise to measure (see assert_trees_close): {given}"
    return ""


def rounded_elements(leaf: Leaf, equal_nan: bool) -> tuple[NDArray[np.bool_], str]:
    """Tell which elements rounding excuses, and what is wrong with the others."""
    first, *others = arrays = leaf.arrays
    if _rounds(first.dtype) and (finite := finite_elements(*arrays)).all():
        return finite, ""
    nan = np.logical_and.reduce([array != array for array in arrays])
    same = np.logical_and.reduce([array == first for array in others])
    if _rounds(first.dtype):
        rounded = finite
        how = "are not finite and differ"
    else:
        rounded = np.zeros(first.shape, np.bool_)
        how = f"differ, and {first.dtype} does not round"
    wrong = ~(rounded | same | (nan & equal_nan))
    if wrong.any():
        return rounded, leaf.mismatch(wrong, how + _nan_hint(wrong & nan))
    return rounded, ""


def _nan_hint(nan: NDArray[np.bool_]) -> str:
    return " (pass equal_nan=True if NaN is right)" if nan.any() else ""


def _rounds(dtype: np.dtype[Any]) -> bool:
    return bool(jnp.issubdtype(dtype, np.inexact))

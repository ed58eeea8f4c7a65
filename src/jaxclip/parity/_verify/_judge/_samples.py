"""One tensor as torch and the port have it, and the rules by which it is judged."""

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from jaxclip.parity._arrays import Array, chosen, widened
from jaxclip.parity._comparison import Leaf, TensorComparison
from jaxclip.parity._noise import l2, noise_dtypes, peak, rounded_elements, tolerance
from jaxclip.parity._verify._compute._errors import Error
from jaxclip.parity._verify._report._results import PORT_FACTOR
from jaxclip.parity._verify._report._words import TORCH, Words

FLOOR_ULPS = 4.0
"""The least noise to assume, in ulps."""

COARSE_FLOOR_ULPS = 0.5
"""The same in bfloat16 and float16, where a few ulps would be a tenth."""

FLOAT64_FACTOR = 100.0
"""How many times more of its noise is allowed in float64 than in float32.

The noise is measured in float32 and scaled, and a mistake is not: one as small as a
rounding of float32 is 2**29, or 5e8, times the noise. Correct ports gave up to 5.9 of
the 400 that a factor of 4 allows, and in float32 up to 2.3 of 4: docs/verifying.md has
them by stage.
"""

FEW = 8.0
"""A tensor of n elements is n draws of the noise, and is allowed 1 + FEW / n times it.

With four runs of the port, the error of a single element exceeds 4 * 9 times the
greatest of theirs once in about 10**6 cases, if errors are normal; 4 times once in 200.
"""


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


@dataclass(frozen=True)
class Noise:
    """The rounding noise of a tensor, as an L2 norm and as a greatest magnitude.

    Attributes:
        norm: The noise, no less than the floor.
        peak: The same, of one element.
        floor_norm: The floor.
        floor_peak: The same, of one element.
        measured: What was measured of the norm; 0 where the tensor is zero but for
            rounding, so that noise is all there is.
    """

    norm: float
    peak: float
    floor_norm: float
    floor_peak: float
    measured: float


def noise_of(sample: Sample, rounded: Array) -> Noise:
    """Measure the noise of the elements that rounding excuses.

    It is the greatest distance of the port's runs in the recorded dtype from that in
    float64. For a recording in float64 it is that of its runs in float32, times the
    ratio of the two dtypes' eps.
    """
    narrow, wide = (
        widened(chosen(array, rounded)) for array in (sample.narrow, sample.wide)
    )
    eps, low = (float(jnp.finfo(a.dtype).eps) for a in (sample.torch, sample.narrow))
    shrunk = eps / low
    floor = chosen(floor_of(sample), rounded)
    own = Error.of(narrow, wide)
    errors = own, *sample.draws
    share = shrunk * (1 + FEW / wide.size)
    vanishes = l2(wide) <= low * l2(narrow)
    norm = share * max(error.norm for error in errors)
    greatest = share * max(error.peak for error in errors)
    return Noise(
        norm=max(norm, l2(floor)),
        peak=max(greatest, peak(floor)),
        floor_norm=l2(floor),
        floor_peak=peak(floor),
        measured=0.0 if vanishes else norm,
    )


def floor_of(sample: Sample) -> Array:
    """Return the least noise to assume of each element."""
    finfo = jnp.finfo(sample.torch.dtype)
    # What computes in float32 may flush what is below its smallest normal to zero.
    least = np.finfo(np.float64 if sample.is_wide else np.float32)
    tiny = max(float(finfo.smallest_subnormal), float(least.tiny))
    ulps = FLOOR_ULPS if finfo.bits >= 32 else COARSE_FLOOR_ULPS
    floor = ulps * (float(finfo.eps) * np.abs(widened(sample.wide)) + tiny)
    return floor if sample.grain is None else np.maximum(floor, sample.grain)


@dataclass(frozen=True)
class Rule:
    """By how much a sample may differ.

    Attributes:
        factor: How many times the port's noise.
        equal_nan: Whether NaN equals NaN.
        rtol: A relative tolerance instead; with ``atol``, or not at all.
        atol: An absolute tolerance.
        port_factor: How many times the recorded side's error the port's may be.
            Infinite where that may be near the truth by luck, and blames no port.
    """

    factor: float = 4.0
    equal_nan: bool = False
    rtol: float | None = None
    atol: float | None = None
    port_factor: float = PORT_FACTOR

    def __post_init__(self) -> None:
        """Refuse what is no tolerance."""
        if not 0 < self.factor < math.inf:
            raise ValueError(f"factor={self.factor} must be more than 0, and finite.")
        if (self.rtol is None) != (self.atol is None):
            raise ValueError(
                f"rtol={self.rtol}, atol={self.atol}: give both or neither. One alone "
                "would leave the other to a default that nobody chose."
            )
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(
                    f"{name}={value} is no tolerance: give 0 or more, finite."
                )

    def __str__(self) -> str:
        """Say the rule."""
        if self.rtol is not None:
            return f"rtol={self.rtol:g}, atol={self.atol:g}"
        return f"{self.factor:g} times the rounding noise of the port"

    def allowed(self, sample: Sample) -> float:
        """Return up to which ratio a sample passes."""
        if self.rtol is not None:
            return 1.0
        return self.factor * (FLOAT64_FACTOR if sample.is_wide else 1.0)

    def __call__(self, sample: Sample) -> tuple[TensorComparison, Array]:
        """Judge a sample: the comparison, and what each element may differ by."""
        nothing = np.zeros(())
        leaf = sample.leaf
        problem = leaf.conflict("shape", lambda array: array.shape)
        problem = problem or leaf.conflict("dtype", lambda array: array.dtype)
        if problem:
            return leaf.refused(problem), nothing
        if self.rtol is not None and self.atol is not None:
            judged = tolerance(
                leaf, rtol=self.rtol, atol=self.atol, equal_nan=self.equal_nan
            )
            return judged, self.atol + self.rtol * np.abs(widened(sample.torch))
        if not sample.is_wide:
            problem = noise_dtypes(sample.torch, sample.port, sample.wide)
        if problem:
            return leaf.refused(problem), nothing
        sides = {**leaf.sides, "port in float64": sample.wide}
        rounded, problem = rounded_elements(Leaf("", sides), self.equal_nan)
        if problem:
            return leaf.judged(False, problem, ratio=math.inf), nothing
        if not rounded.any():
            return leaf.judged(True, "equal", ratio=0.0), nothing
        return self._measured(leaf, sample, rounded)

    def _measured(
        self, leaf: Leaf, sample: Sample, rounded: Array
    ) -> tuple[TensorComparison, Array]:
        noise = noise_of(sample, rounded)
        factor = self.allowed(sample)
        torch, port, wide = (
            widened(chosen(array, rounded))
            for array in (sample.torch, sample.port, sample.wide)
        )
        recorded, candidate = sample.words
        of_torch, of_port = torch - wide, port - wide
        ratio, peak_ratio = l2(of_torch) / noise.norm, peak(of_torch) / noise.peak
        port_ratio = max(
            l2(of_port) / max(l2(of_torch), noise.floor_norm),
            peak(of_port) / max(peak(of_torch), noise.floor_peak),
        )
        drowned = (
            factor * noise.norm >= l2(wide)
            and noise.measured > noise.floor_norm
            and bool((torch != port).any())
        )
        if drowned:
            verdict = "noise leaves nothing to compare"
        elif max(ratio, peak_ratio) > factor:
            verdict = "more than noise"
        elif port_ratio > self.port_factor:
            verdict = f"{candidate} loses digits that {recorded} keeps"
        else:
            verdict = "within noise"
        judged = leaf.judged(
            verdict == "within noise",
            f"{verdict}: {recorded} is {max(ratio, peak_ratio):.3g} times the noise "
            f"from {candidate} in float64, up to {factor:g}",
            ratio=ratio,
            peak_ratio=peak_ratio,
            candidate_ratio=port_ratio if self.port_factor < math.inf else math.nan,
            reference_error=l2(of_torch),
            candidate_error=l2(of_port),
            allowed=factor * noise.norm,
        )
        return judged, np.asarray(factor * noise.peak)

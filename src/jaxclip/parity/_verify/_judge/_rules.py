"""The rules by which a tensor is judged: the noise of the port, or a tolerance."""

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from jaxclip.parity._arrays import Array, widened
from jaxclip.parity._comparison import Leaf, TensorComparison
from jaxclip.parity._noise import noise_dtypes, rounded_elements, tolerance
from jaxclip.parity._sizes import Size
from jaxclip.parity._verify._compute._errors import Error
from jaxclip.parity._verify._judge._samples import Sample
from jaxclip.parity._verify._report._results import PORT_FACTOR

FLOAT64_FACTOR = 100.0
"""How many times more of its noise is allowed in float64 than in float32.

The noise is measured in float32 and scaled, and a mistake is not: one as small as a
rounding of float32 is 2**29, or 5e8, times the noise. Correct ports gave up to 5.5 of
the 400 that a factor of 4 allows, and in float32 up to 3.5 of 4: docs/verifying.md has
them by stage.
"""

FEW = 8.0
"""A tensor of n elements is n draws of the noise, and is allowed 1 + FEW / n times it.

With four runs of the port, the error of a single element exceeds 4 * 9 times the
greatest of theirs once in about 10**6 cases, if errors are normal; 4 times once in 200.
"""


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


def noise_of(sample: Sample) -> Noise:
    """Measure the noise of the elements that rounding excuses.

    It is the greatest distance of the port's runs in the recorded dtype from that in
    float64. For a recording in float64 it is that of its runs in float32, times the
    ratio of the two dtypes' eps.
    """
    found = sample.measures
    eps, low = (float(jnp.finfo(a.dtype).eps) for a in (sample.torch, sample.narrow))
    shrunk = eps / low
    errors: list[Size | Error] = [found.narrow_error, *sample.draws]
    share = shrunk * (1 + FEW / max(found.size, 1))
    norm = share * max(error.norm for error in errors)
    greatest = share * max(error.peak for error in errors)
    vanishes = found.wide.norm <= low * found.narrow.norm
    return Noise(
        norm=max(norm, found.floor.norm),
        peak=max(greatest, found.floor.peak),
        floor_norm=found.floor.norm,
        floor_peak=found.floor.peak,
        measured=0.0 if vanishes else norm,
    )


def _lost(sample: Sample, noise: Noise) -> float:
    """Return how many times torch's error that of the port is, at the least.

    A port that loses digits does so in all of its runs, and torch is near the truth by
    luck in a tensor of few elements.
    """
    found = sample.measures
    few = 1 + FEW / max(found.size, 1)
    runs: list[Size | Error] = [found.port_error, *sample.draws]
    norm, peak = min(run.norm for run in runs), min(run.peak for run in runs)
    return max(
        norm / max(few * found.torch_error.norm, noise.floor_norm),
        peak / max(few * found.torch_error.peak, noise.floor_peak),
    )


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
        return self._by_noise(leaf, sample)

    def _by_noise(self, leaf: Leaf, sample: Sample) -> tuple[TensorComparison, Array]:
        noise, found = noise_of(sample), sample.measures
        factor = self.allowed(sample)
        recorded, candidate = sample.words
        of_torch = found.torch_error
        ratio, peak_ratio = of_torch.norm / noise.norm, of_torch.peak / noise.peak
        port_ratio = _lost(sample, noise)
        drowned = (
            factor * noise.norm >= found.wide.norm
            and noise.measured > noise.floor_norm
            and found.apart.peak > 0
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
            reference_error=of_torch.norm,
            candidate_error=found.port_error.norm,
            allowed=factor * noise.norm,
        )
        return judged, np.asarray(factor * noise.peak)

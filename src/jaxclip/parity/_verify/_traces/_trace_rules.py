"""By how much two recordings may differ: not at all, a tolerance, or rounding."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxclip.parity._arrays import Array, is_float
from jaxclip.parity._comparison import TensorComparison
from jaxclip.parity._noise import bitwise
from jaxclip.parity._trace._digest import Digest, digest
from jaxclip.parity._verify._free_run import FACTOR as DRIFT
from jaxclip.parity._verify._judge._judging import judged
from jaxclip.parity._verify._judge._rules import Rule
from jaxclip.parity._verify._judge._samples import FLOOR_ULPS, Sample
from jaxclip.parity._verify._report._results import PORT_FACTOR, TensorResult
from jaxclip.parity._verify._report._words import TRACES, Words

_BACKWARD = Words(TRACES.port, TRACES.recorded)

_DIGEST_ROUNDING = 1e-13
"""How far digests of equal arrays may be apart, relative to the norm of the array."""


@dataclass(frozen=True)
class TraceRule:
    """By how much a tensor of the candidate may differ from the reference's.

    Attributes:
        exact: Whether there is a recording of the run in float64.
        rule: The factor, and the tolerances; bits, if there are neither.
    """

    exact: bool
    rule: Rule

    def __str__(self) -> str:
        """Say the rule."""
        if self.rule.rtol is not None:
            return str(self.rule)
        if not self.exact:
            return "nothing: equal to the bit"
        return (
            f"{self.rule.factor:g} times the rounding noise of the reference; "
            f"{self.rule.factor * DRIFT:g} times where the two began apart"
        )

    def judge(
        self, step: int, stage: str, sample: Sample, *, drifted: bool
    ) -> TensorResult | None:
        """Judge a tensor.

        Args:
            step: The number of the step.
            stage: The stage.
            sample: The reference as what is recorded, the candidate as what is
                computed; in float64 the exact one, or the reference if there is none.
            drifted: Whether the two began the stage with other numbers.

        Returns:
            The verdict; None if the two drifted so far that noise is all there is.
        """
        if self.exact:
            limits = self._limits(drifted)
            result = judged(
                *(step, stage, sample, lambda each: _by_noise(each, limits)),
                limits.allowed(sample),
            )
            return None if drifted and _drowned(result.comparison, limits) else result
        if self.rule.rtol is not None:
            result = judged(step, stage, sample, self.rule)
        else:
            result = judged(step, stage, sample, self._by_bits)
        return dataclasses.replace(result, torch_error=math.nan, port_error=math.nan)

    def _limits(self, drifted: bool) -> Rule:
        if not drifted:
            return self.rule
        return dataclasses.replace(
            self.rule, factor=self.rule.factor * DRIFT, port_factor=PORT_FACTOR * DRIFT
        )

    def _by_bits(self, sample: Sample) -> tuple[TensorComparison, Array]:
        leaf = sample.leaf
        if problem := leaf.conflict("shape", lambda array: array.shape):
            return leaf.refused(problem), np.zeros(())
        return bitwise(leaf, equal_nan=self.rule.equal_nan), np.zeros(())

    # Of arrays of which digests are left.

    def judge_digests(
        self,
        step: int,
        stage: str,
        name: str,
        module: str,
        sides: tuple[Array | Digest, Array | Digest],
        exact: Array | Digest | None,
        *,
        drifted: bool,
    ) -> TensorResult:
        """Judge a tensor by its digests, taken of whichever side is whole."""
        reference, candidate = map(_digest, sides)
        passed, ratio, detail = self._digests(
            reference, candidate, None if exact is None else _digest(exact), drifted
        )
        same_shape = reference.shape == candidate.shape
        apart = reference.distance(candidate) if same_shape else math.nan
        comparison = TensorComparison(
            name,
            (reference.shape, candidate.shape),
            (jnp.dtype(reference.dtype), jnp.dtype(candidate.dtype)),
            passed,
            detail,
            ratio,
        )
        return TensorResult(
            *(step, stage, name, module, passed, detail, comparison),
            size=math.prod(reference.shape),
            ratio=ratio,
            allowed=1.0,
            relative_l2=apart / reference.l2 if reference.l2 else apart,
        )

    def _digests(
        self,
        reference: Digest,
        candidate: Digest,
        exact: Digest | None,
        drifted: bool,
    ) -> tuple[bool, float, str]:
        for what in ("shape", "dtype"):
            ours, theirs = getattr(reference, what), getattr(candidate, what)
            if ours != theirs:
                return (
                    *(False, math.inf),
                    f"{what} differs: {ours} in reference, {theirs} in candidate",
                )
        odd = (reference.nans, reference.infinities)
        if odd != (candidate.nans, candidate.infinities):
            return False, math.inf, "other numbers of elements are not finite (digests)"
        if reference.nans and not self.rule.equal_nan:
            return (
                *(False, math.inf),
                f"{reference.nans} elements are NaN (pass equal_nan=True if NaN is "
                "right)",
            )
        apart = reference.distance(candidate)
        size = math.prod(reference.shape)
        if self.exact and exact is not None and is_float(np.empty(0, reference.dtype)):
            eps = float(jnp.finfo(reference.dtype).eps)
            noise = max(reference.distance(exact), FLOOR_ULPS * eps * exact.l2)
            apart = candidate.distance(exact)
            allowed = self._limits(drifted).factor * noise
            how = "the candidate from the reference in float64"
        elif self.rule.rtol is not None and self.rule.atol is not None:
            allowed = self.rule.rtol * reference.l2 + self.rule.atol * math.sqrt(size)
            how = "the candidate from the reference"
        else:
            allowed = _DIGEST_ROUNDING * reference.l2
            how = "the candidate from the reference"
        block = int(reference.distances(candidate).argmax())
        where = reference.block(block)
        detail = (
            f"by digests, {how}: an L2 norm of {apart:.3g}, up to {allowed:.3g}; the "
            f"two are furthest apart in elements {where.start} to {where.stop} of "
            "the flat array"
        )
        ratio = apart / allowed if allowed else math.inf if apart else 0.0
        return apart <= allowed, ratio, detail


def _digest(side: Array | Digest) -> Digest:
    return side if isinstance(side, Digest) else digest(side)


def _by_noise(sample: Sample, rule: Rule) -> tuple[TensorComparison, Array]:
    """Judge the candidate by the noise of the reference: the sides exchanged."""
    leaf = sample.leaf
    problem = leaf.conflict("shape", lambda array: array.shape)
    problem = problem or leaf.conflict("dtype", lambda array: array.dtype)
    if problem:
        return leaf.refused(problem), np.zeros(())
    backward = dataclasses.replace(
        sample, torch=sample.narrow, narrow=sample.torch, words=_BACKWARD
    )
    found, allowed = rule(backward)
    if math.isnan(found.max_abs_diff):
        return leaf.refused(found.detail), allowed
    forward = leaf.judged(
        found.passed,
        found.detail,
        ratio=found.ratio,
        peak_ratio=found.peak_ratio,
        candidate_ratio=found.candidate_ratio,
        reference_error=found.candidate_error,
        candidate_error=found.reference_error,
        allowed=found.allowed,
    )
    return forward, allowed


def _drowned(comparison: TensorComparison, rule: Rule) -> bool:
    """Say whether a tensor failed, but for no difference that noise does not allow."""
    ratio: Any = np.fmax(comparison.ratio, comparison.peak_ratio)
    return (
        not comparison.passed
        and bool(ratio <= rule.factor)
        and comparison.candidate_ratio <= rule.port_factor
    )

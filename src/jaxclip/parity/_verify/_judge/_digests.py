"""An array of torch's of which a digest was kept, held against the port's arrays.

The port's are there whole, so that the noise is known element by element; what is
known of torch's are the random projections of its blocks, its norms, its extremes, and
how many magnitudes lie between two powers of two.
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxclip.parity._arrays import Array, is_float, widened
from jaxclip.parity._comparison import Leaf, TensorComparison
from jaxclip.parity._sizes import l2, peak
from jaxclip.parity._trace._digest import (
    BLOCKS,
    DRAWS,
    Digest,
    block_of,
    digest,
    project,
)
from jaxclip.parity._verify._compute._errors import block_norms
from jaxclip.parity._verify._compute._known import Known
from jaxclip.parity._verify._judge._rules import FEW, Rule, noise_of
from jaxclip.parity._verify._judge._samples import Sample, floor_of
from jaxclip.parity._verify._report._results import TensorResult

DROWNED = "noise leaves nothing to compare"

_ROUNDING = 1e-14
"""What adding up a projection in float64 may lose, relative to the block's norm."""

_ROOT = math.sqrt(DRAWS)

_TAIL = 3.0
"""How many times the norm of a block the greatest of 512 projections of it may be."""

_EXPLAINED = 1e-3
"""How much of a difference may be left where a factor explains it."""


def judged_by_digest(
    step: int, stage: str, torch: Known, sample: Sample, rule: Rule
) -> TensorResult:
    """Judge an array of which torch's is known by a digest.

    Args:
        step: The number of the step.
        stage: The stage.
        torch: What is known of torch's.
        sample: The port's; in place of torch's stands the port's own.
        rule: By how much they may differ.
    """
    # Of a digest the shape and the dtype are there, which is what a leaf asks for here.
    recorded: Any = torch
    sides = zip(sample.words.labels, (recorded, sample.torch), strict=True)
    leaf = Leaf(sample.name, dict(sides))
    figures: dict[str, Any] = {}
    with np.errstate(all="ignore"):  # it is for the report to speak of NaN
        problem = leaf.conflict("shape", lambda array: array.shape)
        problem = problem or leaf.conflict("dtype", lambda array: array.dtype)
        problem = problem or _not_finite(torch, sample, rule)
        if problem:
            comparison = leaf.refused(problem)
        elif not is_float(sample.torch):
            comparison = _exact(leaf, torch, sample)
        else:
            comparison, figures = _Measured(torch, sample, rule).judged(leaf)
    return TensorResult(
        step=step,
        stage=stage,
        name=sample.name,
        module=sample.module,
        passed=comparison.passed,
        detail=comparison.detail,
        comparison=comparison,
        size=math.prod(torch.shape),
        allowed=rule.allowed(sample),
        **figures,
    )


def _not_finite(torch: Known, sample: Sample, rule: Rule) -> str:
    """Say what is wrong with elements that are not finite, or nothing."""
    if torch.facts is None or not is_float(sample.torch):
        return ""
    nans, infinities = torch.facts.nans, torch.facts.infinities
    port = int(np.isnan(sample.torch).sum()), int(np.isinf(sample.torch).sum())
    if port != (nans, infinities):
        return (
            f"by its digest, {sample.words.recorded} has {nans} NaN and {infinities} "
            f"infinities, and {sample.words.port} {port[0]} and {port[1]}"
        )
    if nans and not rule.equal_nan:
        return (
            f"by its digest, there are {nans} NaN (pass equal_nan=True if NaN is right)"
        )
    return ""


def _exact(leaf: Leaf, torch: Known, sample: Sample) -> TensorComparison:
    """Judge what does not round."""
    apart = np.abs(torch.projections - digest(sample.torch).projections)
    passed = bool(
        (apart <= _ROUNDING * block_norms(widened(sample.torch))[:, None]).all()
    )
    verdict = "equal" if passed else f"differs, and {torch.dtype} does not round"
    return dataclasses.replace(
        leaf.refused(f"by its digest, {verdict}"),
        passed=passed,
        ratio=0.0 if passed else math.inf,
    )


class _Measured:
    """The distances of an array on all sides, as far as a digest tells them.

    Args:
        torch: What is known of torch's.
        sample: The port's.
        rule: By how much they may differ.
    """

    def __init__(self, torch: Known, sample: Sample, rule: Rule) -> None:
        """Measure them."""
        self.finite = np.isfinite(sample.narrow) & np.isfinite(sample.wide)
        if not self.finite.all():  # a digest takes the others for zeros
            sample = dataclasses.replace(
                sample,
                narrow=np.where(self.finite, sample.narrow, 0),
                wide=np.where(self.finite, sample.wide, 0),
            )
        self.torch, self.wide = torch, widened(sample.wide)
        self.words, self.port_factor = sample.words, rule.port_factor
        self.factor = rule.allowed(sample)
        self.noise = noise_of(sample)
        error = widened(sample.narrow) - self.wide
        [exact, projected] = project([self.wide, error])
        self.apart = torch.projections - exact
        shrunk = float(jnp.finfo(torch.dtype).eps)
        shrunk /= float(jnp.finfo(sample.narrow.dtype).eps)
        share = shrunk * (1 + FEW / min(self.wide.size, BLOCKS * DRAWS))
        rounded = block_norms(self.wide)
        if torch.subtrahend is not None:
            rounded = rounded + block_norms(torch.subtrahend)
        floor = np.maximum(block_norms(floor_of(sample)), _ROUNDING * rounded)
        # A projection may be small by chance; what is expected of its square is the
        # error's.
        both = [(projected, block_norms(error))]
        both += (
            (draw.sketch.projections, draw.sketch.blocks)
            for draw in sample.draws
            if draw.sketch is not None
        )
        self.floor_norm = _ROOT * l2(floor)
        self.norm = max(
            self.floor_norm, *(share * max(l2(p), _ROOT * l2(b)) for p, b in both)
        )
        self.peak = max(
            _TAIL * peak(floor), *(share * max(peak(p), peak(b)) for p, b in both)
        )
        self.port_error = 0.0 if sample.is_wide else l2(error)
        self.port_apart = self.apart if sample.is_wide else self.apart - projected

    def judged(self, leaf: Leaf) -> tuple[TensorComparison, dict[str, Any]]:
        """Judge the array, and measure it for the report."""
        norm, greatest = l2(self.apart), peak(self.apart)
        ratios = {
            "its projections": max(norm / self.norm, greatest / self.peak),
            **self._of_facts(),
        }
        worst = max(ratios, key=lambda what: np.nan_to_num(ratios[what], nan=np.inf))
        ratio = ratios[worst]
        port_ratio = _ROOT * self.port_error / max(norm, self.floor_norm)
        noise = self.noise
        drowned = (
            self.factor * noise.norm >= l2(self.wide)
            and noise.measured > noise.floor_norm
        )
        if drowned:
            verdict = DROWNED
        elif not ratio <= self.factor:
            verdict = f"more than noise, in {worst}"
        elif port_ratio > self.port_factor:
            verdict = f"{self.words.port} loses digits that {self.words.recorded} keeps"
        else:
            verdict = "within noise"
        comparison = dataclasses.replace(
            leaf.refused(
                f"by its digest, {verdict}: {self.words.recorded} is {ratio:.3g} times "
                f"the noise from {self.words.port} in float64, up to {self.factor:g}"
            ),
            passed=verdict == "within noise",
            ratio=norm / self.norm,
            peak_ratio=ratio,
            candidate_ratio=port_ratio if self.port_factor < math.inf else math.nan,
            reference_error=norm / _ROOT,
            candidate_error=self.port_error,
            allowed=self.factor * self.norm / _ROOT,
        )
        scale = l2(self.wide)
        figures = {
            "ratio": float(ratio),
            "relative_l2": _over(l2(self.port_apart) / _ROOT, scale),
            "torch_error": _over(norm / _ROOT, scale),
            "port_error": _over(self.port_error, scale),
            "hint": "" if comparison.passed else self._hint(),
        }
        return comparison, figures

    def _of_facts(self) -> dict[str, float]:
        """Return what the norms, extremes and counts are from the port's, over noise.

        Each moves by no more than the elements do.
        """
        facts = self.torch.facts
        if facts is None:
            return {}
        values = self.wide[self.finite]
        if not values.size:
            return {}
        noise = self.noise
        # Norms and extremes are rounded as what is added up to them.
        rounded = _ROUNDING * l2(values)
        root = math.sqrt(values.size)
        ratios = {
            "its L2 norm": abs(facts.l2 - l2(values)) / (noise.norm + rounded),
            "its L1 norm": abs(facts.l1 - np.abs(values).sum())
            / (root * (noise.norm + rounded)),
            "its least element": abs(facts.minimum - values.min()) / noise.peak,
            "its greatest element": abs(facts.maximum - values.max()) / noise.peak,
        }
        if self.torch.binned and not self._binned_alike(facts, values):
            ratios["its histogram"] = math.inf
        return ratios

    def _binned_alike(self, facts: Digest, values: Array) -> bool:
        """Say whether the counts of magnitudes are what noise may make of them."""
        magnitudes = np.sort(np.abs(values).ravel())
        slack = self.factor * self.noise.peak
        # How many are as great as each edge, from the second on: below the first bin
        # and above the last, all count at the ends.
        counted = np.cumsum(facts.histogram[::-1])[::-1][1:]
        edges = 2.0 ** (np.arange(1, facts.histogram.size) - 33)
        least = magnitudes.size - np.searchsorted(magnitudes, edges + slack)
        most = magnitudes.size - np.searchsorted(magnitudes, edges - slack)
        return bool(((least <= counted) & (counted <= most)).all())

    def _hint(self) -> str:
        """Say what the difference looks like, or where it is."""
        torch, allowed = self.torch.projections, self.factor * self.norm
        port, apart = torch - self.port_apart, l2(self.port_apart)
        if l2(torch) and l2(port) and apart > allowed:
            scale = float(np.vdot(torch, port) / np.vdot(torch, torch))
            if l2(port - scale * torch) <= max(_EXPLAINED * apart, allowed):
                return (
                    f"{self.words.port} has about {scale:.7g} times what "
                    f"{self.words.recorded} has"
                )
        blocks = np.max(np.abs(self.apart), axis=1)
        wrong = np.flatnonzero(blocks > self.factor * self.peak)
        if wrong.size == 1:
            where = block_of(self.wide.size, int(wrong[0]))
            return f"the elements [{where.start}:{where.stop}] of the flat array differ"
        return ""


def _over(part: float, scale: float) -> float:
    if not part:
        return 0.0
    return part / scale if scale else math.inf

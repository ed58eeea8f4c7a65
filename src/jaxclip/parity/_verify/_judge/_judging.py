"""The judgement of a tensor by a rule, with its figures."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxclip.parity._arrays import Array, chosen, distances, widened
from jaxclip.parity._comparison import Leaf, TensorComparison
from jaxclip.parity._sizes import Size
from jaxclip.parity._verify._judge._hints import hint
from jaxclip.parity._verify._judge._rules import Rule
from jaxclip.parity._verify._judge._samples import Sample
from jaxclip.parity._verify._report._results import TensorResult
from jaxclip.parity._verify._report._words import TORCH, Words


def judged(
    step: int,
    stage: str,
    sample: Sample,
    rule: Callable[[Sample], tuple[TensorComparison, Array]],
    allowed: float | None = None,
) -> TensorResult:
    """Judge a sample by a rule, and measure it.

    Args:
        step: The number of the step.
        stage: The stage.
        sample: The sample.
        rule: The rule.
        allowed: Up to which ratio a sample passes; what a `Rule` says by default, and
            1 of other rules.
    """
    if allowed is None:
        allowed = rule.allowed(sample) if isinstance(rule, Rule) else 1.0
    with np.errstate(all="ignore"):  # it is for the report to speak of NaN
        comparison, of_elements = rule(sample)
        measured = _figures(sample, comparison, of_elements)
    return TensorResult(
        step=step,
        stage=stage,
        name=sample.name,
        module=sample.module,
        passed=comparison.passed,
        detail=comparison.detail,
        comparison=comparison,
        size=sample.torch.size,
        allowed=allowed,
        **measured,
    )


def refused(
    step: int,
    stage: str,
    name: str,
    detail: str,
    *,
    torch: Array | None = None,
    port: Array | None = None,
    module: str = "",
    words: Words = TORCH,
) -> TensorResult:
    """Return what differs otherwise than by its values."""
    leaf = Leaf(name, dict(zip(words.labels, (torch, port), strict=True)))
    return TensorResult(
        *(step, stage, name, module, False, detail, leaf.refused(detail))
    )


def _figures(
    sample: Sample, comparison: TensorComparison, allowed: Array
) -> dict[str, Any]:
    if math.isnan(comparison.max_abs_diff):
        return {}
    found = sample.measures
    return {
        "ratio": float(np.fmax(comparison.ratio, comparison.peak_ratio)),
        "mismatched": _mismatched(sample, allowed),
        "relative_l2": _over(found.apart, found.torch),
        "cosine": _cosine(sample),
        "tolerance": found.needed if sample.finite.all() else math.inf,
        "torch_error": _over(found.torch_error, found.wide),
        "port_error": _over(found.port_error, found.wide),
        "hint": "" if comparison.passed else _hint(sample, allowed),
    }


def _mismatched(sample: Sample, allowed: Array) -> int:
    """Count the elements that differ by more than is allowed."""
    finite = sample.finite
    if finite.all() and sample.measures.apart.peak <= np.min(allowed, initial=math.inf):
        return 0
    apart = distances(sample.torch, sample.port)
    return int(np.count_nonzero((apart > allowed) | ~finite & (apart != 0)))


def _hint(sample: Sample, allowed: Array) -> str:
    torch, port = widened(sample.torch), widened(sample.port)
    return hint(torch, port, float(np.max(allowed)), sample.words)


def _over(part: Size, whole: Size) -> float:
    if not part.norm:
        return 0.0
    return part.norm / whole.norm if whole.norm else math.inf


_TINY = 2.0**-500
"""Products of numbers between this and its inverse neither vanish nor overflow."""


def _cosine(sample: Sample) -> float:
    found = sample.measures
    norms = found.torch.norm, found.port.norm
    if not all(norms):
        return 0.0 if any(norms) else 1.0
    if all(_TINY < norm < 1 / _TINY for norm in norms):
        return found.dot / math.prod(norms)
    sides = (chosen(array, sample.finite) for array in (sample.torch, sample.port))
    torch, port = map(widened, sides)
    return float(np.vdot(torch / norms[0], port / norms[1]))

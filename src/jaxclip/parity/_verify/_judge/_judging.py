"""The judgement of a tensor by a rule, with its figures."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxclip.parity._arrays import Array, chosen, distances, widened
from jaxclip.parity._comparison import Leaf, TensorComparison
from jaxclip.parity._noise import l2
from jaxclip.parity._verify._judge._hints import hint
from jaxclip.parity._verify._judge._samples import Rule, Sample
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
    torch, port, wide = map(widened, (sample.torch, sample.port, sample.wide))
    apart = distances(torch, port)
    finite = np.isfinite(torch) & np.isfinite(port) & np.isfinite(wide)
    a, b, exact, d = (chosen(x, finite) for x in (torch, port, wide, apart))
    return {
        "ratio": float(np.fmax(comparison.ratio, comparison.peak_ratio)),
        "mismatched": int(np.count_nonzero((apart > allowed) | ~finite & (apart != 0))),
        "relative_l2": _over(b - a, a),
        "cosine": _cosine(a, b),
        "tolerance": _needed(a, d) if finite.all() else math.inf,
        "torch_error": _over(a - exact, exact),
        "port_error": _over(b - exact, exact),
        "hint": "" if comparison.passed else _hint(sample, torch, port, allowed),
    }


def _needed(yardstick: Array, apart: Array) -> float:
    """Return the tolerance, relative to an element and to the greatest, that passes."""
    scale = np.abs(yardstick)
    scale += np.max(scale, initial=0.0)
    shares = np.divide(apart, scale, out=np.zeros_like(scale), where=apart != 0)
    return float(np.max(shares, initial=0.0))


def _hint(sample: Sample, torch: Array, port: Array, allowed: Array) -> str:
    return hint(torch, port, float(np.max(allowed)), sample.words)


def _over(part: Array, whole: Array) -> float:
    if not part.any():
        return 0.0
    return l2(part) / l2(whole) if whole.any() else math.inf


_TINY = 2.0**-500
"""Products of numbers between this and its inverse neither vanish nor overflow."""


def _cosine(a: Array, b: Array) -> float:
    if not (a.any() and b.any()):
        return 0.0 if a.any() or b.any() else 1.0
    norms = l2(a), l2(b)
    if all(_TINY < norm < 1 / _TINY for norm in norms):
        return float(np.vdot(a, b)) / math.prod(norms)
    return float(np.vdot(a / norms[0], b / norms[1]))

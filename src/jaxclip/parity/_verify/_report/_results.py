"""What verifying found of each tensor, and of each stage of a step."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxclip.parity._arrays import Array, chosen, distances, widened
from jaxclip.parity._comparison import Leaf, TensorComparison
from jaxclip.parity._noise import l2
from jaxclip.parity._verify._judge._hints import hint
from jaxclip.parity._verify._judge._samples import PORT_FACTOR, Rule, Sample
from jaxclip.parity._verify._report._words import TORCH, Words

STAGES = (
    "weights",
    "activations",
    "output",
    "loss",
    "gradients",
    "total norm",
    "clipped gradients",
    "update",
    "optimizer state",
    "parameters after",
    "buffers after",
)
"""The stages of a step that are compared, in order."""

BATCH = "batch"
"""A stage before them, where two recordings are compared: what both were given."""


RECORDED_AS = {
    "weights": "params",
    "activations": "activations",
    "output": "outputs",
    "loss": "loss",
    "gradients": "grads",
    "total norm": "total_norm",
    "clipped gradients": "final_grads",
    "update": "params_after",
    "optimizer state": "opt_state_after",
    "parameters after": "params_after",
    "buffers after": "buffers_after",
}
"""Each stage by its name in a recording."""


@dataclass(frozen=True)
class TensorResult:
    """A tensor of a step, compared.

    A figure is NaN where values could not be compared.

    Attributes:
        step: The number of the step in the run.
        stage: One of ``STAGES``.
        name: The name of the tensor: torch's, or where a module returned it.
        module: The path of the torch module that it belongs to; "" is the model.
        passed: The verdict.
        detail: The reason for it, in words.
        hint: What the difference looks like, if it looks like something.
        size: How many elements there are.
        mismatched: How many of them differ by more than one may; 0 where torch's array
            was recorded as a digest, which does not tell it.
        ratio: The difference over the noise, as a norm and as the greatest element,
            whichever is larger; over the tolerance, if one was given.
        allowed: Up to which ratio it passes.
        relative_l2: ``‖port - torch‖ / ‖torch‖``.
        cosine: The cosine of the angle between the two.
        tolerance: The least ``r`` with which ``rtol=r, atol=r * max|torch|`` passes.
        torch_error: How far torch is from the port in float64, relative to that.
        port_error: How far the port is from itself in float64, likewise; 0 if the
            recording is in float64.
        comparison: More: shapes, dtypes, ulps, the greatest differences, and where.
    """

    step: int
    stage: str
    name: str
    module: str
    passed: bool
    detail: str
    comparison: TensorComparison
    hint: str = ""
    size: int = 0
    mismatched: int = 0
    ratio: float = math.inf
    allowed: float = math.nan
    relative_l2: float = math.nan
    cosine: float = math.nan
    tolerance: float = math.nan
    torch_error: float = math.nan
    port_error: float = math.nan

    def __bool__(self) -> bool:
        """Whether it passed."""
        return self.passed

    @property
    def share(self) -> float:
        """The ratio over what is allowed, or the port's loss of digits likewise.

        More than 1 fails; infinite where it fails otherwise than by its figures.
        """
        lost = self.comparison.candidate_ratio / PORT_FACTOR
        share = float(np.fmax(self.ratio / self.allowed, lost))
        return math.inf if math.isnan(share) and not self.passed else share

    @property
    def by_digest(self) -> bool:
        """Whether a digest of torch's array was compared, and not its elements."""
        return math.isnan(self.cosine) and not math.isnan(self.relative_l2)

    def __str__(self) -> str:
        """Say the verdict and the figures in one line."""
        verdict = "same" if self.passed else "DIFFERENT"
        text = f"{verdict} {self.name}: {self.detail}"
        if math.isnan(self.relative_l2):
            return text
        if self.by_digest:
            text += f"; {self.size} elements; relative L2 about {self.relative_l2:.3g}"
            return text + (f"; {self.hint}" if self.hint else "")
        worst = self.comparison
        ulps = "" if worst.max_ulps is None else f", {worst.max_ulps} ulps"
        text += (
            f"; {self.mismatched} of {self.size} elements; relative L2 "
            f"{self.relative_l2:.3g}, cosine {self.cosine:.9g}; greatest difference "
            f"{worst.max_abs_diff:.3g} at {worst.max_abs_index}, relative "
            f"{worst.max_rel_diff:.3g}{ulps}; rtol={self.tolerance:.2g} would pass"
        )
        return text + (f"; {self.hint}" if self.hint else "")


@dataclass(frozen=True)
class NotCompared:
    """Something that was not compared, and why.

    Attributes:
        name: The tensor, the module, or "" for the whole stage.
        reason: Why not.
    """

    name: str
    reason: str

    def __str__(self) -> str:
        """Name it, and say the reason."""
        return f"{self.name}: {self.reason}" if self.name else self.reason


@dataclass(frozen=True)
class StageResult:
    """A stage of a step, compared.

    Attributes:
        step: The number of the step in the run.
        stage: One of ``STAGES``.
        tensors: Every tensor that was compared, in order.
        not_compared: What was not.
        notes: What else there is to say.
        kinks: Elements that are within noise of a kink, and on another side of it in
            torch than in the port, in words; all was compared on torch's side.
    """

    step: int
    stage: str
    tensors: tuple[TensorResult, ...]
    not_compared: tuple[NotCompared, ...] = ()
    notes: tuple[str, ...] = ()
    kinks: tuple[str, ...] = ()

    @property
    def failures(self) -> tuple[TensorResult, ...]:
        """The tensors that differ, in order."""
        return tuple(tensor for tensor in self.tensors if not tensor.passed)

    @property
    def verdict(self) -> str:
        """``"same"``, ``"different"`` or ``"not compared"``."""
        if not self.tensors:
            return "not compared"
        return "different" if self.failures else "same"


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

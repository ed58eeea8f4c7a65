"""What verifying found of each tensor, and of each stage of a step."""

import math
from dataclasses import dataclass

import numpy as np

from jaxclip.parity._comparison import TensorComparison

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


PORT_FACTOR = 100.0
"""How many times torch's error the port's may be: two digits."""


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

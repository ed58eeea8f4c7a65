"""How the arrays of a stage are brought together and judged."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxclip.parity._comparison import Leaf
from jaxclip.parity._trace._records import Run
from jaxclip.parity._trace._step import Step
from jaxclip.parity._verify._alignment import Alignment
from jaxclip.parity._verify._difference import Difference, pictured
from jaxclip.parity._verify._results import (
    NotCompared,
    StageResult,
    TensorResult,
    judged,
    refused,
)
from jaxclip.parity._verify._samples import Rule, Sample, is_float
from jaxclip.parity._verify._sides import Side

Array = np.ndarray[Any, Any]
Arrays = Mapping[Any, Array]

_RECORDED_AS = {
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

DIGESTED = "recorded as a digest (digest_above=)"

_KEPT = ("total norm", "optimizer state")
"""Stages of what is only kept, in which a port may keep more digits than torch."""

_NO_WEIGHTS = ("output", "loss", "total norm")
"""Stages whose arrays are not shaped as the weights are."""


@dataclass(frozen=True)
class Assembly:
    """A step on all sides.

    Attributes:
        step: As torch recorded it.
        run: What holds for the recorded run.
        narrow: As the port computes it in the recorded dtype, in several draws.
        wide: As the port computes it in float64.
        alignment: Which array is which.
        rule: By how much they may differ.
        failing: What differs, by stage and name.
    """

    step: Step
    run: Run
    narrow: Sequence[Side]
    wide: Side
    alignment: Alignment
    rule: Rule
    failing: dict[tuple[str, str], Sample] = field(default_factory=dict, init=False)

    def digested(self, stage: str) -> Collection[str]:
        """Name the arrays of a stage of which a digest alone was kept."""
        return self.step.digests.get(_RECORDED_AS[stage], {}).keys()

    def absent(self, stage: str) -> str:
        """Say why a recording has nothing of a stage."""
        kept = _RECORDED_AS[stage] in self.run.keep
        return "torch has none" if kept else "not recorded"

    def by_name(
        self,
        stage: str,
        recorded: Arrays,
        own: Callable[[Side], Mapping[str, Any]],
        reasons: Mapping[str, str] | None = None,
        notes: Iterable[str] = (),
        grains: Arrays | None = None,
    ) -> StageResult:
        """Compare arrays by torch's names.

        Args:
            stage: The stage.
            recorded: torch's.
            own: Takes the port's from a side.
            reasons: Why some are not to be compared.
            notes: What else there is to say.
            grains: What the arrays were rounded beside, by the same names.
        """
        tensors: list[TensorResult] = []
        left = []
        for name, array in recorded.items():
            found = own(self.wide)
            module = ""
            if stage not in _NO_WEIGHTS:
                module = _parameter(stage, name).rpartition(".")[0]
            why = (reasons or {}).get(name, "")
            if not why and stage not in _NO_WEIGHTS:
                why = self.alignment.unknown(_parameter(stage, name))
            if why:
                left.append(NotCompared(name, why))
            elif name not in found:
                sides = Leaf(name, {"torch": array, "port": None})
                problem = sides.conflict("structure", lambda _: "an array")
                tensors.append(
                    refused(
                        *(self.step.number, stage, name, problem),
                        torch=array,
                        module=module,
                    )
                )
            else:
                grain = None if grains is None else _half_ulps(grains[name])
                tensors.append(
                    self.judged(
                        *(stage, name, module, array),
                        [own(side)[name] for side in self.narrow],
                        found[name],
                        grain,
                    )
                )
        digested = self.digested(stage)
        left += [NotCompared(name, DIGESTED) for name in digested]
        if not recorded and not digested:
            left.append(NotCompared("", self.absent(stage)))
        return self.stage(stage, tensors, left, notes)

    def judged(
        self,
        stage: str,
        name: str,
        module: str,
        torch: Array,
        narrow: Sequence[Array],
        wide: Array,
        grain: Array | None = None,
    ) -> TensorResult:
        """Judge an array by all sides of it."""
        if stage in _KEPT:
            narrow = [_rounded(torch.dtype, array) for array in narrow]
        sample = Sample(
            name or "output",
            module,
            torch,
            tuple(_as(torch.dtype, array) for array in narrow),
            _as(torch.dtype, wide),
            grain,
        )
        result = judged(self.step.number, stage, sample, self.rule)
        if not result.passed:
            self.failing[stage, result.name] = sample
        return result

    def difference(self, result: TensorResult) -> Difference | None:
        """Draw how a tensor differs, if its values could be compared."""
        sample = self.failing.get((result.stage, result.name))
        return None if sample is None else pictured(sample, self.rule)

    def stage(
        self,
        stage: str,
        tensors: Iterable[TensorResult],
        left: Iterable[NotCompared] = (),
        notes: Iterable[str] = (),
    ) -> StageResult:
        """Return what was found of a stage, and what was left out."""
        return StageResult(self.step.number, stage, (*tensors,), (*left,), tuple(notes))


def _parameter(stage: str, name: str) -> str:
    """Return the parameter of which a tensor is."""
    return name.rpartition("/")[0] if stage == "optimizer state" else name


def _half_ulps(params: Array) -> Array:
    """Return to what parameters are rounded."""
    eps = float(jnp.finfo(params.dtype).eps)
    return np.abs(params.astype(np.float64)) * eps / 2


def _as(dtype: Any, array: Array) -> Array:
    """Return a count in the dtype in which torch counts."""
    both = np.issubdtype(dtype, np.integer) and np.issubdtype(array.dtype, np.integer)
    counts = array.ndim == 0 and not is_float(array)
    return array.astype(dtype) if both or counts else array


def _rounded(dtype: Any, array: Array) -> Array:
    """Return what a port keeps in float32 in the narrower dtype of torch's."""
    both = jnp.issubdtype(dtype, jnp.floating) and is_float(array)
    wider = both and dtype.itemsize < 4 and array.dtype == np.float32
    return array.astype(dtype) if wider else array

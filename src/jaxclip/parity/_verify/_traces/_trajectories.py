"""The stages of a step as two recordings have it, each on its own way."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxclip.parity._arrays import is_float
from jaxclip.parity._trace._digest import Digest
from jaxclip.parity._trace._records import OUTSIDE, Run
from jaxclip.parity._trace._step import Step
from jaxclip.parity._verify._alignment._places import output_name
from jaxclip.parity._verify._judge._judging import refused
from jaxclip.parity._verify._judge._rules import Rule
from jaxclip.parity._verify._judge._samples import Sample
from jaxclip.parity._verify._report._results import (
    BATCH,
    RECORDED_AS,
    STAGES,
    NotCompared,
    StageResult,
    TensorResult,
)
from jaxclip.parity._verify._report._words import TRACES
from jaxclip.parity._verify._traces._held import Held, Names, held, module_of, update_of
from jaxclip.parity._verify._traces._trace_rules import TraceRule

Array = np.ndarray[Any, Any]
_BITS = TraceRule(False, Rule(equal_nan=True))
"""What is given to both is the same, NaN or not."""

_DRAWN = {"masks": "mask", "draws": "draw"}
"""Parts of a recording that hold what was drawn, and what to call it."""

_BY_LOOPS = "the two loops drew other numbers, which may be nothing to the step"

_DIGESTED = "recorded as a digest (digest_above=)"

_OPTIMIZED = ("update", "optimizer state", "parameters after")
"""The stages that begin with the gradients."""


@dataclass(frozen=True)
class Trajectories:
    """A step of two recordings, and of the run in float64.

    Attributes:
        reference: The step of the one.
        candidate: The step of the other.
        exact: The step of the run in float64, if there is one.
        runs: What holds for the first two.
        rule: By how much they may differ.
        names: The candidate's names.
        exact_names: Those of the run in float64.
        fresh: Whether no step before this one was compared that left its state.
    """

    reference: Step
    candidate: Step
    exact: Step | None
    runs: tuple[Run, Run]
    rule: TraceRule
    names: Names
    exact_names: Names
    fresh: bool

    def stages(self) -> Iterator[StageResult]:
        """Compare stage after stage; none but the batch, if that differs."""
        batch = self._batch()
        yield batch
        if batch.failures:
            why = "the two were given other batches, or drew other numbers"
            for stage in STAGES:
                yield self._stage(stage, [], [NotCompared("", why)])
            return
        yield self._weights()
        for stage in STAGES[1:]:
            yield self._compared(stage)

    def _stage(
        self,
        stage: str,
        tensors: Iterable[TensorResult],
        left: Iterable[NotCompared],
        notes: Iterable[str] = (),
    ) -> StageResult:
        number = self.reference.number
        return StageResult(number, stage, (*tensors,), (*left,), (*notes,))

    def _batch(self) -> StageResult:
        """Compare what both were given, and what both drew."""
        tensors, left = self._held(BATCH, "batch", drifted=False)
        for part in _DRAWN:
            for found in self._held(BATCH, part, drifted=False)[0]:
                if found.passed or OUTSIDE not in found.name:
                    tensors.append(found)
                else:
                    left.append(NotCompared(found.name, _BY_LOOPS))
        return self._stage(BATCH, tensors, left)

    def _weights(self) -> StageResult:
        """Compare what both begin with."""
        drifted = self._drifted("weights")
        tensors: list[TensorResult] = []
        left: list[NotCompared] = []
        for part in ("params", "buffers", *(["opt_state"] if self.fresh else [])):
            found, missing = self._held("weights", part, drifted)
            tensors += found
            # A model may have no buffers, and a first step no state.
            left += [each for each in missing if each.name or part == "params"]
        return self._stage("weights", tensors, left)

    def _drifted(self, stage: str) -> bool:
        """Say whether the two began a stage with other numbers, or nobody knows."""
        if not self._equal("params"):
            return True
        # An optimizer may make much of a gradient that is all rounding.
        return stage in _OPTIMIZED and not (
            self._equal("final_grads") or self._equal("grads")
        )

    def _equal(self, part: str) -> bool:
        """Say whether both have a part of a recording, and the same to the bit."""
        ours, theirs = held(self.reference, part), held(self.candidate, part)
        return bool(ours) and all(
            isinstance(other := theirs.get(self.names("weights", name)), np.ndarray)
            and isinstance(array, np.ndarray)
            and array.tobytes() == other.tobytes()
            for name, array in ours.items()
        )

    def _compared(self, stage: str) -> StageResult:
        part = RECORDED_AS[stage]
        tensors, left = self._held(stage, part, self._drifted(stage))
        notes = []
        if stage == "update":
            notes = [*self._other_numbers()]
        return self._stage(stage, tensors, left, notes)

    def _held(
        self, stage: str, part: str, drifted: bool
    ) -> tuple[list[TensorResult], list[NotCompared]]:
        """Compare what the two have of a stage, which is a part of a recording."""
        needed = {part, "params"} if stage == "update" else {part}
        without = [
            word
            for word, run in zip(TRACES, self.runs, strict=True)
            if not needed <= {*run.keep}
        ]
        if without:
            return [], [NotCompared("", f"not recorded in {' and '.join(without)}")]

        def take(step: Step) -> Held:
            return update_of(step) if stage == "update" else held(step, part)

        ours, theirs = take(self.reference), take(self.candidate)
        exact = None if self.exact is None else take(self.exact)
        tensors: list[TensorResult] = []
        left: list[NotCompared] = []
        taken = set()
        for name, array in ours.items():
            own = self.names(stage, name)
            taken.add(own)
            other = theirs.get(own)
            if other is None and own in self.candidate.digests.get(part, {}):
                left.append(NotCompared(name, _DIGESTED))
                continue
            if other is None:
                self._missing(stage, name, (array, None), tensors, left)
                continue
            precise = None
            if exact is not None and stage != BATCH:
                precise = exact.get(self.exact_names(stage, name))
                if precise is None:
                    left.append(NotCompared(name, "not in the run in float64"))
                    continue
            result = self._judged(stage, part, name, (array, other), precise, drifted)
            if isinstance(result, NotCompared):
                left.append(result)
            else:
                tensors.append(result)
        if stage == "update":
            digested = self.reference.digests.get(part, {})
            left += [NotCompared(name, _DIGESTED) for name in digested]
            taken |= {self.names(stage, name) for name in digested}
        for own, other in theirs.items():
            if own not in taken:
                self._missing(stage, own, (None, other), tensors, left)
        if not ours and not theirs:
            left.append(NotCompared("", "neither has any"))
        return tensors, left

    def _missing(
        self,
        stage: str,
        name: str,
        sides: tuple[Any, Any],
        tensors: list[TensorResult],
        left: list[NotCompared],
    ) -> None:
        """Say that one side alone has something: of activations, by choice perhaps."""
        if stage == "activations":
            [who] = [word for word, s in zip(TRACES, sides, strict=True) if s is None]
            left.append(NotCompared(name, f"{who} has no such activation"))
            return
        arrays = [side if isinstance(side, np.ndarray) else None for side in sides]
        said = ["nothing" if side is None else "an array" for side in sides]
        problem = f"structure differs: {said[0]} in reference, {said[1]} in candidate"
        tensors.append(
            refused(
                *(self.reference.number, stage, self._shown(stage, name), problem),
                torch=arrays[0],
                port=arrays[1],
                module=module_of(stage, name),
                words=TRACES,
            )
        )

    def _shown(self, stage: str, name: str, part: str = "") -> str:
        """Return what to call a tensor."""
        if part in _DRAWN:
            module, comma, rest = name.partition(",")
            return f"{_DRAWN[part]} of {module or 'the model'}{comma}{rest}"
        if stage == "output":
            call, _, place = name.partition("/")
            return output_name(int(call), place)
        if stage == "loss":
            return "loss" if name == "0" else f"loss, call {name}"
        return "total norm" if stage == "total norm" else name

    def _judged(
        self,
        stage: str,
        part: str,
        name: str,
        sides: tuple[Array | Digest, Array | Digest],
        exact: Array | Digest | None,
        drifted: bool,
    ) -> TensorResult | NotCompared:
        number, shown = self.reference.number, self._shown(stage, name, part)
        module = module_of(stage, name)
        rule = _BITS if stage == BATCH else self.rule
        reference, candidate = sides
        if any(isinstance(each, Digest) for each in (*sides, exact)):
            return rule.judge_digests(
                *(number, stage, shown, module, sides, exact), drifted=drifted
            )
        assert isinstance(reference, np.ndarray)
        assert isinstance(candidate, np.ndarray)
        assert not isinstance(exact, Digest)
        if exact is not None and is_float(reference):
            if reference.dtype == np.float64:
                return NotCompared(name, "recorded in float64, which leaves no noise")
            exact = exact.astype(np.float64)
        grain = None
        if stage == "update":
            after = self.reference.params_after[name]
            grain = np.abs(after.astype(np.float64)) * float(jnp.finfo(after.dtype).eps)
            grain /= 2
        if exact is not None and exact.shape != reference.shape:
            return NotCompared(name, "of another shape in the run in float64")
        wide = reference.astype(np.float64) if exact is None else exact
        sample = Sample(
            *(shown, module, reference, candidate, wide, grain), words=TRACES
        )
        result = rule.judge(number, stage, sample, drifted=drifted)
        if result is None:
            return NotCompared(
                name,
                "the two have drifted so far that rounding leaves nothing to compare",
            )
        return result

    def _other_numbers(self) -> Iterator[str]:
        """Say which hyperparameters, and which calls of the loop, are others."""
        number = self.reference.number
        groups = zip(
            self.reference.hyperparameters, self.candidate.hyperparameters, strict=False
        )
        for index, (ours, theirs) in enumerate(groups):
            for key in ours.keys() & theirs.keys():
                if ours[key] != theirs[key]:
                    yield (
                        f"step {number}, group {index}: {key} is {ours[key]} in the "
                        f"reference and {theirs[key]} in the candidate"
                    )
        kinds = [
            [event.kind for event in step.events]
            for step in (self.reference, self.candidate)
        ]
        if kinds[0] != kinds[1]:
            yield (
                f"step {number}: the reference's loop did {' '.join(kinds[0])}, the "
                f"candidate's {' '.join(kinds[1])}"
            )

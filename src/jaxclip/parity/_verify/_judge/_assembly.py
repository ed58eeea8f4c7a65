"""How the arrays of a stage are brought together and judged."""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from jaxclip.parity._arrays import is_float
from jaxclip.parity._comparison import Leaf
from jaxclip.parity._trace._records import Run
from jaxclip.parity._trace._step import Step
from jaxclip.parity._verify._alignment._aligned import Aligned
from jaxclip.parity._verify._compute._bench import Bench
from jaxclip.parity._verify._compute._known import Known, found_in
from jaxclip.parity._verify._compute._sides import Sides
from jaxclip.parity._verify._judge._digests import DROWNED, judged_by_digest
from jaxclip.parity._verify._judge._judging import judged, refused
from jaxclip.parity._verify._judge._own_gradients import BLIND, own_gradients, remark
from jaxclip.parity._verify._judge._picture import pictured
from jaxclip.parity._verify._judge._rules import Rule
from jaxclip.parity._verify._judge._samples import Sample
from jaxclip.parity._verify._report._difference import Difference
from jaxclip.parity._verify._report._results import (
    RECORDED_AS,
    NotCompared,
    StageResult,
    TensorResult,
)
from jaxclip.parity._verify._report._words import Words, words_for

Array = np.ndarray[Any, Any]
Arrays = Mapping[Any, Array]

NO_TOLERANCE = "recorded as a digest, which has no elements to hold a tolerance against"

_NO_WEIGHTS = ("output", "loss", "total norm")
"""Stages whose arrays are not shaped as the weights are."""


@dataclass(frozen=True)
class Part:
    """Some stages of a step, compared.

    Attributes:
        stages: What was found of them.
        pictured: How the first tensor that differs does, by its stage and name; empty
            if its values cannot be held side by side.
    """

    stages: list[StageResult]
    pictured: Mapping[tuple[str, str], Difference]

    @property
    def picture(self) -> Difference | None:
        """How the first tensor that differs does, if that can be shown."""
        return self.pictured.get(first_of(self.stages))


@dataclass(frozen=True)
class Assembly(ABC):
    """A part of a step on all sides.

    Attributes:
        step: As torch recorded it.
        run: What holds for the recorded run.
        sides: As the port computes it.
        bench: What it took to compute it.
        rule: By how much they may differ.
        failing: What differs, by stage and name.
    """

    step: Step
    run: Run
    sides: Sides[Any]
    bench: Bench
    rule: Rule
    failing: dict[tuple[str, str], Sample] = field(default_factory=dict, init=False)

    @abstractmethod
    def stages(self) -> Iterator[StageResult]:
        """Compare stage after stage."""

    def part(self) -> Part:
        """Compare the stages, and picture the first tensor that differs."""
        stages = [*self.stages()]
        first = first_of(stages)
        sample = self.failing.get(first)
        picture = None if sample is None else pictured(sample, self.rule)
        return Part(stages, {} if picture is None else {first: picture})

    @property
    def wide(self) -> Any:
        """The part as the port computes it in float64."""
        return self.sides.wide

    @property
    def alignment(self) -> Aligned:
        """Which array is which."""
        return self.bench.alignment

    @property
    def words(self) -> Words:
        """What the two sides are called."""
        return words_for(self.run.framework)

    def recorded(self, stage: str, arrays: Arrays) -> dict[str, Array | Known]:
        """Return arrays of a stage in their order, those known by digests with them."""
        found = found_in(self.step, RECORDED_AS[stage], arrays)
        order = {n: i for i, n in enumerate([*self.step.params, *self.step.buffers])}
        last = len(order)
        names = sorted(found, key=lambda n: order.get(_parameter(stage, n), last))
        return {name: found[name] for name in names}

    def frozen(self) -> dict[str, str]:
        """Say of which parameters no gradients are compared, and why."""
        why = f"takes no gradient in {self.words.recorded}"
        return dict.fromkeys(self.run.frozen, why)

    def with_absent(self, stage: str, grads: Arrays) -> dict[str, Array | Known]:
        """Give the parameters that torch has no gradient of one of zeros."""
        found = self.recorded(stage, grads)
        if not found:
            return {}
        return {
            name: found[name] if name in found else np.zeros_like(param)
            for name, param in self.step.params.items()
        }

    def absent(self, stage: str) -> str:
        """Say why a recording has nothing of a stage."""
        kept = RECORDED_AS[stage] in self.run.keep
        return f"{self.words.recorded} has none" if kept else "not recorded"

    def by_name(
        self,
        stage: str,
        recorded: Mapping[str, Array | Known],
        own: Callable[[Any], Mapping[Any, Any]],
        reasons: Mapping[str, str] | None = None,
        notes: Iterable[str] = (),
        grains: Callable[[str], Array | None] = lambda name: None,
        blind: Collection[str] = (),
    ) -> StageResult:
        """Compare arrays by torch's names.

        Args:
            stage: The stage.
            recorded: torch's, or what is known of them.
            own: Takes the port's from a side.
            reasons: Why some are not to be compared.
            notes: What else there is to say.
            grains: Returns by how much the elements of one may differ besides.
            blind: Of which of them noise leaves nothing, as their gradients were the
                port's own.
        """
        tensors: list[TensorResult] = []
        left = []
        started = own_gradients(self.step, stage, clips=self.bench.clips)
        found = own(self.wide)
        for name, array in recorded.items():
            module = ""
            if stage not in _NO_WEIGHTS:
                module = _parameter(stage, name).rpartition(".")[0]
            why = (reasons or {}).get(name, "")
            if not why and stage not in _NO_WEIGHTS:
                why = self.alignment.unknown(_parameter(stage, name))
            if not why and name in blind:
                why = BLIND
            if not why and isinstance(array, Known) and self.rule.rtol is not None:
                why = NO_TOLERANCE
            if why:
                left.append(NotCompared(name, why))
            elif name not in found:
                # Of a digest the shape and the dtype are there, which is enough here.
                known: Any = array
                tensors.append(self.missing(stage, name, torch=known, module=module))
            else:
                own_start = _parameter(stage, name) in started
                result = self.judged(
                    *(stage, name, module, array),
                    partial(_named, own=own, name=name),
                    grain=grains(name),
                    own_start=own_start,
                )
                if DROWNED in result.detail and own_start:
                    left.append(NotCompared(name, BLIND))
                else:
                    tensors.append(result)
        if not recorded:
            left.append(NotCompared("", self.absent(stage)))
        return self.stage(stage, tensors, left, [*notes, *remark(started)])

    def judged(
        self,
        stage: str,
        name: str,
        module: str,
        torch: Array | Known,
        own: Callable[[Any], Any],
        *,
        grain: Array | None = None,
        own_start: bool = False,
    ) -> TensorResult:
        """Judge an array by all sides of it.

        Args:
            stage: The stage.
            name: What to call it.
            module: The module that it belongs to.
            torch: As recorded, or what is known of it.
            own: Takes the port's from a side, or its error.
            grain: By how much its elements may differ besides.
            own_start: Whether the port started from other gradients than torch did, so
                that torch's digits are no measure for its.
        """
        rule = self.rule
        if own_start:
            rule = dataclasses.replace(rule, port_factor=math.inf)
        sides = self.sides
        # In the recording's order, which the port's need not be: faster to compare.
        narrow, wide = (
            np.asarray(_as(torch.dtype, own(side)), order="C")
            for side in (sides.narrow, sides.wide)
        )
        given = narrow, wide, grain, self.words, tuple(map(own, sides.draws))
        if isinstance(torch, Known):
            stand_in = wide if torch.dtype == np.float64 else narrow
            sample = Sample(name, module, stand_in, *given)
            return judged_by_digest(self.step.number, stage, torch, sample, rule)
        sample = Sample(name, module, torch, *given)
        result = judged(self.step.number, stage, sample, rule)
        if not result.passed:
            self.failing[stage, result.name] = sample
        return result

    def missing(
        self,
        stage: str,
        name: str,
        *,
        torch: Array | None = None,
        port: Array | None = None,
        module: str = "",
    ) -> TensorResult:
        """Refuse an array that one side alone has."""
        arrays = dict(zip(self.words.labels, (torch, port), strict=True))
        problem = Leaf(name, arrays).conflict("structure", lambda _: "an array")
        return refused(
            *(self.step.number, stage, name, problem),
            torch=torch,
            port=port,
            module=module,
            words=self.words,
        )

    def stage(
        self,
        stage: str,
        tensors: Iterable[TensorResult],
        left: Iterable[NotCompared] = (),
        notes: Iterable[str] = (),
    ) -> StageResult:
        """Return what was found of a stage, and what was left out."""
        return StageResult(self.step.number, stage, (*tensors,), (*left,), tuple(notes))


def first_of(stages: Iterable[StageResult]) -> tuple[str, str]:
    """Return stage and name of the first tensor that differs, empty if none does."""
    failures = ((t.stage, t.name) for stage in stages for t in stage.failures)
    return next(failures, ("", ""))


def _named(side: Any, own: Callable[[Any], Mapping[Any, Any]], name: str) -> Any:
    return own(side)[name]


def _parameter(stage: str, name: str) -> str:
    """Return the parameter of which a tensor is."""
    return name.rpartition("/")[0] if stage == "optimizer state" else name


def _as(dtype: Any, array: Array) -> Array:
    """Return a count in the dtype in which torch counts."""
    both = np.issubdtype(dtype, np.integer) and np.issubdtype(array.dtype, np.integer)
    counts = array.ndim == 0 and not is_float(array)
    return array.astype(dtype) if both or counts else array

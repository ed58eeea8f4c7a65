"""How the arrays of a stage are brought together and judged."""

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxclip.parity._comparison import Leaf
from jaxclip.parity._trace._records import Run
from jaxclip.parity._trace._step import Step
from jaxclip.parity._verify._aligned import Aligned
from jaxclip.parity._verify._difference import Difference, pictured
from jaxclip.parity._verify._digests import DROWNED, judged_by_digest
from jaxclip.parity._verify._known import Known, found_in
from jaxclip.parity._verify._own_gradients import BLIND, own_gradients, remark
from jaxclip.parity._verify._results import (
    RECORDED_AS,
    NotCompared,
    StageResult,
    TensorResult,
    judged,
    refused,
)
from jaxclip.parity._verify._samples import Rule, Sample, is_float
from jaxclip.parity._verify._sides import Side
from jaxclip.parity._verify._words import Words, words_for

Array = np.ndarray[Any, Any]
Arrays = Mapping[Any, Array]

NO_TOLERANCE = "recorded as a digest, which has no elements to hold a tolerance against"

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
    alignment: Aligned
    rule: Rule
    failing: dict[tuple[str, str], Sample] = field(default_factory=dict, init=False)

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

    def absent(self, stage: str) -> str:
        """Say why a recording has nothing of a stage."""
        kept = RECORDED_AS[stage] in self.run.keep
        return f"{self.words.recorded} has none" if kept else "not recorded"

    def by_name(
        self,
        stage: str,
        recorded: Mapping[str, Array | Known],
        own: Callable[[Side], Mapping[str, Any]],
        reasons: Mapping[str, str] | None = None,
        notes: Iterable[str] = (),
        grains: Arrays | None = None,
        blind: Collection[str] = (),
    ) -> StageResult:
        """Compare arrays by torch's names.

        Args:
            stage: The stage.
            recorded: torch's, or what is known of them.
            own: Takes the port's from a side.
            reasons: Why some are not to be compared.
            notes: What else there is to say.
            grains: By how much the elements may differ besides, by the same names.
            blind: Of which of them noise leaves nothing, as their gradients were the
                port's own.
        """
        tensors: list[TensorResult] = []
        left = []
        started = own_gradients(self.step, stage, clips=self.clips)
        for name, array in recorded.items():
            found = own(self.wide)
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
                narrow = [own(side)[name] for side in self.narrow]
                grain = (grains or {}).get(name)
                own_start = _parameter(stage, name) in started
                result = self.judged(
                    *(stage, name, module, array, narrow, found[name], grain),
                    own_start=own_start,
                )
                if DROWNED in result.detail and own_start:
                    left.append(NotCompared(name, BLIND))
                else:
                    tensors.append(result)
        if not recorded:
            left.append(NotCompared("", self.absent(stage)))
        return self.stage(stage, tensors, left, [*notes, *remark(started)])

    @property
    def clips(self) -> bool:
        """Whether the port's clip is given apart."""
        return self.wide.clipped is not None

    def judged(
        self,
        stage: str,
        name: str,
        module: str,
        torch: Array | Known,
        narrow: Sequence[Array],
        wide: Array,
        grain: Array | None = None,
        *,
        own_start: bool = False,
    ) -> TensorResult:
        """Judge an array by all sides of it.

        Args:
            stage: The stage.
            name: What to call it.
            module: The module that it belongs to.
            torch: As recorded, or what is known of it.
            narrow: As the port computes it in the recorded dtype.
            wide: The same in float64.
            grain: By how much its elements may differ besides.
            own_start: Whether the port started from other gradients than torch did, so
                that torch's digits are no measure for its.
        """
        rule = self.rule
        if own_start:
            rule = dataclasses.replace(rule, port_factor=math.inf)
        if stage in _KEPT:
            narrow = [_rounded(torch.dtype, array) for array in narrow]
        *few, exact = [_as(torch.dtype, array) for array in (*narrow, wide)]
        called = name or "output"
        if isinstance(torch, Known):
            stand_in = exact if torch.dtype == np.float64 else few[0]
            sample = Sample(called, module, stand_in, (*few,), exact, grain, self.words)
            return judged_by_digest(self.step.number, stage, torch, sample, rule)
        sample = Sample(called, module, torch, (*few,), exact, grain, self.words)
        result = judged(self.step.number, stage, sample, rule)
        if not result.passed:
            self.failing[stage, result.name] = sample
        return result

    def difference(self, result: TensorResult) -> Difference | None:
        """Draw how a tensor differs, if its values could be compared."""
        sample = self.failing.get((result.stage, result.name))
        return None if sample is None else pictured(sample, self.rule)

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


def _parameter(stage: str, name: str) -> str:
    """Return the parameter of which a tensor is."""
    return name.rpartition("/")[0] if stage == "optimizer state" else name


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

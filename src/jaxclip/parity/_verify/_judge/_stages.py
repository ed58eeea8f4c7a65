"""A recorded step, held against the port's part by part.

The first part is the call of the loss function with its gradient, the second the clip
and the optimizer. No more than one of them is in memory, in float64, in the recorded
dtype, and in one draw.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxclip.parity._trace._records import Run
from jaxclip.parity._trace._step import Step
from jaxclip.parity._verify._compute._bench import Bench
from jaxclip.parity._verify._compute._recorded import took_step
from jaxclip.parity._verify._compute._runs import Precision
from jaxclip.parity._verify._compute._sides import Called, Sides, Stepped
from jaxclip.parity._verify._judge._assembly import Part
from jaxclip.parity._verify._judge._call_stages import CallStages
from jaxclip.parity._verify._judge._rules import Rule
from jaxclip.parity._verify._judge._step_stages import StepStages
from jaxclip.parity._verify._report._results import STAGES

Unrecorded = Mapping[Precision, Any]
"""By run of the port, the gradients that the recording lacks."""


@dataclass(frozen=True)
class Comparing:
    """A recorded step, and what it takes to compare it.

    Attributes:
        step: The step.
        run: What holds for the recorded run.
        bench: What it takes to compute it.
        rule: By how much tensors may differ.
        draws: In how many runs what the port is given is changed.
    """

    step: Step
    run: Run
    bench: Bench
    rule: Rule
    draws: int

    def call(
        self, called: Callable[[Precision], Called] | None = None
    ) -> Sides[Called]:
        """Call the port's loss function in all precisions.

        Args:
            called: Calls it in one; by default as it is.
        """

        def plainly(precision: Precision) -> Called:
            return self.bench.called(self.step, precision)

        return self.bench.sides(self.step, called or plainly, self.draws)

    def unrecorded(self, sides: Sides[Called]) -> Unrecorded:
        """Return what the recording lacks of the gradients, for the second part."""
        runs = self.bench.precisions(self.draws)
        made = [sides.narrow, sides.wide, *sides.draws]
        return dict(zip(runs, (called.unrecorded for called in made), strict=True))

    def called(self, sides: Sides[Called]) -> CallStages:
        """Bring the first part together with the recording."""
        return CallStages(self.step, self.run, sides, self.bench, self._rule)

    def stepped(self, unrecorded: Unrecorded) -> StepStages:
        """Compute the second part, and bring it together with the recording."""

        def part(precision: Precision) -> Stepped:
            return self.bench.stepped(self.step, precision, unrecorded[precision])

        nothing = Stepped()
        sides = Sides(nothing, nothing, ())
        if took_step(self.step):
            sides = self.bench.sides(self.step, part, self.draws)
        return StepStages(self.step, self.run, sides, self.bench, self._rule)

    @property
    def _rule(self) -> Rule:
        if not self.bench.coarse:
            return self.rule
        # What torch keeps in float32 may be near the truth by luck.
        return dataclasses.replace(self.rule, port_factor=math.inf)


def joined(parts: Iterable[Part]) -> Part:
    """Join parts of a step, the stages in their order."""
    parts = [*parts]
    stages = [stage for part in parts for stage in part.stages]
    return Part(
        sorted(stages, key=lambda stage: STAGES.index(stage.stage)),
        {place: each for part in parts for place, each in part.pictured.items()},
    )

"""The stages that come of the clip and the optimizer."""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxclip.parity._verify._compute._known import Known, change
from jaxclip.parity._verify._compute._recorded import (
    AT_START,
    as_precise,
    named_state,
    state_at_start,
    took_step,
)
from jaxclip.parity._verify._judge._assembly import Assembly
from jaxclip.parity._verify._judge._judging import refused
from jaxclip.parity._verify._judge._norms import explained, inaccuracy
from jaxclip.parity._verify._judge._own_gradients import (
    grain_of,
    is_blind,
    own_gradients,
)
from jaxclip.parity._verify._report._results import NotCompared, StageResult

Array = np.ndarray[Any, Any]

_STAGES = (
    *("total norm", "clipped gradients", "update"),
    *("optimizer state", "parameters after"),
)

_NO_STEP = "the optimizer's state does not fit"

_UNCOUNTED = "nothing in the port's optimizer counts steps"


class StepStages(Assembly):
    """What a port's clip and its optimizer make, held against a recording."""

    def stages(self) -> Iterator[StageResult]:
        """Compare stage after stage."""
        if not took_step(self.step):
            yield from self._skipped()
            return
        yield self._total_norm()
        yield self._clipped()
        yield self._update()
        yield self._optimizer_state()
        yield self._after()

    def _skipped(self) -> Iterator[StageResult]:
        why = (
            f"{self.words.recorded}'s optimizer took no step, or what it left was not "
            "recorded"
        )
        for stage in _STAGES:
            yield self.stage(stage, (), [NotCompared("", why)])

    def _total_norm(self) -> StageResult:
        recorded = self.step.total_norm
        if recorded is None:
            why = f"{self.words.recorded}'s loop took no norm"
        elif self.wide.total_norm is None:
            why = "the port's clip keeps no norm, as those of jaxclip do"
        else:
            result = self.by_name(
                "total norm",
                {"total norm": recorded},
                lambda side: {"total norm": side.total_norm},
            )
            grads = self.recorded("gradients", self.step.grads)
            return explained(result, recorded, self.wide.total_norm, grads, self.words)
        return self.stage("total norm", (), [NotCompared("", why)])

    def _clipped(self) -> StageResult:
        final = self.recorded("clipped gradients", self.step.final_grads)
        if not final:
            why = self.absent("clipped gradients")
        elif self.wide.clipped is None:
            why = "the port's clip, if it has one, is in a chain: give it as clip="
        else:
            return self.by_name(
                "clipped gradients",
                self._as_if_normed(final),
                lambda side: side.clipped or {},
                self.frozen(),
            )
        return self.stage("clipped gradients", (), [NotCompared("", why)])

    def _as_if_normed(
        self, clipped: Mapping[str, Array | Known]
    ) -> dict[str, Array | Known]:
        """Undo what an inaccurate norm of torch's does to what is clipped by it."""
        share = 1.0
        grads = self.recorded("gradients", self.step.grads)
        if self.step.total_norm is not None and any(
            not _equal(clipped[name], grad)
            for name, grad in grads.items()
            if name in clipped
        ):
            share = inaccuracy(self.step.total_norm, self.wide.total_norm, grads)
        found = self.with_absent("clipped gradients", self.step.final_grads)
        if share == 1.0:
            return found
        return {
            name: array.scaled(share)
            if isinstance(array, Known)
            else (array.astype(np.float64) * share).astype(array.dtype)
            for name, array in found.items()
        }

    def _update(self) -> StageResult:
        before = self.step.params
        after = as_precise(self.step, self.recorded("update", self.step.params_after))
        recorded = {
            name: change(array, before[name])
            if isinstance(array, Known)
            else (array.astype(np.float64) - before[name].astype(np.float64)).astype(
                array.dtype
            )
            for name, array in after.items()
        }
        doubts, blind = self._doubts("update", after)

        def grain(name: str) -> Array:
            half = self._half_ulps(name, after[name])
            return np.maximum(half, doubts[name]) if name in doubts else half

        return self.by_name(
            "update",
            recorded,
            lambda side: side.update,
            self._without_step(),
            grains=grain,
            blind=blind,
        )

    def _after(self) -> StageResult:
        after = as_precise(
            self.step, self.recorded("parameters after", self.step.params_after)
        )
        doubts, blind = self._doubts("parameters after", after)
        return self.by_name(
            "parameters after",
            after,
            lambda side: side.params,
            self._without_step(),
            grains=doubts.get,
            blind=blind,
        )

    def _half_ulps(self, name: str, after: Array | Known) -> Array:
        """Return to what a parameter was rounded."""
        eps = float(jnp.finfo(after.dtype).eps)
        if isinstance(after, Known):  # the port's is as large
            array: Array = self.wide.params.get(name, np.zeros(after.shape))
        else:
            array = after
        return np.abs(array.astype(np.float64)) * eps / 2

    def _doubts(
        self, stage: str, names: Collection[str]
    ) -> tuple[dict[str, Array], list[str]]:
        """Return by what the port's own gradients leave in doubt, and where all is."""
        if self._problems:
            return {}, []
        doubts = {
            name: grain_of(name, self.sides, self.rule)
            for name in own_gradients(self.step, stage, clips=self.bench.clips)
            if name in names and name in self.wide.update
        }
        blind = [
            name
            for name, grain in doubts.items()
            if is_blind(grain, self.wide.update[name], self.rule)
        ]
        return doubts, blind

    @property
    def _problems(self) -> tuple[str, ...]:
        problems: tuple[str, ...] = self.wide.problems
        return problems or self.sides.narrow.problems

    def _without_step(self) -> dict[str, str]:
        return {name: _NO_STEP for name in self.step.params if self._problems}

    def _optimizer_state(self) -> StageResult:
        if self._problems:
            tensors = [
                refused(self.step.number, "optimizer state", "optimizer", problem)
                for problem in self._problems
            ]
            return self.stage("optimizer state", tensors)
        at_start = self._kept(state_at_start(self.step), lambda side: side.at_start)
        kept = named_state(self.step.opt_state_after)
        recorded = self.recorded("optimizer state", kept)
        result = self._kept(recorded, lambda side: side.kept)
        extra = [
            self.missing("optimizer state", name, port=array)
            for name, array in self.wide.kept.items()
            if name not in recorded and not self.alignment.is_alias(name)
        ]
        return self.stage(
            *("optimizer state", [*at_start.tensors, *result.tensors, *extra]),
            *(result.not_compared, result.notes),
        )

    def _kept(
        self,
        recorded: Mapping[str, Array | Known],
        own: Callable[[Any], Mapping[str, Any]],
    ) -> StageResult:
        """Compare what an optimizer keeps; of what is frozen it need not keep it."""
        frozen, held = self.frozen(), own(self.wide)
        reasons = {
            name: frozen.get(name.rpartition("/")[0], _UNCOUNTED)
            for name in {*recorded} - {*held}
            if _is_count(name) or name.rpartition("/")[0] in frozen
        }
        return self.by_name("optimizer state", _counted(recorded), own, reasons)


def _counted(kept: Mapping[str, Array | Known]) -> dict[str, Array | Known]:
    """Return what an optimizer keeps, its counts in integers: torch's are floats."""
    return {
        name: array.astype(np.int64)
        if _is_count(name) and not isinstance(array, Known)
        else array
        for name, array in kept.items()
    }


def _is_count(name: str) -> bool:
    return name.removesuffix(AT_START).endswith("/step")


def _equal(one: Array | Known, other: Array | Known) -> bool:
    if isinstance(one, Known):
        return isinstance(other, Known) and np.array_equal(
            one.projections, other.projections
        )
    return not isinstance(other, Known) and np.array_equal(one, other)

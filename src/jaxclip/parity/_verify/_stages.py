"""The stages of a recorded step, each held against the port's."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxclip.parity._verify._alignment import Place
from jaxclip.parity._verify._assembly import NO_TOLERANCE, Assembly
from jaxclip.parity._verify._known import Known, change, read
from jaxclip.parity._verify._norms import explained, inaccuracy
from jaxclip.parity._verify._own_gradients import grain_of, is_blind, own_gradients
from jaxclip.parity._verify._replay import Remark
from jaxclip.parity._verify._results import (
    NotCompared,
    StageResult,
    TensorResult,
    refused,
)
from jaxclip.parity._verify._sides import as_precise, stepped

Array = np.ndarray[Any, Any]
Arrays = Mapping[Any, Array]

_NO_STEP = "the optimizer's state does not fit"
_NO_OUTPUT = "loss_fn returns no such output"


class Comparing(Assembly):
    """A step on all sides, and the comparison of its stages."""

    def stages(self) -> Iterator[StageResult]:
        """Compare stage after stage."""
        yield self._weights()
        yield self._activations()
        yield self._output()
        yield self._loss()
        yield self._gradients()
        if not stepped(self.step):
            skipped = ("total norm", "clipped gradients", "update", "optimizer state")
            why = (
                f"{self.words.recorded}'s optimizer took no step, or what it left was "
                "not recorded"
            )
            for stage in (*skipped, "parameters after"):
                yield self.stage(stage, (), [NotCompared("", why)])
        else:
            yield self._total_norm()
            yield self._clipped()
            yield self._update()
            yield self._optimizer_state()
            yield self._after()
        yield self.by_name(
            "buffers after",
            self.recorded("buffers after", self.step.buffers_after),
            lambda side: side.buffers,
        )

    def _weights(self) -> StageResult:
        untied = [
            f"{' and '.join(map(repr, names))} are one parameter in "
            f"{self.words.recorded}, and "
            f"{len(names)} in the port"
            for names in self.alignment.untied
        ]
        recorded = {**self.step.params, **self.step.buffers}
        return self.by_name("weights", recorded, lambda side: side.weights, {}, untied)

    def _activations(self) -> StageResult:
        left = dict(self.wide.unseen)
        tensors: list[TensorResult] = []
        remarks = [*self.wide.remarks]
        for activation in self.step.activations:
            tensors += self._drawn_otherwise(remarks, activation.module)
            place = Place(activation.module, activation.call, activation.output)
            if activation.module in left:
                continue
            held = activation.digest
            recorded = activation.array if held is None else read(held)
            if isinstance(recorded, Known) and self.rule.rtol is not None:
                left[str(place)] = NO_TOLERANCE
                continue
            if place not in self.wide.activations:
                left[str(place)] = "the port's module returns no such array"
                continue
            tensors.append(
                self.judged(
                    *("activations", str(place), activation.module, recorded),
                    [side.activations[place] for side in self.narrow],
                    self.wide.activations[place],
                )
            )
        if not self.step.activations:
            left[""] = self.absent("activations")
        tensors += self._drawn_otherwise(remarks)
        types = {call.module: call.type for call in self.step.activations}
        return self.stage(
            "activations",
            tensors,
            [
                NotCompared(f"{name} ({types[name]})" if name in types else name, why)
                for name, why in left.items()
            ],
            [remark.text for remark in remarks],
        )

    def _drawn_otherwise(
        self, remarks: list[Remark], module: str | None = None
    ) -> Iterator[TensorResult]:
        """Take out what differs in how it is drawn, of a dropout or of all."""
        for remark in [*remarks]:
            if remark.wrong and module in (None, remark.module):
                remarks.remove(remark)
                where = remark.module
                yield refused(
                    *(self.step.number, "activations", f"mask of {where}", remark.text),
                    module=where,
                )

    def _output(self) -> StageResult:
        calls = self._outputs()
        if len(calls) != 1:
            times = len(calls)
            why = (
                f"the model was called {times} times"
                if times
                else self.absent("output")
            )
            return self.stage("output", (), [NotCompared("", why)])
        if self.wide.outputs is None:
            why = "loss_fn returns the loss alone: let it return (loss, outputs)"
            return self.stage("output", (), [NotCompared("", why)])
        [recorded] = calls
        # A port may return a part, but not something else.
        own = self.wide.outputs
        reasons = {name: _NO_OUTPUT for name in recorded if name not in own}
        return self.by_name(
            "output",
            recorded,
            lambda side: side.outputs or {},
            reasons if {*own} & {*recorded} else {},
        )

    def _outputs(self) -> list[dict[str, Array | Known]]:
        """Return what the model returned in each call, digests with the rest."""
        digests: dict[str, dict[str, Array | Known]] = {}
        for name, held in self.step.digests.get("outputs", {}).items():
            call, _, place = name.partition("/")
            digests.setdefault(call, {})[place] = read(held)
        whole: list[dict[str, Array | Known]] = [{**each} for each in self.step.outputs]
        if len(whole) > 1 or not digests.keys() <= {"0"}:
            return [*whole, *digests.values()]
        only = [item for part in (*whole, *digests.values()) for item in part.items()]
        return [dict(only)] if only else []

    def _loss(self) -> StageResult:
        if not self.step.loss:
            return self.stage("loss", (), [NotCompared("", self.absent("loss"))])
        [first, *others] = self.step.loss
        # backward adds up gradients: they are those of the sum.
        loss = sum((o.astype(np.float64) for o in others), first.astype(np.float64))
        recorded = {"loss": np.asarray(loss, first.dtype) if others else first}
        return self.by_name("loss", recorded, lambda side: {"loss": side.loss})

    def _gradients(self) -> StageResult:
        return self.by_name(
            "gradients",
            self._with_absent("gradients", self.step.grads),
            lambda side: side.grads,
            self._frozen(),
        )

    def _frozen(self) -> dict[str, str]:
        why = f"takes no gradient in {self.words.recorded}"
        return dict.fromkeys(self.run.frozen, why)

    def _with_absent(self, stage: str, grads: Arrays) -> dict[str, Array | Known]:
        """Give the parameters that torch has no gradient of one of zeros."""
        found = self.recorded(stage, grads)
        if not found:
            return {}
        return {
            name: found[name] if name in found else np.zeros_like(param)
            for name, param in self.step.params.items()
        }

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
                self._frozen(),
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
        return {
            name: array.scaled(share)
            if isinstance(array, Known)
            else (array.astype(np.float64) * share).astype(array.dtype)
            for name, array in self._with_absent(
                "clipped gradients", self.step.final_grads
            ).items()
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
        rounded = {name: self._half_ulps(name, array) for name, array in after.items()}
        return self.by_name(
            "update",
            recorded,
            lambda side: side.update,
            self._without_step(),
            grains={
                name: np.maximum(half, doubts.get(name, 0.0))
                for name, half in rounded.items()
            },
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
            grains=doubts,
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
            name: grain_of(name, self.narrow, self.wide, self.rule)
            for name in own_gradients(self.step, stage, clips=self.clips)
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
        return self.wide.problems or self.narrow[0].problems

    def _without_step(self) -> dict[str, str]:
        return {name: _NO_STEP for name in self.step.params if self._problems}

    def _optimizer_state(self) -> StageResult:
        if self._problems:
            tensors = [
                refused(self.step.number, "optimizer state", "optimizer", problem)
                for problem in self._problems
            ]
            return self.stage("optimizer state", tensors)
        kept = {
            f"{name}/{key}": array
            for name, own in self.step.opt_state_after.items()
            for key, array in own.items()
        }
        recorded = {
            # torch counts steps in floats.
            name: array.astype(np.int64)
            if name.endswith("/step") and not isinstance(array, Known)
            else array
            for name, array in self.recorded("optimizer state", kept).items()
        }
        result = self.by_name("optimizer state", recorded, lambda side: side.kept)
        extra = [
            self.missing("optimizer state", name, port=array)
            for name, array in self.wide.kept.items()
            if name not in recorded and not self.alignment.is_alias(name)
        ]
        return self.stage(
            *("optimizer state", [*result.tensors, *extra]),
            *(result.not_compared, result.notes),
        )


def _equal(one: Array | Known, other: Array | Known) -> bool:
    if isinstance(one, Known) and isinstance(other, Known):
        return np.array_equal(one.projections, other.projections)
    both = not isinstance(one, Known) and not isinstance(other, Known)
    return both and np.array_equal(one, other)  # type: ignore[arg-type]

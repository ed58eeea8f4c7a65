"""The stages that come of calling the loss function and differentiating it."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from jaxclip.parity._verify._alignment._places import Place
from jaxclip.parity._verify._compute._known import Known, outputs_in, read
from jaxclip.parity._verify._compute._recorded import total_loss
from jaxclip.parity._verify._compute._sides import Called
from jaxclip.parity._verify._judge._assembly import NO_TOLERANCE, Assembly
from jaxclip.parity._verify._judge._flattened import flattened_otherwise
from jaxclip.parity._verify._judge._judging import refused
from jaxclip.parity._verify._judge._running_variance import is_biased
from jaxclip.parity._verify._judge._summed import grain_of_sum
from jaxclip.parity._verify._random._drawn import Remark, place_of
from jaxclip.parity._verify._report._results import (
    NotCompared,
    StageResult,
    TensorResult,
)

Array = np.ndarray[Any, Any]

_BIASED = (
    "the port takes the biased variance of a batch, over n, and torch that over n - 1, "
    "as jaxclip.models.BatchNorm does"
)

_UNTRAINED = "the port holds it, but as no parameter, so that it is not trained"

_NO_OUTPUT = "loss_fn returns no such output"


def _is_within(module: str, outer: str) -> bool:
    return outer in ("", module) or module.startswith(f"{outer}.")


def _activation(side: Called, place: Place) -> Array:
    return side.activations[place]


class CallStages(Assembly):
    """What a port's loss function and its gradient give, held against a recording."""

    def stages(self) -> Iterator[StageResult]:
        """Compare stage after stage."""
        yield self._weights()
        yield self._activations()
        yield self._output()
        yield self._loss()
        yield self._gradients()
        yield self._buffers()

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
            result = self.judged(
                *("activations", str(place), activation.module, recorded),
                partial(_activation, place=place),
            )
            if not result.passed:
                port = self.wide.activations[place]
                hint = flattened_otherwise(self.step, activation, port)
                hint = hint or self._drawn_within(remarks, activation.module)
                result = replace(result, hint=hint or result.hint)
            tensors.append(result)
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

    def _drawn_within(self, remarks: list[Remark], module: str) -> str:
        """Say what the two drew each for itself, in a module or around it."""
        for remark in remarks:
            if _is_within(module, remark.module):
                return remark.text
        for path in self.step.unexplained_draws:
            if _is_within(module, path):
                return f"torch drew numbers in {place_of(path)} that are not recorded"
        return ""

    def _drawn_otherwise(
        self, remarks: list[Remark], module: str | None = None
    ) -> Iterator[TensorResult]:
        """Take out what differs in how it is drawn, of a dropout or of all."""
        for remark in [*remarks]:
            if remark.wrong and module in (None, remark.module):
                remarks.remove(remark)
                name = f"mask of {remark.module or 'the model'}"
                yield refused(
                    *(self.step.number, "activations", name, remark.text),
                    module=remark.module,
                )

    def _output(self) -> StageResult:
        calls = len(self.step.outputs)
        why = self.absent("output")
        if calls == 1:
            why = "loss_fn returns the loss alone: let it return (loss, outputs)"
        elif calls:
            why = (
                f"the model was called {calls} times: let loss_fn return (loss, "
                "outputs), a list of what each call returned"
            )
        own = self.wide.outputs
        if not calls or own is None:
            return self.stage("output", (), [NotCompared("", why)])
        recorded = outputs_in(self.step)
        # A port may return a part, but not something else.
        reasons = {name: _NO_OUTPUT for name in recorded if name not in own}
        return self.by_name(
            "output",
            recorded,
            lambda side: side.outputs or {},
            reasons if {*own} & {*recorded} else {},
        )

    def _loss(self) -> StageResult:
        loss = total_loss(self.step)
        if loss is None:
            return self.stage("loss", (), [NotCompared("", self.absent("loss"))])
        return self.by_name("loss", {"loss": loss}, lambda side: {"loss": side.loss})

    def _gradients(self) -> StageResult:
        found = self.by_name(
            "gradients",
            self.with_absent("gradients", self.step.grads),
            lambda side: side.grads,
            self.frozen(),
            grains=self._summed,
        )
        tensors = (
            replace(tensor, hint=_UNTRAINED)
            if tensor.name in self.wide.buffers
            else tensor
            for tensor in found.tensors
        )
        return replace(found, tensors=(*tensors,))

    def _summed(self, name: str) -> Array | None:
        own = self.wide.grads.get(name)
        return None if own is None else grain_of_sum(name, own, self.step, self.run)

    def _buffers(self) -> StageResult:
        recorded = self.recorded("buffers after", self.step.buffers_after)
        found = self.by_name("buffers after", recorded, lambda side: side.buffers)
        passed = {tensor.name for tensor in found.tensors if tensor.passed}
        tensors = (
            replace(tensor, hint=_BIASED)
            if self._lacks_bias(tensor, passed)
            else tensor
            for tensor in found.tensors
        )
        return replace(found, tensors=(*tensors,))

    def _lacks_bias(self, tensor: TensorResult, passed: set[str]) -> bool:
        """Say whether all that a running variance lacks is torch's correction."""
        module, _, name = tensor.name.rpartition("running_")
        # With another momentum the mean would differ, too.
        if name != "var" or tensor.passed or f"{module}running_mean" not in passed:
            return False
        step = self.step
        sides = (
            buffers.get(tensor.name)
            for buffers in (step.buffers, step.buffers_after, self.wide.buffers)
        )
        before, torch, port = sides
        if before is None or torch is None or port is None:
            return False
        return is_biased(before, torch, port)

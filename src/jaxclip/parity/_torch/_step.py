"""One recorded step: what its calls are told to, and what it leaves to be written."""

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from jaxclip.parity._torch._changes import Change
from jaxclip.parity._torch._describe import Names
from jaxclip.parity._torch._forward import ForwardPass, type_name
from jaxclip.parity._torch._random import Generators
from jaxclip.parity._torch._tensors import Array, copied, viewed
from jaxclip.parity._torch._values import (
    Arrays,
    batch_arrays,
    buffer_arrays,
    gradients,
    hyperparameters,
    parameter_arrays,
    renewed,
    state_arrays,
    weight_decay,
)
from jaxclip.parity._trace._mistakes import Mistakes
from jaxclip.parity._trace._records import Event, StepRecord


class RecordedStep:
    """A step that is being recorded.

    Args:
        number: Its number.
        batch: The batch, by name.
        model: The model.
        optimizer: The optimizer.
        names: The names of the parameters.
        keep: The stages to copy.
        wanted: Says of the path of a module whether its activations are copied.
        mistakes: What watches the events.

    Attributes:
        forward: What happens in the modules of the model.
        optimizer_steps: How many steps the optimizer took so far.
    """

    def __init__(
        self,
        number: int,
        batch: Mapping[str, Any],
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        names: Names,
        keep: frozenset[str],
        wanted: Callable[[str], bool],
        mistakes: Mistakes,
    ) -> None:
        """Copy what there is before the step."""
        self._number = number
        self._model = model
        self._optimizer = optimizer
        self._names = names
        self._keep = keep
        self._mistakes = mistakes
        self._seen_before = len(mistakes.found)
        mistakes.begin(number)
        self.optimizer_steps = 0
        self._events: list[Event] = []
        self._hyperparameters = hyperparameters(optimizer)
        # The losses as they were before a scaler, by the scaled ones.
        self._unscaled: MutableMapping[Tensor, Tensor] = WeakTensorKeyDictionary()
        self._losses: list[Array] = []
        # Each with the identities of what it clipped.
        self._clips_of_others: list[tuple[Event, set[int]]] = []
        self._stages: dict[str, Arrays] = {}
        # Copies of the gradients, up to date as of the last event; none before any.
        self._gradients: Arrays = {}
        self._keep_stage("batch", lambda: batch_arrays(batch))
        self._keep_stage("params", lambda: parameter_arrays(names))
        # The last copies of the parameters, if they are kept.
        self._parameters = self._stages.get("params")
        self._keep_stage("buffers", lambda: buffer_arrays(model))
        self._keep_stage("opt_state", lambda: state_arrays(names, optimizer))
        self.forward = ForwardPass(
            model, keep, wanted, Generators(model), self._happened
        )

    def _keep_stage(self, stage: str, make: Callable[[], Arrays]) -> None:
        if stage in self._keep:
            self._stages[stage] = make()

    def _happened(self, event: Event) -> None:
        self._events.append(event)
        self._mistakes.see(event)

    # What the loop calls

    @contextmanager
    def backward(self, tensors: Any, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Copy the losses before, and the gradients after."""
        roots = [tensors] if isinstance(tensors, Tensor) else [*tensors]
        losses = [copied(self._unscaled.get(root, root)) for root in roots]
        left = self._left()
        with self.forward.undisturbed():
            yield
        self._happened(
            Event(
                "backward",
                {
                    "values": [x.item() for x in losses if x.size == 1],
                    "finite": all(np.isfinite(x).all() for x in losses),
                    "left": left,
                },
            )
        )
        self._losses += losses
        if self._keeps_gradients:
            live = gradients(self._names)
            self._gradients = {name: copied(grad) for name, grad in live.items()}
            self._keep_stage("grads", lambda: self._gradients)

    def _left(self) -> tuple[str, ...]:
        """Name gradients that are there already, but for those made by hand."""
        grads = gradients(self._names)
        left = {name: grad for name, grad in grads.items() if viewed(grad).any()}
        if not self._mistakes.spent:
            return tuple(left)
        zeros = {name: np.zeros_like(viewed(grad)) for name, grad in left.items()}
        _, changed, how = renewed(zeros, left, self._names.parameters)
        if how is None or how.how != "decayed":
            return tuple(left)
        self._changed("grads_changed", changed, how)
        return ()

    @property
    def _keeps_gradients(self) -> bool:
        return not self._keep.isdisjoint(("grads", "final_grads"))

    def settle_gradients(self, *, by_hand: bool = True) -> None:
        """Bring the copies of the gradients up to date."""
        if not self._keeps_gradients:
            return
        self._gradients, changed, how = renewed(
            self._gradients, gradients(self._names), self._names.parameters
        )
        # Before the first backward pass there is nothing to tell a change from.
        if by_hand and how is not None and self._losses:
            self._changed("grads_changed", changed, how)

    def _changed(self, kind: str, names: Iterable[str], how: Change) -> None:
        details = {
            "how": how.how,
            "factor": how.factor,
            "params": (*names,),
            "weight_decay": weight_decay(self._names, names),
        }
        self._happened(Event(kind, details))

    @contextmanager
    def clip(
        self, kind: str, parameters: Any, details: dict[str, Any]
    ) -> Iterator[Callable[[Any], None]]:
        """Look at the gradients before and after a clip."""
        self.settle_gradients()
        owned = {id(p) for _, _, p in self._names.of_optimizer()}
        own = [self._names.of(p) for p in parameters if id(p) in owned]
        others = [self._names.of(p) for p in parameters if id(p) not in owned]

        def told(total_norm: Tensor | None) -> None:
            if total_norm is not None:
                details["total_norm"] = total_norm.item()
                self._keep_stage("total_norm", lambda: {"": copied(total_norm)})
            event = Event(kind, {**details, "own": own, "others": others})
            if not own:
                self._clips_of_others.append((event, {*map(id, parameters)}))
            self._happened(event)
            self.settle_gradients(by_hand=False)

        yield told

    def step_of_other(self, optimizer: torch.optim.Optimizer) -> None:
        """Note which clips were of another optimizer's parameters."""
        its = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self._clips_of_others = [
            (event, clipped)
            for event, clipped in self._clips_of_others
            if clipped.isdisjoint(its)
        ]

    def zero_grad(self, owner: object) -> None:
        """Note that the gradients were zeroed."""
        self._happened(Event("zero_grad", {"by": type_name(owner)}))

    def scale(self, loss: Any, scaled: Any, factor: float) -> None:
        """Note what was scaled, and keep the loss as it was."""
        if isinstance(loss, Tensor) and isinstance(scaled, Tensor):
            self._unscaled[scaled] = loss.detach()
        self._happened(Event("scale", {"factor": factor}))

    def unscale(self) -> None:
        """Note that the scaler divided the gradients."""
        self._happened(Event("unscale", {}))
        self.settle_gradients(by_hand=False)

    def scheduler_step(self, scheduler: object) -> None:
        """Note that a scheduler set the learning rates."""
        self._happened(Event("scheduler_step", {"scheduler": type_name(scheduler)}))

    def step_skipped(self) -> None:
        """Note that the scaler left the optimizer's step out."""
        self._happened(Event("optimizer_step_skipped", {}))

    def before_optimizer(self) -> None:
        """Read what the optimizer is about to use, but for the gradients."""
        self._hyperparameters = hyperparameters(self._optimizer)
        self._settle_parameters()

    def use_gradients(self) -> None:
        """Copy the gradients that the optimizer is about to use."""
        self.settle_gradients()
        self._keep_stage("final_grads", lambda: self._gradients)

    def after_optimizer(self, *, closure: bool) -> None:
        """Copy what the optimizer made."""
        without = [
            name
            for _, name, parameter in self._names.of_optimizer()
            if parameter.requires_grad and parameter.grad is None
        ]
        details = {"closure": closure, "without_gradient": without}
        self._happened(Event("optimizer_step", details))
        self.optimizer_steps += 1
        self._copy_results()
        self._parameters = self._stages.get("params_after")

    def _copy_results(self) -> None:
        self._keep_stage("params_after", lambda: parameter_arrays(self._names))
        self._keep_stage(
            "opt_state_after", lambda: state_arrays(self._names, self._optimizer)
        )

    def _settle_parameters(self) -> None:
        """Note whether the parameters are other ones than those copied last."""
        if self._parameters is not None:
            params = self._names.parameters
            self._parameters, changed, how = renewed(self._parameters, params, params)
            if how is not None:
                self._changed("params_changed", changed, how)

    # What is written

    def finish(self) -> tuple[StepRecord, dict[str, Arrays]]:
        """Copy what there is after the step, and return all of it."""
        self._settle_parameters()
        for event, _ in self._clips_of_others:
            self._mistakes.see_clip_of_others(event)
        if self.optimizer_steps == 0:
            self._copy_results()
        self._keep_stage("buffers_after", lambda: buffer_arrays(self._model))
        self._keep_stage("outputs", lambda: self.forward.outputs)
        self._keep_stage("loss", lambda: _numbered(self._losses))
        calls = {
            "activations": self.forward.activations,
            "masks": self.forward.masks,
            "draws": self.forward.draws,
        }
        for stage, found in calls.items():
            self._stages[stage] = _numbered(array for _, array in found)
        where = {stage: tuple(w for w, _ in found) for stage, found in calls.items()}
        record = StepRecord(
            number=self._number,
            events=tuple(self._events),
            hyperparameters=self._hyperparameters,
            unexplained_draws=tuple(self.forward.unexplained),
            warnings=tuple(self._mistakes.found[self._seen_before :]),
            **where,
        )
        return record, self._stages


def _numbered(arrays: Iterable[Array]) -> Arrays:
    return {str(index): array for index, array in enumerate(arrays)}

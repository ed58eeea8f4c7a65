"""Recording a training loop of torch while it runs."""

from collections.abc import Callable, Iterator
from contextlib import (
    AbstractContextManager,
    ExitStack,
    contextmanager,
    nullcontext,
)
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from jaxclip.parity._torch._describe import Names, describe
from jaxclip.parity._torch._step import RecordedStep
from jaxclip.parity._torch._watch import watching
from jaxclip.parity._trace._mistakes import Mistakes
from jaxclip.parity._trace._options import Options
from jaxclip.parity._trace._records import LoopWarning
from jaxclip.parity._trace._writer import TraceWriter


def check(model: Any, optimizer: Any) -> None:
    """Raise an error if a model or an optimizer cannot be recorded."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model is a {type(model).__name__}; it must be an nn.Module, whose "
            "modules and parameters have names."
        )
    if hasattr(model, "_orig_mod"):
        raise ValueError(
            "model is the result of torch.compile, whose modules are not called one by "
            "one: record the module that was compiled."
        )
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer is a {type(optimizer).__name__}; it must be a "
            "torch.optim.Optimizer."
        )


class Recording:
    """A training loop that is being recorded; `record` makes it.

    Attributes:
        path: The folder that it is written to.
    """

    def __init__(
        self,
        path: Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        schedulers: tuple[Any, ...],
        options: Options,
    ) -> None:
        """Keep what to record, and how."""
        self.path = path
        self._model = model
        self._optimizer = optimizer
        self._schedulers = schedulers
        self._options = options
        self._names = Names(model, optimizer)
        self._mistakes = Mistakes()
        self._number = 0
        self._step: RecordedStep | None = None
        # Watching every kernel takes time, which a loop that draws nothing need not.
        self._draws = True
        self._clipping = self._scheduling = False
        self._stack = ExitStack()

    @property
    def warnings(self) -> tuple[LoopWarning, ...]:
        """The mistakes of the loop so far, each kind with the first step it is in."""
        return (*self._mistakes.found,)

    def __enter__(self) -> Self:
        """Begin to write, and to watch."""
        self._names = Names(self._model, self._optimizer)
        run = describe(
            self._model,
            self._optimizer,
            self._schedulers,
            self._names,
            keep=self._options.keep,
            every=self._options.every,
        )
        self._writer = TraceWriter(self.path, run, **self._options.files)
        with ExitStack() as stack:
            stack.enter_context(watching(self, self._schedulers))
            optimizer = self._optimizer
            before = optimizer.register_step_pre_hook(self._before_optimizer)
            stack.callback(before.remove)
            stack.callback(register_optimizer_step_pre_hook(self._before_any).remove)
            after = optimizer.register_step_post_hook(self._after_optimizer)
            stack.callback(after.remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop watching; say that the run is whole if nothing was raised."""
        self._stack.close()
        if kind is None:
            late = self._mistakes.at_end()
            self._writer.finish(late)
            self._mistakes.found += late

    @contextmanager
    def step(self, /, **batch: Any) -> Iterator[None]:
        """Record a step of the loop, which runs inside this context.

        Args:
            **batch: The batch, by the names that the JAX side will know it by:
                tensors, arrays, numbers, and tuples, lists and mappings of them.

        Raises:
            TypeError: If something in the batch is nothing of the kind.
            RuntimeError: If the last step has not ended yet.
        """
        if self._step is not None:
            raise RuntimeError("run.step() within run.step(): a step has no steps.")
        number = self._number
        self._number += 1
        if number % self._options.every:
            yield
            return
        self._step = step = RecordedStep(
            number,
            batch,
            model=self._model,
            optimizer=self._optimizer,
            names=self._names,
            keep=self._options.stages,
            wanted=self._options.wanted,
            mistakes=self._mistakes,
        )
        try:
            with step.forward.hooked(kernels=self._draws):
                yield
            self._draws = step.forward.draws_by_functions
            self._writer.add(*step.finish())
        finally:
            self._step = None

    # What the loop calls, if it calls it for this optimizer in a recorded step

    def _before_any(
        self, optimizer: torch.optim.Optimizer, args: Any, kwargs: dict[str, Any]
    ) -> None:
        if self._step is not None and optimizer is not self._optimizer:
            self._step.step_of_other(optimizer)

    def _before_optimizer(
        self, optimizer: torch.optim.Optimizer, args: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]] | None:
        step = self._step
        if step is None:
            return None
        step.before_optimizer()
        closure, put = _closure(args, kwargs)
        if closure is None:
            step.use_gradients()
            return None

        def watched() -> Any:
            loss = closure()
            step.use_gradients()
            return loss

        return put(watched)

    def _after_optimizer(
        self, optimizer: torch.optim.Optimizer, args: Any, kwargs: dict[str, Any]
    ) -> None:
        if self._step is None:
            self._mistakes.spent = True
        else:
            closure, _ = _closure(args, kwargs)
            self._step.after_optimizer(closure=closure is not None)

    def backward(
        self, tensors: Any, *args: Any, **kwargs: Any
    ) -> AbstractContextManager[None]:
        """Tell the step of a backward pass."""
        if self._step is None:
            self._mistakes.spent = False
            return nullcontext()
        return self._step.backward(tensors)

    def clip_grad_norm(
        self, parameters: Any, max_norm: Any, norm_type: Any = 2.0, *args: Any, **_: Any
    ) -> Any:
        """Tell the step of a clip by the norm of all gradients."""
        details = {"max_norm": float(max_norm), "norm_type": float(norm_type)}
        return self._clip("clip_grad_norm", parameters, details)

    @contextmanager
    def clip_grads_with_norm(
        self, parameters: Any, max_norm: Any, total_norm: Tensor, *args: Any, **_: Any
    ) -> Iterator[Any]:
        """Tell the step of a clip by a norm that the loop gives."""
        details = {"max_norm": float(max_norm), "norm_type": None}
        with self._clip("clip_grad_norm", parameters, details) as told:
            # What is called returns nothing; the norm is among its arguments.
            yield None if told is None else lambda _: told(total_norm)

    def clip_grad_value(
        self, parameters: Any, clip_value: Any, *args: Any, **_: Any
    ) -> Any:
        """Tell the step of a clip by value."""
        details = {"clip_value": float(clip_value)}
        return self._clip("clip_grad_value", parameters, details)

    @contextmanager
    def _clip(
        self, kind: str, parameters: Any, details: dict[str, Any]
    ) -> Iterator[Callable[[Any], None] | None]:
        # One clip is made of others.
        if self._step is None or self._clipping:
            yield None
            return
        if isinstance(parameters, Tensor):
            parameters = [parameters]
        self._clipping = True
        try:
            with self._step.clip(kind, parameters, details) as told:
                yield told
        finally:
            self._clipping = False

    @contextmanager
    def zero_grad(self, owner: Any, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Tell the step that the gradients are zeroed."""
        yield
        ours = owner is self._model or owner is self._optimizer
        if self._step is not None and ours:
            self._step.zero_grad(owner)

    @contextmanager
    def scale(self, scaler: Any, outputs: Any) -> Iterator[Any]:
        """Tell the step of a scaled loss."""
        step = self._step
        if step is None or not scaler.is_enabled():
            yield None
            return
        yield lambda scaled: step.scale(outputs, scaled, scaler.get_scale())

    @contextmanager
    def unscale(self, scaler: Any, optimizer: Any) -> Iterator[None]:
        """Tell the step of gradients that the scaler divides."""
        ours = self._step is not None and optimizer is self._optimizer
        if ours and scaler.is_enabled():
            self._step.settle_gradients()  # type: ignore[union-attr]
        yield
        if ours and scaler.is_enabled():
            self._step.unscale()  # type: ignore[union-attr]

    @contextmanager
    def scaler_step(
        self, scaler: Any, optimizer: Any, *args: Any, **kwargs: Any
    ) -> Iterator[None]:
        """Tell the step if the scaler leaves the optimizer's step out."""
        step = self._step
        if step is None or optimizer is not self._optimizer:
            yield
            return
        before = step.optimizer_steps
        yield
        if step.optimizer_steps == before:
            step.step_skipped()

    @contextmanager
    def scheduler_step(
        self, scheduler: Any, *args: Any, **kwargs: Any
    ) -> Iterator[None]:
        """Tell the step of a scheduler's."""
        ours = any(scheduler is each for each in self._schedulers) or (
            getattr(scheduler, "optimizer", None) is self._optimizer
            # One that is being made takes a step that is none of the loop's.
            and not getattr(scheduler, "_is_initial", False)
        )
        # A scheduler may be made of others.
        if self._step is None or self._scheduling or not ours:
            yield
            return
        self._scheduling = True
        try:
            yield
        finally:
            self._scheduling = False
        self._step.scheduler_step(scheduler)


def _closure(
    args: Any, kwargs: dict[str, Any]
) -> tuple[Callable[[], Any] | None, Callable[[Any], tuple[Any, dict[str, Any]]]]:
    """Find the closure among the arguments of a step, and how to put another there."""
    if kwargs.get("closure") is not None:
        return kwargs["closure"], lambda new: (args, {**kwargs, "closure": new})
    # The first argument is the optimizer.
    if len(args) > 1 and args[1] is not None:
        return args[1], lambda new: ((args[0], new, *args[2:]), kwargs)
    return None, lambda new: (args, kwargs)

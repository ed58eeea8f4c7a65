"""What the modules of a model return, seen by hooks."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from jaxclip.parity._torch._kernels import Drawing, Kernel
from jaxclip.parity._torch._random import (
    MASKED,
    Generators,
    State,
    dropout_mask,
    same_state,
)
from jaxclip.parity._torch._tensors import Array, copied, flattened, is_array
from jaxclip.parity._trace._records import OUTSIDE, Call, Event


class Running(NamedTuple):
    """A module that has been called, and has not returned yet.

    Attributes:
        path: Its path.
        masks: How many masks there were when it was called.
        random: The states of the generators then.
    """

    path: str
    masks: int
    random: State


def type_name(thing: object) -> str:
    """Return the class of an object, with the module that defines it."""
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


class ForwardPass:
    """What happens in the modules of a model during a step.

    Args:
        model: The model.
        keep: The stages to copy.
        wanted: Says of the path of a module whether its activations are copied.
        generators: The generators to watch.
        on_event: Is called with an event each time that the model is called.

    Attributes:
        activations: Each copy, and where it comes from.
        masks: The same for the masks of dropout.
        draws: The same for other random numbers.
        outputs: What the model returned, by the number of the call and the path.
        unexplained: Paths of the modules that drew numbers that are in neither.
        paused: Whether the modules are called for another purpose: a checkpoint
            computes its part anew during the backward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        keep: frozenset[str],
        wanted: Callable[[str], bool],
        generators: Generators,
        on_event: Callable[[Event], object],
    ) -> None:
        """Look at the generators."""
        self.activations: list[tuple[Call, Array]] = []
        self.masks: list[tuple[Call, Array]] = []
        self.draws: list[tuple[Call, Array]] = []
        self.outputs: dict[str, Array] = {}
        self.unexplained: list[str] = []
        self.paused = False
        self._model = model
        self._keep = keep
        self._wanted = wanted
        self._generators = generators
        self._on_event = on_event
        self._calls: Counter[str] = Counter()
        self._running: list[Running] = []
        # How often something was drawn by a function in a call of a module.
        self._drawn: Counter[tuple[str, int]] = Counter()
        self._random = generators.state()

    @property
    def draws_by_functions(self) -> bool:
        """Whether something else than modules of dropout drew random numbers."""
        return bool(self._drawn or self.unexplained)

    @contextmanager
    def hooked(self, *, kernels: bool) -> Iterator[None]:
        """Watch the modules, for as long as the context is open.

        Args:
            kernels: Whether to watch every kernel, too, for what it draws.
        """
        with ExitStack() as stack:
            for path, module in self._model.named_modules():
                before, after = map(_opaque, self._hooks(path))
                stack.enter_context(module.register_forward_pre_hook(before))
                stack.enter_context(module.register_forward_hook(after))
            if kernels:
                stack.enter_context(Drawing(self._before_draw, self._drew))
            yield
        self._look_at_generators(OUTSIDE)

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Let what is called in this context be nothing to the recording."""
        self.paused, before = True, self.paused
        try:
            yield
        finally:
            self.paused = before

    def _hooks(self, path: str) -> tuple[Callable[..., None], Callable[..., None]]:
        def before(module: nn.Module, given: tuple[Any, ...]) -> None:
            if not self.paused:
                self._look_at_generators(self._innermost)
                self._running.append(Running(path, len(self.masks), self._random))

        def after(module: nn.Module, given: tuple[Any, ...], returned: Any) -> None:
            if not self.paused:
                self._returned(path, module, given, returned)

        return before, after

    def _returned(
        self, path: str, module: nn.Module, given: tuple[Any, ...], returned: Any
    ) -> None:
        # A module that raised has not returned, and is still on top.
        called = None
        while self._running and (called is None or called.path != path):
            called = self._running.pop()
        number = self._calls[path]
        self._calls[path] += 1
        where = Call(path, type_name(module), number, "")
        if not self._explained(called, where, module, given, returned):
            self._look_at_generators(path)
        if path == "":
            self._on_event(_forward_event(module, number))
        if path == "" and "outputs" in self._keep:
            for place, leaf in flattened(returned):
                if is_array(leaf):
                    self.outputs[f"{number}/{place}"] = copied(leaf)
        if path != "" and "activations" in self._keep and self._wanted(path):
            for place, leaf in flattened(returned):
                if is_array(leaf):
                    call = Call(path, where.type, number, place)
                    self.activations.append((call, copied(leaf)))

    def _explained(
        self,
        called: Running | None,
        where: Call,
        module: nn.Module,
        given: tuple[Any, ...],
        returned: Any,
    ) -> bool:
        """Copy the mask of a dropout, and say whether it explains what was drawn."""
        if (
            called is None
            or type(module) not in MASKED
            or not module.training
            or "masks" not in self._keep
        ):
            return False
        if len(given) != 1 or not isinstance(returned, Tensor):
            return False
        with self.undisturbed():
            mask = dropout_mask(
                module, given[0], returned, self._generators, called.random
            )
        if mask is None:
            return False
        # In place of what its kernel drew, if that was watched.
        del self.masks[called.masks :]
        self._drawn.pop((where.module, where.call), None)
        self.masks.append((where, copied(mask)))
        self._random = self._generators.state()
        return True

    def _before_draw(self) -> None:
        if not self.paused:
            self._look_at_generators(self._innermost)

    def _drew(self, kernel: Kernel, drawn: Tensor) -> None:
        if self.paused or kernel.stage not in self._keep:
            return
        path = self._innermost
        place = path, self._calls[path]
        call = Call(path, kernel.name, self._calls[path], str(self._drawn[place]))
        self._drawn[place] += 1
        found = self.masks if kernel.stage == "masks" else self.draws
        found.append((call, copied(drawn)))
        self._random = self._generators.state()

    @property
    def _innermost(self) -> str:
        """The path of the module that is running."""
        return self._running[-1].path if self._running else OUTSIDE

    def _look_at_generators(self, path: str) -> None:
        """Put down a draw since the last look to what ran in between."""
        state = self._generators.state()
        if not same_state(state, self._random) and path not in self.unexplained:
            self.unexplained.append(path)
        self._random = state


def _opaque(hook: Callable[..., None]) -> Callable[..., None]:
    """Keep torch.compile, where it is used, from compiling a hook with the model."""
    if "torch._dynamo" not in sys.modules:
        return hook
    opaque: Callable[..., None] = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]
    return opaque


def _forward_event(model: nn.Module, call: int) -> Event:
    device = next(model.parameters(), torch.empty(0)).device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = str(torch.get_autocast_dtype(device)) if autocast else None
    return Event(
        "forward", {"call": call, "training": model.training, "autocast": dtype}
    )

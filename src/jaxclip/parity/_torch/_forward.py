"""What the modules of a model return, seen by hooks."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from jaxclip.parity._torch._random import MASKED, Generators, dropout_mask, same_state
from jaxclip.parity._torch._tensors import Array, copied, flattened, is_array
from jaxclip.parity._trace._records import Call, Event

OUTSIDE = "(outside the model)"


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
        outputs: What the model returned, by the number of the call and the path.
        draws: Paths of the modules that drew numbers that no mask explains.
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
        self.outputs: dict[str, Array] = {}
        self.draws: list[str] = []
        self.paused = False
        self._model = model
        self._keep = keep
        self._wanted = wanted
        self._generators = generators
        self._on_event = on_event
        self._calls: Counter[str] = Counter()
        self._running: list[str] = []
        self._random = generators.state()

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Watch the modules, for as long as the context is open."""
        with ExitStack() as stack:
            for path, module in self._model.named_modules():
                before, after = map(_opaque, self._hooks(path))
                stack.enter_context(module.register_forward_pre_hook(before))
                stack.enter_context(module.register_forward_hook(after))
            yield
        self._look_at_generators(OUTSIDE)

    def _hooks(self, path: str) -> tuple[Callable[..., None], Callable[..., None]]:
        def before(module: nn.Module, given: tuple[Any, ...]) -> None:
            if not self.paused:
                self._look_at_generators(
                    self._running[-1] if self._running else OUTSIDE
                )
                self._running.append(path)

        def after(module: nn.Module, given: tuple[Any, ...], returned: Any) -> None:
            if not self.paused:
                self._returned(path, module, given, returned)

        return before, after

    def _returned(
        self, path: str, module: nn.Module, given: tuple[Any, ...], returned: Any
    ) -> None:
        # A module that raised has not returned, and is still on top.
        while self._running and self._running.pop() != path:
            pass
        number = self._calls[path]
        self._calls[path] += 1
        where = Call(path, type_name(module), number, "")
        if not self._explained(where, module, given, returned):
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
        self, where: Call, module: nn.Module, given: tuple[Any, ...], returned: Any
    ) -> bool:
        """Copy the mask of a dropout, and say whether it explains what was drawn."""
        if (
            type(module) not in MASKED
            or not module.training
            or "masks" not in self._keep
        ):
            return False
        if len(given) != 1 or not isinstance(returned, Tensor):
            return False
        mask = dropout_mask(module, given[0], returned, self._generators, self._random)
        if mask is None:
            return False
        self.masks.append((where, copied(mask)))
        self._random = self._generators.state()
        return True

    def _look_at_generators(self, path: str) -> None:
        """Put down a draw since the last look to what ran in between."""
        state = self._generators.state()
        if not same_state(state, self._random) and path not in self.draws:
            self.draws.append(path)
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

"""What torch drew at random, given to the port in place of what it draws.

Which elements were kept is all that a recorded mask of a dropout says to the port. What
becomes of them, the scale by ``1 / (1 - p)`` first of all, is the port's own, and is
compared. Other numbers are given as they were drawn.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import InitVar, dataclass, field, replace
from typing import Any

import jax.numpy as jnp

from jaxclip.convert._rules import layouts
from jaxclip.convert._rules.layouts import SAME, Layout
from jaxclip.parity._trace._records import Call
from jaxclip.parity._verify._random._drawn import (
    Account,
    Drawn,
    Remark,
    is_of_function,
    place_of,
    said,
    times,
)
from jaxclip.parity._verify._tracing._calls import around
from jaxclip.parity._verify._tracing._inside import Kind, Question, trace

ACTIVE: ContextVar["Replay | None"] = ContextVar("replay", default=None)
"""What the handles of a port find, while it is verified."""


@dataclass
class Replay:
    """Gives out what torch drew, each once, while the port is traced.

    Attributes:
        drawn: What it drew.
        origins: By the path of a dropout of Flax's those of torch's.
        owners: By the path of a module of Flax's that of torch's.
        layouts: How the input of each dropout of torch's lies in Flax, and what other
            modules return.
        replays: Whether there is anything to give out; if not, the port draws all of
            it, and nothing is said of that.
        stacks: By the path of each module of Flax's that holds several layers as one
            how many they are.
        before: What has become of it already, if some was given out.
    """

    drawn: Drawn = field(default_factory=Drawn)
    origins: Mapping[str, Sequence[str]] = field(default_factory=dict)
    owners: Mapping[str, str] = field(default_factory=dict)
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    replays: bool = True
    stacks: Mapping[str, int] = field(default_factory=dict)
    before: InitVar[Account | None] = None
    _used: set[int] = field(default_factory=set, init=False)
    _used_draws: set[int] = field(default_factory=set, init=False)
    _remarks: dict[Remark, None] = field(default_factory=dict, init=False)
    _trace: Any = field(default_factory=trace, init=False)
    _waiting: set[str] = field(default_factory=set, init=False)

    def __post_init__(self, before: Account | None) -> None:
        """Go on from what was given out."""
        if before is not None:
            self._used |= {*range(len(self.drawn.masks))} - {*before.unused}
            self._used_draws |= {*range(len(self.drawn.draws))} - {*before.unused_draws}
            self._remarks |= dict.fromkeys(before.remarks)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Let `replayed_mask` and `replayed_draw` find this."""
        token = ACTIVE.set(self if self.replays else None)
        try:
            yield
        finally:
            ACTIVE.reset(token)

    @property
    def account(self) -> Account:
        """What became of what was drawn."""
        masks, draws = range(len(self.drawn.masks)), range(len(self.drawn.draws))
        return Account(
            (*self._remarks,),
            tuple(index for index in masks if index not in self._used),
            tuple(index for index in draws if index not in self._used_draws),
        )

    def of_flax(self, path: str, shape: tuple[int, ...]) -> Any:
        """Return what the next call of a dropout of Flax's is to keep, or None."""
        if not self.replays:
            return None
        return self._next(self._origins_of(path), shape, None, repr(path))

    def question_of_flax(self, path: str, shape: tuple[int, ...]) -> Question | None:
        """Return what a dropout of Flax's is to ask; None if it is known already."""
        if not self.replays:
            return None
        layers = bool(around(path, self.stacks))
        question = Question("dropout", path, shape)
        return self._waiting_for(question, self._origins_of(path), layers=layers)

    @property
    def has_dropouts(self) -> bool:
        """Whether there is a dropout that could be given something."""
        # One that torch had off has no mask, and is to be named if it is on here.
        return self.replays and bool(self.drawn.masks or self.origins)

    def question(
        self, kind: Kind, module: str, shape: tuple[int, ...], layout: Layout
    ) -> Question | None:
        """Return the same for a handle, which gives the path of torch's module."""
        question = Question(kind, module, shape, layout)
        return self._waiting_for(question, (module,), layers="*" in module)

    def _waiting_for(
        self, question: Question, modules: Sequence[str], *, layers: bool
    ) -> Question | None:
        """Wait inside of a transformation, where it may be called again, and after.

        Args:
            question: What is to be asked.
            modules: The modules of torch's that it may be.
            layers: Whether it is in stacked layers.
        """
        if trace() == self._trace and self._waiting.isdisjoint(modules):
            return None
        self._waiting |= {*modules}
        masks = self._free(self.drawn.masks, self._used, modules)
        draws = self._free(self.drawn.draws, self._used_draws, modules)
        alone = not layers and len(masks) <= 1 and len(draws) <= 1
        return replace(question, alone=alone)

    def _origins_of(self, path: str) -> Sequence[str]:
        """Return the modules of torch's that a dropout of Flax's may be."""
        modules = self.origins.get(path, (path,))
        owner = path.rpartition(".")[0]
        outer = self.owners.get(owner, owner)
        drew = {call.module for call in self.drawn.masks}
        if drew.isdisjoint(modules) and outer in drew:
            # In torch it is a function that the module around it calls.
            return (outer,)
        return modules

    def of_torch(self, path: str, shape: tuple[int, ...], layout: Layout) -> Any:
        """Return what the next call of a dropout of torch's kept, or None."""
        return self._next((path,), shape, layout, f"replayed_mask({said(path)})")

    def draw_of(self, module: str, shape: tuple[int, ...], layout: Layout) -> Any:
        """Return the next numbers that a module of torch's drew, or None."""
        asker = f"replayed_draw({said(module)})"
        draws = self.drawn.draws
        own = self._free(draws, set(), (module,))
        free = self._free(draws, self._used_draws, (module,))
        if not free:
            self._say(
                module,
                f"{asker} is a draw of the port's own: torch drew numbers "
                f"{times(len(own)) if own else 'never'} in {place_of(module)}, as far "
                "as is recorded, and the port asks again",
            )
            return None
        self._used_draws.add(free[0])
        what = f"what {draws[free[0]].type} drew in {place_of(module)}"
        try:
            numbers = layouts.to_flax(self.drawn.numbers[free[0]], layout)
        except ValueError as error:
            self._say(module, f"{asker}: {what} {error}")
            return None
        if numbers.shape == shape:
            return numbers
        self._say(
            module,
            f"{asker} draws numbers of shape {shape}, and {what} has shape "
            f"{numbers.shape}, so that the port keeps its own: "
            + (
                _shared(numbers.shape, shape)
                or "ask in torch's order, and say in layout= how the numbers lie, if "
                "that is the reason"
            ),
        )
        return None

    def _next(
        self,
        modules: Sequence[str],
        shape: tuple[int, ...],
        layout: Layout | None,
        asker: str,
    ) -> Any:
        own = self._free(self.drawn.masks, set(), modules)
        free = self._free(self.drawn.masks, self._used, modules)
        if not free:
            count = times(len(own)) if own else "never"
            names = ", ".join(map(place_of, modules))
            self._say(
                modules[0] if own else "",
                f"{asker} drops numbers by a draw of its own: torch drew {count} what "
                f"{names} keeps, as far as is recorded, and the port asks again",
            )
            return None
        self._used.add(free[0])
        call, kept = self.drawn.masks[free[0]], self.drawn.kept[free[0]]
        if layout is None:
            layout = self._layout(call, kept, shape)
        try:
            kept = layouts.to_flax(kept, layout)
        except ValueError as error:
            self._say(call.module, f"the mask of {call.module!r} {error}", wrong=True)
            return None
        if _is_merged(kept.shape, shape):
            kept = kept.reshape(shape)
        if kept.shape == shape:
            return kept
        place = place_of(call.module)
        self._say(
            call.module,
            f"{asker} draws numbers of shape {shape}, and torch's {place} of shape "
            f"{kept.shape} in that layout: "
            + _advice(kept.shape, shape, call.type.rpartition(".")[2]),
            wrong=True,
        )
        fits = len(kept.shape) == len(shape) and all(
            one in (1, other) for one, other in zip(kept.shape, shape, strict=True)
        )
        return jnp.broadcast_to(kept, shape) if fits else None

    def _layout(self, call: Call, kept: Any, shape: tuple[int, ...]) -> Layout:
        """Say how a mask lies in the port, where nothing says it of this mask."""
        own = layouts.first(self.layouts.get(call.module, SAME))
        if not is_of_function(call):
            return own
        # What the module around it returns need not lie as this does.
        likely: tuple[Layout, ...] = (own, SAME, "channels_last")
        return next((each for each in likely if _fits(kept, each, shape)), own)

    @staticmethod
    def _free(
        calls: Sequence[Call], used: set[int], modules: Sequence[str]
    ) -> list[int]:
        own = (n for n, call in enumerate(calls) if call.module in modules)
        return [n for n in own if n not in used]

    def say_unknown(self, question: Question) -> None:
        """Say that it is not known where a port asks for what was drawn."""
        self._say(
            "",
            f"{question} is a draw of the port's own: which of torch's calls it is "
            "cannot be told inside of lax.cond and lax.while_loop, in a function "
            "compiled once and called several times, and in a scan that is not over "
            "the stacked layers, or that draws the same for all of them",
        )

    def _say(self, module: str, text: str, *, wrong: bool = False) -> None:
        self._remarks[Remark(module, text, wrong)] = None


def _fits(kept: Any, layout: Layout, shape: tuple[int, ...]) -> bool:
    try:
        found = layouts.to_flax(kept, layout).shape
    except ValueError:
        return False
    return found == shape or _is_merged(found, shape)


def _is_merged(torch: tuple[int, ...], port: tuple[int, ...]) -> bool:
    """Say whether torch has the port's first axes in one, as its attention has heads.

    Example:
        >>> _is_merged((6, 5, 5), (3, 2, 5, 5)), _is_merged((6, 5), (5, 6))
        (True, False)
    """
    return (
        len(torch) == len(port) - 1
        and torch[1:] == port[2:]
        and torch[0] == math.prod(port[:2])
    )


def _advice(torch: tuple[int, ...], port: tuple[int, ...], kind: str) -> str:
    both = [*zip(torch, port, strict=True)] if len(torch) == len(port) else []
    if both and all(one in (1, other) for one, other in both):
        dims = tuple(n for n, (one, other) in enumerate(both) if one != other)
        return f"{kind} draws one number for a whole channel (broadcast_dims={dims})"
    return (
        _shared(torch, port)
        or "say in layouts= of Port how its input lies, if that is the reason"
    )


def _shared(torch: tuple[int, ...], port: tuple[int, ...]) -> str:
    """Say what may be the matter if torch drew for each row what the port draws once.

    Example:
        >>> _shared((8, 3), (3,))
        'in jax.vmap each row needs a key of its own: jax.random.split(key, 8)'
    """
    if not torch or torch[1:] != port:
        return ""
    own = f"jax.random.split(key, {torch[0]})"
    return f"in jax.vmap each row needs a key of its own: {own}"

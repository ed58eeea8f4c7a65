"""What torch's dropouts kept, given to the port's in place of what it draws.

Which elements were kept is all that a recorded mask says to the port. What becomes of
them, the scale by ``1 / (1 - p)`` first of all, is the port's own, and is compared.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip.convert._rules import layouts
from jaxclip.convert._rules.layouts import SAME, Layout
from jaxclip.parity._trace._records import Call
from jaxclip.parity._trace._step import Activation


@partial(jax.tree_util.register_dataclass, data_fields=["kept"], meta_fields=["calls"])
@dataclass(frozen=True)
class Masks:
    """The recorded masks of a step, in the order in which torch drew them.

    Attributes:
        kept: For each whether an element was kept, in torch's layout; of length 1
            along the axes along which torch drew one number for all.
        calls: Where each comes from.
    """

    kept: tuple[Any, ...] = ()
    calls: tuple[Call, ...] = ()

    @classmethod
    def of(cls, recorded: Iterable[Activation]) -> "Masks":
        """Read the masks of a step."""
        found = [
            (_drawn(mask.array != 0, mask.type), _where(mask)) for mask in recorded
        ]
        return cls(tuple(kept for kept, _ in found), tuple(call for _, call in found))


def _where(mask: Activation) -> Call:
    return Call(mask.module, mask.type, mask.call, mask.output)


def _drawn(kept: np.ndarray[Any, Any], kind: str) -> np.ndarray[Any, Any]:
    """Keep one element of those that torch drew one number for.

    Example:
        >>> _drawn(np.ones((2, 3, 4, 4), bool), "torch.nn.Dropout2d").shape
        (2, 3, 1, 1)
    """
    name = kind.rpartition(".")[2]
    if name == "Dropout":
        return kept
    own = 1 if name == "Dropout1d" and kept.ndim == 2 else 2
    return kept[(slice(None),) * own + (slice(1),) * (kept.ndim - own)]


@dataclass(frozen=True)
class Remark:
    """Something to say of a mask.

    Attributes:
        module: The torch module of the mask; "" if it is not known.
        text: What there is to say.
        wrong: Whether the port draws otherwise than torch, which the values do not
            show where the mask is torch's.
    """

    module: str
    text: str
    wrong: bool = False


@jax.tree_util.register_static
@dataclass(frozen=True)
class Account:
    """What became of the masks of a step: known when the port was traced.

    Attributes:
        remarks: What there is to say of those that were asked for.
        unused: Which of the masks were not.
    """

    remarks: tuple[Remark, ...] = ()
    unused: tuple[int, ...] = ()

    def of(self, masks: Masks) -> Iterator[Remark]:
        """Yield all that there is to say, once the masks are known."""
        yield from self.remarks
        left: dict[str, list[Any]] = {}
        for index in self.unused:
            left.setdefault(masks.calls[index].module, []).append(masks.kept[index])
        for module, kept in left.items():
            dropped = sum(int(np.count_nonzero(~np.asarray(each))) for each in kept)
            if dropped:
                yield Remark(
                    module,
                    f"torch drew what {module!r} keeps {_times(len(kept))} more than "
                    "the port asked for it: the port's dropout is off there, or draws "
                    "by itself (see dropouts= of Port, and replayed_mask)",
                )


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


@dataclass
class Replay:
    """Gives masks out, each once, while the port is traced.

    Attributes:
        masks: The masks.
        origins: By the path of a dropout of Flax's those of torch's.
        layouts: How the input of each dropout of torch's lies in Flax.
    """

    masks: Masks = field(default_factory=Masks)
    origins: Mapping[str, Sequence[str]] = field(default_factory=dict)
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    _used: set[int] = field(default_factory=set, init=False)
    _remarks: dict[Remark, None] = field(default_factory=dict, init=False)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Let `replayed_mask` find this."""
        token = _ACTIVE.set(self)
        try:
            yield
        finally:
            _ACTIVE.reset(token)

    @property
    def account(self) -> Account:
        """What became of the masks."""
        everything = range(len(self.masks.calls))
        unused = tuple(index for index in everything if index not in self._used)
        return Account((*self._remarks,), unused)

    def of_flax(self, path: str, shape: tuple[int, ...]) -> Any:
        """Return what the next call of a dropout of Flax's is to keep, or None."""
        return self._next(self.origins.get(path, (path,)), shape, None, repr(path))

    def of_torch(self, path: str, shape: tuple[int, ...], layout: Layout) -> Any:
        """Return what the next call of a dropout of torch's kept, or None."""
        return self._next((path,), shape, layout, f"replayed_mask({path!r})")

    def _next(
        self,
        modules: Sequence[str],
        shape: tuple[int, ...],
        layout: Layout | None,
        asker: str,
    ) -> Any:
        own = [n for n, call in enumerate(self.masks.calls) if call.module in modules]
        free = [index for index in own if index not in self._used]
        if not free:
            said = _times(len(own)) if own else "never"
            names = ", ".join(map(repr, modules))
            self._say(
                modules[0] if own else "",
                f"{asker} drops numbers by a draw of its own: torch drew {said} what "
                f"{names} keeps, as far as is recorded, and the port asks again",
            )
            return None
        self._used.add(free[0])
        call, kept = self.masks.calls[free[0]], self.masks.kept[free[0]]
        if layout is None:
            layout = self.layouts.get(call.module, SAME)
        try:
            kept = layouts.to_flax(kept, layout)
        except ValueError as error:
            self._say(call.module, f"the mask of {call.module!r} {error}", wrong=True)
            return None
        if kept.shape == shape:
            return kept
        self._say(
            call.module,
            f"{asker} draws numbers of shape {shape}, and torch's {call.module!r} of "
            f"shape {kept.shape} in that layout: "
            + _advice(kept.shape, shape, call.type.rpartition(".")[2]),
            wrong=True,
        )
        fits = len(kept.shape) == len(shape) and all(
            one in (1, other) for one, other in zip(kept.shape, shape, strict=True)
        )
        return jnp.broadcast_to(kept, shape) if fits else None

    def _say(self, module: str, text: str, *, wrong: bool = False) -> None:
        self._remarks[Remark(module, text, wrong)] = None


def _advice(torch: tuple[int, ...], port: tuple[int, ...], kind: str) -> str:
    both = [*zip(torch, port, strict=True)] if len(torch) == len(port) else []
    if both and all(one in (1, other) for one, other in both):
        dims = tuple(n for n, (one, other) in enumerate(both) if one != other)
        return f"{kind} draws one number for a whole channel (broadcast_dims={dims})"
    return "say in layouts= of Port how its input lies, if that is the reason"


_ACTIVE: ContextVar[Replay | None] = ContextVar("replay", default=None)


def replayed_mask(module: str, keep: Any, *, layout: Layout = SAME) -> Any:
    """Return what a dropout is to keep: while it is verified, what torch's kept.

    For dropout that is written by hand. `verify` and `compare` let it keep what the
    dropout of the recorded run did, call by call; everywhere else ``keep`` comes back
    as it is, and costs nothing. Flax's own ``Dropout`` needs no such line.

    Args:
        module: The path of the torch module.
        keep: What the port drew: booleans, of the shape of what is dropped, or of
            length 1 along the axes along which a draw is for all, as torch's
            ``Dropout2d`` has it.
        layout: How ``keep`` lies, if not as in torch: ``"channels_last"`` or another
            of the words that ``WeightMap.with_layouts`` takes.

    Returns:
        Booleans of the shape of ``keep``.

    Raises:
        TypeError: If ``keep`` is not boolean. The scale by which a dropout makes up for
            what it drops is the port's own, so that it is compared.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jaxclip.parity import replayed_mask
        >>> def dropout(x, rate, key):
        ...     keep = jax.random.bernoulli(key, 1 - rate, x.shape)
        ...     keep = replayed_mask("drop", keep)
        ...     return jnp.where(keep, x / (1 - rate), 0)
        >>> dropout(jnp.ones(3), 0.5, jax.random.key(0)).shape
        (3,)
    """
    dtype = jnp.result_type(keep)
    if dtype != np.bool_:
        raise TypeError(
            f"replayed_mask({module!r}, keep): keep is {dtype}; it must be boolean, "
            "which elements are kept. Scale what is kept afterwards: "
            "jnp.where(keep, x / (1 - rate), 0)."
        )
    replay = _ACTIVE.get()
    if replay is None:
        return keep
    layout = layouts.checked(layout, "layout")
    kept = replay.of_torch(module, jnp.shape(keep), layout)
    return keep if kept is None else kept


# Where users import it from, which is what they should see.
replayed_mask.__module__ = "jaxclip.parity"

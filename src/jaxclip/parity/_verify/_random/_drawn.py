"""What a step of torch's drew at random, and what became of it in a port."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxclip.parity._trace._records import OUTSIDE, Call
from jaxclip.parity._trace._step import Activation, Step


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["kept", "numbers"],
    meta_fields=["masks", "draws"],
)
@dataclass(frozen=True)
class Drawn:
    """What a step drew at random, in the order in which torch drew it.

    Attributes:
        kept: Of each mask whether an element was kept, in torch's layout; of length 1
            along the axes along which torch drew one number for all.
        numbers: The other numbers, in torch's layout.
        masks: Where each of ``kept`` comes from.
        draws: Where each of ``numbers`` comes from.
    """

    kept: tuple[Any, ...] = ()
    numbers: tuple[Any, ...] = ()
    masks: tuple[Call, ...] = ()
    draws: tuple[Call, ...] = ()

    @classmethod
    def of(cls, step: Step) -> "Drawn":
        """Read what a step drew."""
        return cls(
            tuple(_kept(mask.array != 0, mask.type) for mask in step.masks),
            tuple(draw.array for draw in step.draws),
            tuple(map(_where, step.masks)),
            tuple(map(_where, step.draws)),
        )


def _where(recorded: Activation) -> Call:
    return Call(recorded.module, recorded.type, recorded.call, recorded.output)


def _kept(kept: np.ndarray[Any, Any], kind: str) -> np.ndarray[Any, Any]:
    """Keep one element of those that torch drew one number for.

    Example:
        >>> _kept(np.ones((2, 3, 4, 4), bool), "torch.nn.Dropout2d").shape
        (2, 3, 1, 1)
    """
    name = kind.rpartition(".")[2]
    if name not in ("Dropout1d", "Dropout2d", "Dropout3d"):
        return kept
    own = 1 if name == "Dropout1d" and kept.ndim == 2 else 2
    return kept[(slice(None),) * own + (slice(1),) * (kept.ndim - own)]


@dataclass(frozen=True)
class Remark:
    """Something to say of what was drawn.

    Attributes:
        module: The torch module that drew it; "" if it is not known.
        text: What there is to say.
        wrong: Whether the port draws otherwise than torch, which the values do not
            show where they are torch's.
    """

    module: str
    text: str
    wrong: bool = False


@jax.tree_util.register_static
@dataclass(frozen=True)
class Account:
    """What became of what was drawn: known when the port was traced.

    Attributes:
        remarks: What there is to say of what was asked for.
        unused: Which of the masks were not.
        unused_draws: Which of the other draws were not.
    """

    remarks: tuple[Remark, ...] = ()
    unused: tuple[int, ...] = ()
    unused_draws: tuple[int, ...] = ()

    def of(self, drawn: Drawn) -> Iterator[Remark]:
        """Yield all that there is to say, once it is known what was drawn."""
        yield from self.remarks
        left: dict[str, list[Any]] = {}
        for index in self.unused:
            left.setdefault(drawn.masks[index].module, []).append(drawn.kept[index])
        for module, kept in left.items():
            dropped = sum(int(np.count_nonzero(~np.asarray(each))) for each in kept)
            if dropped:
                yield Remark(
                    module,
                    f"torch drew what {place_of(module)} keeps {times(len(kept))} "
                    "more than the port asked for it: the port's dropout is off there, "
                    "or draws by itself (see dropouts= of Port, and replayed_mask)",
                )
        kinds: dict[str, dict[str, None]] = {}
        for index in self.unused_draws:
            draw = drawn.draws[index]
            kinds.setdefault(draw.module, {})[draw.type] = None
        for module, names in kinds.items():
            yield Remark(
                module,
                f"torch drew random numbers in {place_of(module)} "
                f"({', '.join(names)}) that the port did not ask for. If they matter "
                f"to the loss, replayed_draw({said(module)}, ...) gives them to it",
            )


def place_of(module: str) -> str:
    """Say where random numbers were drawn.

    Example:
        >>> place_of(""), place_of("fc"), place_of(OUTSIDE)
        ('the model itself', "'fc'", 'the loop')
    """
    return {"": "the model itself", OUTSIDE: "the loop"}.get(module, repr(module))


def said(module: str) -> str:
    """Return what a port says for a place."""
    return "None" if module == OUTSIDE else repr(module)


def times(count: int) -> str:
    """Say how often something happened."""
    return "once" if count == 1 else f"{count} times"


def is_of_function(call: Call) -> bool:
    """Say whether a function drew numbers, and no module of dropout.

    Example:
        >>> is_of_function(Call("attn", "bernoulli_", 0, "1"))
        True
    """
    return call.output != ""

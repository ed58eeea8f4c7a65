"""Rules for the modules of Equinox, by their names: it need not be there.

They lie as torch's do, but for a few. What a user derives from them does, too.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxclip.convert._errors import ConversionError
from jaxclip.convert._rules.layouts import SAME, Layout
from jaxclip.convert._rules.links import Arrays, Link, Rule, Variables, reshaped, same


def rule_of(part: object) -> Rule:
    """Return the rule for a part of a tree that can be called."""
    ancestors = filter(_is_of_equinox, type(part).__mro__)
    names = (ancestor.__qualname__ for ancestor in ancestors)
    return next((RULES[name] for name in names if name in RULES), Rule(_own))


def layout_of(part: object) -> Layout | None:
    """Say how its output lies: as torch's, if its ``__call__`` is Equinox's."""
    caller = next(each for each in type(part).__mro__ if "__call__" in vars(each))
    return SAME if _is_of_equinox(caller) else None


def _is_of_equinox(kind: type) -> bool:
    return kind.__module__.startswith("equinox.nn.")


def _own(part: object, variables: Variables) -> Iterator[Link]:
    """Link what a module holds itself, and nothing of what is in it."""
    return (same(name, name) for name in variables if "." not in name)


def _conv(part: object, variables: Variables) -> Iterator[Link]:
    """Link a convolution, whose bias has an axis of length 1 for each of space."""
    yield same("weight", "weight")
    yield from _bias(variables)


def _bias(variables: Variables) -> Iterator[Link]:
    if "bias" in variables:
        shape = variables["bias"].shape
        yield reshaped("bias", "bias", shape[:1], shape)


def _transposed_conv(part: Any, variables: Variables) -> Iterator[Link]:
    """Link a transposed convolution, of which Equinox has the kernel turned.

    torch has it as the gradient of a convolution sees it, ``(in, out / groups, ...)``;
    Equinox as it is applied, ``(out, in / groups, ...)``, the last in space first.
    """
    rows, columns, *space = variables["weight"].shape
    groups = part.groups
    within = (groups, columns, rows // groups, *space)
    turned = tuple(range(2, 2 + len(space)))

    def to_flax(weight: np.ndarray) -> Arrays:
        kernels = weight.reshape(within).swapaxes(1, 2)
        return (np.flip(kernels.reshape(rows, columns, *space), turned),)

    def to_torch(kernel: np.ndarray) -> Arrays:
        kernels = np.flip(kernel, turned)
        kernels = kernels.reshape(groups, rows // groups, columns, *space)
        return (kernels.swapaxes(1, 2).reshape(-1, rows // groups, *space),)

    yield Link(("weight",), ("weight",), to_flax, to_torch)
    yield from _bias(variables)


_PROJECTIONS = ("query_proj", "key_proj", "value_proj")


def _attention(part: object, variables: Variables) -> Iterator[Link]:
    """Link torch's rows for queries, keys and values to three layers."""
    weights = [f"{name}.weight" for name in _PROJECTIONS]
    biases = [f"{name}.bias" for name in _PROJECTIONS if f"{name}.bias" in variables]
    if len({variables[name].shape for name in weights}) == 1:
        yield _joined("in_proj_weight", weights)
    else:
        for name in weights:
            yield same(f"{name[0]}_proj_weight", name)
    if len(biases) == len(_PROJECTIONS):
        yield _joined("in_proj_bias", biases)
    elif biases:
        raise ConversionError(
            [
                f"it has {', '.join(biases)} and no others; torch's has biases for "
                "queries, keys and values, or for none of them."
            ]
        )
    for kind in ("weight", "bias"):
        if f"output_proj.{kind}" in variables:
            yield same(f"out_proj.{kind}", f"output_proj.{kind}")


def _joined(torch: str, flax: list[str]) -> Link:
    """Link one tensor to equal parts of its rows."""
    return Link(
        (torch,),
        tuple(flax),
        lambda rows: tuple(np.split(rows, len(flax))),
        lambda *parts: (np.concatenate(parts),),
    )


def _prelu(part: object, variables: Variables) -> Iterator[Link]:
    """Link the slopes: an array in torch, which needs no axes beside the channels."""
    shape = variables["negative_slope"].shape
    channels = tuple(size for size in shape if size > 1)
    yield reshaped("weight", "negative_slope", channels or (1,), shape)


_STATE = (
    "Equinox keeps running statistics in a State, apart from the model: leave those of "
    'the source out, ignore=["*.running_mean", "*.running_var", '
    '"*.num_batches_tracked"], and put them there yourself.'
)
_RUNNING = ("running_mean", "running_var", "num_batches_tracked")

_ONE_BIAS = (
    "Equinox's {} has one bias where torch's has bias_ih and bias_hh, which learn "
    "apart: leave both out (bias=False, use_bias=False), or use that of jaxclip.models."
)


def _cell(name: str) -> Rule:
    remedy = _ONE_BIAS.format(name)
    return Rule(_own, remedies={"bias_ih": remedy, "bias_hh": remedy})


RULES: dict[str, Rule] = {
    "Conv": Rule(_conv),
    "ConvTranspose": Rule(_transposed_conv),
    "MultiheadAttention": Rule(_attention),
    "BatchNorm": Rule(_own, remedies=dict.fromkeys(_RUNNING, _STATE)),
    "PReLU": Rule(_prelu),
    "Sequential": Rule(_own, hidden="layers"),
    "GRUCell": _cell("GRUCell"),
    "LSTMCell": _cell("LSTMCell"),
}

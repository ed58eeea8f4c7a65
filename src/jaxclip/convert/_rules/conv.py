"""Rules for convolutions and transposed convolutions, of any number of axes."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from flax import linen as nn
from flax import nnx

from jaxclip import models
from jaxclip.convert._rules.layouts import Layout, channels_last
from jaxclip.convert._rules.links import Link, Rule, Variables, named, permuted, same
from jaxclip.convert._rules.parametrized import REMEDIES
from jaxclip.models import linen


def _conv(layer: object, variables: Variables) -> Iterator[Link]:
    """Link torch's ``(out, in / groups, *window)``: Flax has it back to front.

    Both take the window as it is: a convolution of either does not turn it round.
    """
    window = range(2, variables["kernel"].ndim)
    yield permuted("weight", "kernel", (*window, 1, 0))
    if "bias" in variables:
        yield same("bias", "bias")


def _conv_transpose(
    layer: nnx.ConvTranspose | nn.ConvTranspose, variables: Variables
) -> Iterator[Link]:
    """Link torch's ``(in, out, *window)``, which Flax has in one of two ways.

    With ``transpose_kernel`` the kernel is that of the convolution whose transpose
    is meant, ``(*window, out, in)``, as in torch. Without it the kernel is that of a
    plain convolution of the spread-out input, ``(*window, in, out)``, with the window
    turned round.
    """
    ndim = variables["kernel"].ndim
    window = tuple(range(2, ndim))
    if layer.transpose_kernel:
        yield permuted("weight", "kernel", (*window, 1, 0))
    else:
        turned = tuple(range(ndim - 2))
        yield Link(
            ("weight",),
            ("kernel",),
            lambda weight: (np.flip(np.transpose(weight, (*window, 0, 1)), turned),),
            lambda kernel: (np.transpose(np.flip(kernel, turned), (-2, -1, *turned)),),
        )
    if "bias" in variables:
        yield same("bias", "bias")


def _layout(layer: Any) -> Layout | None:
    """Return how the output lies, from the number of spatial axes."""
    own_nnx = isinstance(layer, models.ConvTranspose)
    sizes = layer.window.kernel_size if own_nnx else layer.kernel_size
    return channels_last(1 if isinstance(sizes, int) else len(sizes))


_CONV = ("Conv1d", "Conv2d", "Conv3d")
_CONV_TRANSPOSE = ("ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")

_conv_rule = Rule(
    _conv,
    layout=_layout,
    torch=_CONV,
    note="channels last; integer `padding`: at a stride `'SAME'` pads elsewhere",
    remedies=REMEDIES,
)
_conv_transpose_rule = Rule(
    _conv_transpose,
    layout=_layout,
    torch=_CONV_TRANSPOSE,
    note="no groups; pad `d(k-1) - p` before, and `output_padding` more behind",
    remedies={
        **REMEDIES,
        "weight": "Flax's ConvTranspose has no groups; if torch's has, use "
        "jaxclip.models.ConvTranspose (or that of jaxclip.models.linen).",
    },
)
_own_conv_transpose_rule = Rule(
    named({"weight": "weight", "bias": "bias"}),
    layout=_layout,
    torch=_CONV_TRANSPOSE,
    note="torch's arguments, groups and `output_padding` included",
    remedies=REMEDIES,
)

RULES: dict[type, Rule] = {
    nnx.Conv: _conv_rule,
    nn.Conv: _conv_rule,
    nnx.ConvTranspose: _conv_transpose_rule,
    nn.ConvTranspose: _conv_transpose_rule,
    models.ConvTranspose: _own_conv_transpose_rule,
    linen.ConvTranspose: _own_conv_transpose_rule,
}

"""Rules for layers that are one matrix: dense layers and embeddings."""

import math
from collections.abc import Iterator, Sequence

from flax import linen as nn
from flax import nnx

from jaxclip import models
from jaxclip.convert._errors import ConversionError
from jaxclip.convert._rules.layouts import SAME, Layout
from jaxclip.convert._rules.links import (
    Link,
    Rule,
    Variables,
    named,
    raw,
    reshaped,
    same,
    transposed,
)
from jaxclip.convert._rules.parametrized import REMEDIES
from jaxclip.models import linen


def _linear(layer: object, variables: Variables) -> Iterator[Link]:
    yield transposed("weight", "kernel")
    if "bias" in variables:
        yield same("bias", "bias")


def _general(
    layer: nnx.LinearGeneral | nn.DenseGeneral, variables: Variables
) -> Iterator[Link]:
    """Link a kernel of input axes and output axes to the matrix that they make."""
    batched = layer.batch_axis if isinstance(layer, nnx.Module) else layer.batch_dims
    if batched:
        raise ConversionError(
            [
                "it has batch axes, a matrix for each place along them, which no "
                "layer of torch has. Keep the kernel as a raw parameter of a module "
                "of your own, or register a rule for a class derived from this."
            ]
        )
    inputs = len(layer.axis) if isinstance(layer.axis, Sequence) else 1
    shape = variables["kernel"].shape
    rows, columns = math.prod(shape[inputs:]), math.prod(shape[:inputs])
    yield Link(
        ("weight",),
        ("kernel",),
        to_flax=lambda weight: (weight.T.reshape(shape),),
        to_torch=lambda kernel: (kernel.reshape(columns, rows).T,),
    )
    if "bias" in variables:
        yield reshaped("bias", "bias", (rows,), variables["bias"].shape)


def _general_layout(layer: nnx.LinearGeneral | nn.DenseGeneral) -> Layout | None:
    """Return how the output lies, if its features are one axis as in torch."""
    features = (
        layer.out_features if isinstance(layer, nnx.LinearGeneral) else layer.features
    )
    return SAME if isinstance(features, int) or len(features) == 1 else None


_einsum = named({"kernel": "weight", "bias": "bias"})
_embed = named({"embedding": "weight"})

_DENSE = "the kernel is the transposed weight; after a flatten, say `flatten=`"

_GENERAL = "the matrix between the flattened axes; no batch axes"
_EINSUM = "a raw `weight` (and `bias`) for the same subscripts"

_linear_rule = Rule(
    _linear, layout=SAME, torch=("Linear",), note=_DENSE, remedies=REMEDIES
)
_general_rule = Rule(_general, layout=_general_layout, torch=("Linear",), note=_GENERAL)
_bilinear_rule = Rule(raw, layout=SAME, torch=("Bilinear",))
_embed_rule = Rule(_embed, layout=SAME, torch=("Embedding",), note="no `padding_idx`")
_own_embed_rule = Rule(_embed, layout=SAME, torch=("Embedding",))

RULES: dict[type, Rule] = {
    nnx.Linear: _linear_rule,
    nn.Dense: _linear_rule,
    nnx.LinearGeneral: _general_rule,
    nn.DenseGeneral: _general_rule,
    nnx.Einsum: Rule(_einsum, torch=("torch.einsum",), note=_EINSUM),
    nn.Einsum: Rule(_einsum, torch=("torch.einsum",), note=_EINSUM),
    models.Bilinear: _bilinear_rule,
    linen.Bilinear: _bilinear_rule,
    nnx.Embed: _embed_rule,
    nn.Embed: _embed_rule,
    models.Embed: _own_embed_rule,
    linen.Embed: _own_embed_rule,
}

"""Rules for multi-head attention, Flax's and our own, and what is built on it."""

from collections.abc import Iterator, Mapping

import numpy as np
from flax import linen as nn
from flax import nnx

from jaxclip import models
from jaxclip.convert._errors import ConversionError
from jaxclip.convert._rules.layouts import SAME
from jaxclip.convert._rules.links import Link, Rule, Variables, raw, same
from jaxclip.models import linen

_PROJECTIONS = ("query", "key", "value")


def _attention(
    layer: nnx.MultiHeadAttention | nn.MultiHeadDotProductAttention,
    variables: Variables,
) -> Iterator[Link]:
    """Link torch's rows for queries, keys and values to three kernels.

    A kernel is ``(in, N, D)`` for ``N`` heads of ``D`` features: the transposed rows,
    of which each head has ``D`` in succession. The kernel of ``out`` is ``(N, D, E)``.
    """
    shapes = _shapes(layer)
    _refuse_what_torch_lacks(layer, shapes)
    _, *heads = shapes["query.kernel"]
    size = shapes["out.kernel"][-1]
    projections = tuple(f"{name}.kernel" for name in _PROJECTIONS)
    if {shapes[name][0] for name in projections} == {size}:
        yield Link(
            ("in_proj_weight",),
            projections,
            lambda weight: tuple(
                rows.T.reshape(size, *heads) for rows in np.split(weight, 3)
            ),
            lambda *kernels: (
                np.concatenate([kernel.reshape(size, size).T for kernel in kernels]),
            ),
        )
    else:
        for name in projections:
            yield _matrix(f"{name[0]}_proj_weight", name, shapes[name], size)
    if "query.bias" in shapes:
        yield Link(
            ("in_proj_bias",),
            tuple(f"{name}.bias" for name in _PROJECTIONS),
            lambda bias: tuple(part.reshape(heads) for part in np.split(bias, 3)),
            lambda *biases: (np.concatenate([bias.ravel() for bias in biases]),),
        )
    yield _matrix("out_proj.weight", "out.kernel", shapes["out.kernel"], size)
    if "out.bias" in shapes:
        yield same("out_proj.bias", "out.bias")


def _matrix(torch: str, flax: str, shape: tuple[int, ...], rows: int) -> Link:
    """Link a matrix to the transposed one, whose axes Flax splits by heads."""
    return Link(
        (torch,),
        (flax,),
        lambda weight: (weight.T.reshape(shape),),
        lambda kernel: (kernel.reshape(-1, rows).T,),
    )


def _shapes(
    layer: nnx.MultiHeadAttention | nn.MultiHeadDotProductAttention,
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the kernels and biases in the four projections."""
    names = (*_PROJECTIONS, "out")
    if isinstance(layer, nnx.Module):
        projections = {name: nnx.state(getattr(layer, name)) for name in names}
    else:
        # The conversion binds the variables to the module.
        params = nn.meta.unbox(layer.variables["params"])
        projections = {name: params[name] for name in names}
    return {
        f"{name}.{inner}": array.shape
        for name, projection in projections.items()
        for inner, array in projection.items()
    }


def _refuse_what_torch_lacks(
    layer: nnx.MultiHeadAttention | nn.MultiHeadDotProductAttention,
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    queries, *heads = shapes["query.kernel"]
    problems = []
    if layer.normalize_qk:
        problems.append("it normalizes queries and keys, which torch's does not.")
    if shapes["key.kernel"][1] != heads[0]:
        problems.append(
            f"its {heads[0]} heads share {shapes['key.kernel'][1]} heads of keys and "
            "values; torch's have one each."
        )
    sizes = (queries, heads[0] * heads[1], shapes["out.kernel"][-1])
    if len(set(sizes)) > 1:
        problems.append(
            f"it takes queries of {sizes[0]} features, has {sizes[1]} in all heads and "
            f"gives out {sizes[2]}; in torch's all three are embed_dim."
        )
    if problems:
        raise ConversionError(problems)


_BIAS_KV = (
    "Flax's attention has no learned key and value; if torch's has (add_bias_kv=True), "
    "use jaxclip.models.MultiheadAttention (or that of jaxclip.models.linen)."
)

_APART = (
    "torch's MultiheadAttention has queries, keys and values in one in_proj_weight; "
    "where each has a layer of its own, as in BERT, derive a class from this one and "
    "say in a rule for it (convert.register) where the three go."
)
_apart = {
    f"{name}.{kind}": _APART
    for part in _PROJECTIONS
    for name in (part, f"{part[0]}_proj")
    for kind in ("weight", "bias")
}

_flax_rule = Rule(
    _attention,
    layout=SAME,
    torch=("MultiheadAttention",),
    note="True in a mask keeps; no `add_bias_kv`, no `add_zero_attn`; NNX's softmax is "
    "float32 even under float64",
    remedies={"bias_k": _BIAS_KV, "bias_v": _BIAS_KV, **_apart},
)
_own_rule = Rule(
    raw,
    layout=SAME,
    torch=("MultiheadAttention",),
    note="torch's arguments, masks and names; `batch_first` is the default",
    remedies=_apart,
)

_transformer_layer_rule = Rule(
    raw,
    layout=SAME,
    torch=("TransformerEncoderLayer", "TransformerDecoderLayer"),
    note="torch's arguments, masks and names; `batch_first` is the default",
)
_transformer_rule = Rule(
    raw,
    layout=SAME,
    torch=("TransformerEncoder", "TransformerDecoder"),
    note="takes a function that makes a layer",
)

RULES: dict[type, Rule] = {
    nnx.MultiHeadAttention: _flax_rule,
    nn.MultiHeadDotProductAttention: _flax_rule,
    nn.MultiHeadAttention: _flax_rule,
    models.MultiheadAttention: _own_rule,
    linen.MultiheadAttention: _own_rule,
    models.TransformerEncoderLayer: _transformer_layer_rule,
    linen.TransformerEncoderLayer: _transformer_layer_rule,
    models.TransformerDecoderLayer: _transformer_layer_rule,
    linen.TransformerDecoderLayer: _transformer_layer_rule,
    models.TransformerEncoder: _transformer_rule,
    linen.TransformerEncoder: _transformer_rule,
    models.TransformerDecoder: _transformer_rule,
    linen.TransformerDecoder: _transformer_rule,
}

"""Rules for weights that torch makes of others: weight_norm and spectral_norm."""

from collections.abc import Iterator
from typing import NoReturn

from flax import linen as nn
from flax import nnx

from jaxclip import models
from jaxclip.convert._errors import ConversionError
from jaxclip.convert._rules.links import Link, Rule, Variables, permuted, same

_LENGTH = "parametrizations.weight.original0"
_DIRECTION = "parametrizations.weight.original1"
_SPECTRAL = (
    "parametrizations.weight.original",
    "parametrizations.weight.0._u",
    "parametrizations.weight.0._v",
)
_OLD = ("weight_g", "weight_v", "weight_orig", "weight_u")

_FOLD = (
    "make it a plain weight first, by torch.nn.utils.parametrize."
    "remove_parametrizations(layer, 'weight'), or of the old kind by "
    "torch.nn.utils.remove_weight_norm(layer) or remove_spectral_norm(layer)."
)

REMEDIES = dict.fromkeys(
    (_LENGTH, _DIRECTION, *_SPECTRAL, *_OLD),
    f"torch's weight_norm or spectral_norm makes a weight of it: {_FOLD} To keep "
    "weight_norm, put the layer into jaxclip.models.WeightNorm, or in Linen into "
    "flax.linen.WeightNorm.",
)
"""For the layers that hold a plain weight."""

_RENAME = dict.fromkeys(
    ("weight_g", "weight_v"),
    "It is of torch's old weight_norm: rename=lambda name: name.replace('weight_g', "
    f"'{_LENGTH}').replace('weight_v', '{_DIRECTION}') gives it the name that it has "
    "in torch.nn.utils.parametrizations.weight_norm, which loads either.",
)


def _weight_norm(module: models.WeightNorm, variables: Variables) -> Iterator[Link]:
    bias = getattr(module.layer, "bias", None)
    return _links(module.layer, "layer", "scale", use_bias=bias is not None)


def _linen_weight_norm(module: nn.WeightNorm, variables: Variables) -> Iterator[Link]:
    if module.feature_axes not in (-1, (-1,)) or len(variables) != 1:
        _refuse(
            "torch's weight_norm is of the weight alone, with one length for each "
            "output: feature_axes=-1, use_scale=True, variable_filter={'kernel'}."
        )
    layer, (scale,) = module.layer_instance, variables
    use_bias = getattr(layer, "use_bias", False)
    return _links(layer, "layer_instance", scale, use_bias=use_bias)


def _links(
    layer: object, attribute: str, scale: str, *, use_bias: bool
) -> Iterator[Link]:
    """Link the lengths, the directions, and the bias if there is one."""
    match layer:
        case nnx.Linear() | nn.Dense():
            window = 0
        case nnx.Conv() | nn.Conv():
            sizes = layer.kernel_size
            window = 1 if isinstance(sizes, int) else len(sizes)
        case _:
            _refuse(
                f"it holds a {type(layer).__qualname__}; torch's lengths are those of "
                "the outputs in Linear, Dense and Conv alone."
            )
    yield Link(
        (_LENGTH,),
        (scale,),
        to_flax=lambda lengths: (lengths.reshape(-1),),
        to_torch=lambda scale: (scale.reshape(-1, *[1] * (window + 1)),),
    )
    axes = (*range(2, window + 2), 1, 0)
    yield permuted(_DIRECTION, f"{attribute}.kernel", axes)
    if use_bias:
        yield same("bias", f"{attribute}.bias")


def _stock_weight_norm(module: object, variables: Variables) -> Iterator[Link]:
    _refuse(
        "it keeps its scales outside its variables, and every call overwrites the "
        "kernel: use jaxclip.models.WeightNorm."
    )


def _spectral_norm(module: object, variables: Variables) -> Iterator[Link]:
    _refuse(
        "it keeps one vector where torch's spectral_norm keeps two, and iterates in "
        f"evaluation too, so that outputs differ. In torch {_FOLD} Then convert into "
        "the layer alone."
    )


def _refuse(why: str) -> NoReturn:
    raise ConversionError([why])


_TORCH = ("parametrizations.weight_norm",)
_NOTE = "around Linear, Dense, Conv"

RULES: dict[type, Rule] = {
    models.WeightNorm: Rule(_weight_norm, torch=_TORCH, note=_NOTE, remedies=_RENAME),
    nn.WeightNorm: Rule(_linen_weight_norm, torch=_TORCH, note=_NOTE, remedies=_RENAME),
    nnx.WeightNorm: Rule(_stock_weight_norm),
    nnx.SpectralNorm: Rule(_spectral_norm),
    nn.SpectralNorm: Rule(_spectral_norm),
}

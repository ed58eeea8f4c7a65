"""Rules for weights that torch makes of others: weight_norm and spectral_norm."""

from collections.abc import Iterator
from typing import Any, NoReturn

from flax import linen as nn
from flax import nnx

from jaxclip import models
from jaxclip.convert._errors import ConversionError
from jaxclip.convert._rules.links import Link, Rule, Variables, permuted, same
from jaxclip.models import linen

_LENGTH = "parametrizations.weight.original0"
_DIRECTION = "parametrizations.weight.original1"
_SPECTRAL = (
    "parametrizations.weight.original",
    "parametrizations.weight.0._u",
    "parametrizations.weight.0._v",
)
_OLD = ("weight_g", "weight_v", "weight_orig", "weight_u")

REMEDIES = dict.fromkeys(
    (_LENGTH, _DIRECTION, *_SPECTRAL, *_OLD),
    "torch's weight_norm or spectral_norm makes a weight of it: put the layer into "
    "WeightNorm or SpectralNorm of jaxclip.models (in Linen into flax.linen.WeightNorm "
    "or jaxclip.models.linen.SpectralNorm); or make it a plain weight first, by "
    "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight'), or of the "
    "old kind by torch.nn.utils.remove_weight_norm(layer) or "
    "remove_spectral_norm(layer).",
)
"""For the layers that hold a plain weight."""

_RENAME = dict.fromkeys(
    ("weight_g", "weight_v"),
    "It is of torch's old weight_norm: rename=lambda name: name.replace('weight_g', "
    f"'{_LENGTH}').replace('weight_v', '{_DIRECTION}') gives it the name that it has "
    "in torch.nn.utils.parametrizations.weight_norm, which loads either.",
)


def _weight_norm(module: models.WeightNorm, variables: Variables) -> Iterator[Link]:
    return _norm_links(module.layer, "layer", "scale")


def _linen_weight_norm(module: nn.WeightNorm, variables: Variables) -> Iterator[Link]:
    if module.feature_axes not in (-1, (-1,)) or len(variables) != 1:
        _refuse(
            "torch's weight_norm is of the weight alone, with one length for each "
            "output: feature_axes=-1, use_scale=True, variable_filter={'kernel'}."
        )
    (scale,) = variables
    return _norm_links(module.layer_instance, "layer_instance", scale)


def _norm_links(layer: object, attribute: str, scale: str) -> Iterator[Link]:
    """Link the lengths, and the layer that holds the directions."""
    ones = (1,) * (_rank(layer) - 1)
    yield Link(
        (_LENGTH,),
        (scale,),
        to_flax=lambda lengths: (lengths.reshape(-1),),
        to_torch=lambda scale: (scale.reshape(-1, *ones),),
    )
    yield from _layer_links(layer, attribute, _DIRECTION)


def _spectral_norm(
    module: models.SpectralNorm | linen.SpectralNorm, variables: Variables
) -> Iterator[Link]:
    """Link the two vectors, and the layer that holds the weight."""
    weight, u, v = _SPECTRAL
    yield same(u, "u")
    yield same(v, "v")
    yield from _layer_links(module.layer, "layer", weight)


def _layer_links(layer: Any, attribute: str, weight: str) -> Iterator[Link]:
    window = range(2, _rank(layer))
    yield permuted(weight, f"{attribute}.kernel", (*window, 1, 0))
    if layer.use_bias:
        yield same("bias", f"{attribute}.bias")


def _rank(layer: object) -> int:
    """Return how many axes the kernel has, of a layer that torch wraps likewise."""
    match layer:
        case nnx.Linear() | nn.Dense():
            return 2
        case nnx.Conv() | nn.Conv():
            sizes = layer.kernel_size
            return 3 if isinstance(sizes, int) else len(sizes) + 2
        case _:
            _refuse(
                f"it holds a {type(layer).__qualname__}; the first axis in torch is "
                "the last in Flax, that of the outputs, in Linear, Dense and Conv "
                "alone."
            )


def _stock_weight_norm(module: object, variables: Variables) -> Iterator[Link]:
    _refuse(
        "it keeps its scales outside its variables, and every call overwrites the "
        "kernel: use jaxclip.models.WeightNorm."
    )


def _stock_spectral_norm(module: object, variables: Variables) -> Iterator[Link]:
    _refuse(
        "it keeps one vector where torch's spectral_norm keeps two, and iterates in "
        "evaluation too, so that outputs differ: use jaxclip.models.SpectralNorm (or "
        "that of jaxclip.models.linen)."
    )


def _refuse(why: str) -> NoReturn:
    raise ConversionError([why])


def _layer(module: Any) -> Any:
    """Return the layer inside, whose output this is."""
    return module.layer_instance if isinstance(module, nn.WeightNorm) else module.layer


_WEIGHT_NORM = ("parametrizations.weight_norm",)
_SPECTRAL_NORM = ("parametrizations.spectral_norm",)
_NOTE = "around Linear, Dense, Conv"

_weight_norm_rule, _linen_weight_norm_rule = (
    Rule(links, layout=_layer, torch=_WEIGHT_NORM, note=_NOTE, remedies=_RENAME)
    for links in (_weight_norm, _linen_weight_norm)
)
_spectral_norm_rule = Rule(
    _spectral_norm, layout=_layer, torch=_SPECTRAL_NORM, note=_NOTE
)

RULES: dict[type, Rule] = {
    models.WeightNorm: _weight_norm_rule,
    nn.WeightNorm: _linen_weight_norm_rule,
    nnx.WeightNorm: Rule(_stock_weight_norm),
    models.SpectralNorm: _spectral_norm_rule,
    linen.SpectralNorm: _spectral_norm_rule,
    nnx.SpectralNorm: Rule(_stock_spectral_norm),
    nn.SpectralNorm: Rule(_stock_spectral_norm),
}

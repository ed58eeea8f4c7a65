"""Rules for activations that learn."""

from collections.abc import Iterator

from flax import linen as nn
from flax import nnx

from jaxclip import models
from jaxclip.convert._rules.layouts import CHANNELS_LAST, Layout
from jaxclip.convert._rules.links import Link, Rule, Variables, raw, reshaped
from jaxclip.models import linen


def _prelu(layer: object, variables: Variables) -> Iterator[Link]:
    """Link the one slope: an array of one element in torch, and of no axes in Flax."""
    yield reshaped("weight", "negative_slope", (1,), ())


def _own_prelu_layout(layer: models.PReLU | linen.PReLU) -> Layout | None:
    """Return how the output lies, if slopes for channels say where those are."""
    if isinstance(layer, models.PReLU):
        slopes = layer.weight.size
    else:
        slopes = layer.num_parameters
    return CHANNELS_LAST if slopes > 1 else None


_prelu_rule = Rule(
    _prelu,
    torch=("PReLU",),
    note="one slope for all channels; its derivative at 0 is 1, torch's the slope",
    remedies={
        "weight": "Flax's PReLU has one slope for all channels; use "
        "jaxclip.models.PReLU (or that of jaxclip.models.linen)."
    },
)

_own_prelu_rule = Rule(raw, layout=_own_prelu_layout, torch=("PReLU",))

RULES: dict[type, Rule] = {
    nnx.PReLU: _prelu_rule,
    nn.PReLU: _prelu_rule,
    models.PReLU: _own_prelu_rule,
    linen.PReLU: _own_prelu_rule,
}

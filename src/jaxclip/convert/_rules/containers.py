"""Rules for what only holds other modules, and for what users derive theirs from."""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
from flax import nnx

from jaxclip import models
from jaxclip.convert._rules.links import Rule, raw
from jaxclip.models import linen as models_linen


def _last(module: Any) -> object:
    """Return the last layer, whose output this is, if it is a module."""
    if isinstance(module, models.Sequential):
        layers = [getattr(module, name) for name in module.names]
    else:
        layers = module.layers
        layers = [*(layers.values() if isinstance(layers, Mapping) else layers)]
    last = layers[-1] if layers else None
    return last if isinstance(last, nnx.Module | nn.Module) else None


_RAW = "as they are, under the same names"

RULES: dict[type, Rule] = {
    nnx.List: Rule(raw, torch=("ModuleList", "ParameterList"), note="a list in Linen"),
    nnx.Dict: Rule(raw, torch=("ModuleDict", "ParameterDict"), note="a dict in Linen"),
    nnx.Sequential: Rule(raw, hidden="layers", layout=_last, torch=("Sequential",)),
    nn.Sequential: Rule(raw, hidden="layers", layout=_last, torch=("Sequential",)),
    models.Sequential: Rule(raw, layout=_last),
    models_linen.Sequential: Rule(raw, hidden="layers", layout=_last),
    nnx.Module: Rule(raw, torch=("Parameter", "Buffer"), note=_RAW),
    nn.Module: Rule(raw, torch=("Parameter", "Buffer"), note=_RAW),
    nnx.Pytree: Rule(raw),
}

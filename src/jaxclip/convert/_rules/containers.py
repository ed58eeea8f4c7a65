"""Rules for what only holds other modules, and for what users derive theirs from."""

from flax import linen as nn
from flax import nnx

from jaxclip.convert._rules.links import Rule, raw
from jaxclip.models import linen as models_linen

_RAW = "as they are, under the same names"

RULES: dict[type, Rule] = {
    nnx.List: Rule(raw, torch=("ModuleList", "ParameterList"), note="a list in Linen"),
    nnx.Dict: Rule(raw, torch=("ModuleDict", "ParameterDict"), note="a dict in Linen"),
    nnx.Sequential: Rule(raw, hidden="layers", torch=("Sequential",)),
    nn.Sequential: Rule(raw, hidden="layers", torch=("Sequential",)),
    models_linen.Sequential: Rule(raw, hidden="layers"),
    nnx.Module: Rule(raw, torch=("Parameter", "Buffer"), note=_RAW),
    nn.Module: Rule(raw, torch=("Parameter", "Buffer"), note=_RAW),
    nnx.Pytree: Rule(raw),
}

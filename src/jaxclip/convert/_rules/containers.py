"""Rules for what only holds other modules, and for what users derive theirs from."""

from flax import linen as nn
from flax import nnx

from jaxclip.convert._rules.links import Rule, raw
from jaxclip.models import linen as models_linen

RULES: dict[type, Rule] = {
    nnx.Module: Rule(raw),
    nnx.Pytree: Rule(raw),
    nn.Module: Rule(raw),
    nnx.List: Rule(raw),
    nnx.Dict: Rule(raw),
    nnx.Sequential: Rule(raw, hidden="layers"),
    nn.Sequential: Rule(raw, hidden="layers"),
    models_linen.Sequential: Rule(raw, hidden="layers"),
}

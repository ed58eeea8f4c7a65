"""Rules for the models of ``jaxclip.models``, whose own variables lie as torch's do."""

from jaxclip import models
from jaxclip.convert._rules.layouts import CHANNELS_LAST, SAME
from jaxclip.convert._rules.links import Rule, raw
from jaxclip.models import _gpt, _resnet, linen
from jaxclip.models.linen import _gpt as linen_gpt
from jaxclip.models.linen import _resnet as linen_resnet

_features_last = Rule(raw, layout=SAME)
_images = Rule(raw, layout=CHANNELS_LAST)

RULES: dict[type, Rule] = {
    models.MyLinear: _features_last,
    linen.MyLinear: _features_last,
    models.RNNLM: _features_last,
    linen.RNNLM: _features_last,
    models.RNNLMScratch: _features_last,
    linen.RNNLMScratch: _features_last,
    models.GPT: _features_last,
    linen.GPT: _features_last,
    _gpt.Block: _features_last,
    linen_gpt.Block: _features_last,
    _gpt.MLP: _features_last,
    linen_gpt.MLP: _features_last,
    _gpt.CausalSelfAttention: _features_last,
    linen_gpt.CausalSelfAttention: _features_last,
    models.ResNet: _features_last,
    linen.ResNet: _features_last,
    _resnet.BasicBlock: _images,
    linen_resnet.BasicBlock: _images,
}

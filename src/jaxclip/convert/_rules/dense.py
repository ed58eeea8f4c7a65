"""Rules for layers that are one matrix: dense layers and embeddings."""

from collections.abc import Collection, Iterator

from flax import linen as nn
from flax import nnx

from jaxclip.convert._rules.links import Link, Rule, same, transposed


def _linear(layer: object, names: Collection[str]) -> Iterator[Link]:
    yield transposed("weight", "kernel")
    if "bias" in names:
        yield same("bias", "bias")


def _embed(layer: object, names: Collection[str]) -> Iterator[Link]:
    yield same("weight", "embedding")


RULES: dict[type, Rule] = {
    nnx.Linear: Rule(_linear),
    nn.Dense: Rule(_linear),
    nnx.Embed: Rule(_embed),
    nn.Embed: Rule(_embed),
}

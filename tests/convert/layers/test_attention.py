"""Multi-head attention, and masks that mean the opposite."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn
from flax import nnx

from jaxclip import models
from jaxclip.convert import ConversionError, from_torch, to_torch
from jaxclip.models import linen
from tests.convert.layers.harness import check_layer, normal, randomise
from tests.convert.layers.wrapped import wrap

BATCH, QUERIES, KEYS, EMBED, HEADS = 2, 3, 4, 6, 2

rng = np.random.default_rng(0)
FUTURE = np.triu(np.ones((QUERIES, KEYS), bool), 1)
PADDING = np.array([[False, False, False, True], [False, False, True, True]])
NOTHING = FUTURE | np.array([[True], [False], [False]])
ADDED = rng.normal(size=(BATCH * HEADS, QUERIES, KEYS))
ADDED_PADDING = np.where(PADDING, -np.inf, rng.normal(size=PADDING.shape))

# The options of the layer, those of the call, and the masks.
CASES = {
    "packed": ({}, {}, {"attn_mask": FUTURE, "key_padding_mask": PADDING}),
    "separate": (
        {"kdim": 5, "vdim": 7, "add_bias_kv": True, "batch_first": False},
        {"average_attn_weights": False},
        {"attn_mask": ADDED},
    ),
    "zero_attn": (
        {"vdim": 7, "bias": False, "add_zero_attn": True},
        {"need_weights": False},
        {"key_padding_mask": ADDED_PADDING},
    ),
    "all_behind": (
        {"add_bias_kv": True, "add_zero_attn": True},
        {},
        {"attn_mask": ADDED, "key_padding_mask": ADDED_PADDING},
    ),
    "nothing_to_see": ({}, {"need_weights": False}, {"attn_mask": NOTHING}),
}


def inputs(kdim=EMBED, vdim=EMBED, batch_first=True, **_):
    """Return queries, keys and values."""
    shapes = [(QUERIES, EMBED), (KEYS, kdim), (KEYS, vdim)]
    arrays = [normal(BATCH, *shape, seed=i) for i, shape in enumerate(shapes)]
    return arrays if batch_first else [array.swapaxes(0, 1) for array in arrays]


@pytest.mark.parametrize("case", CASES)
def test_attention_is_torchs_with_every_option_and_mask(case):
    options, call_options, masks = CASES[case]

    def call(layer, query, key, value, *arrays):
        named = dict(zip(masks, arrays, strict=True))
        return layer(query, key, value, **named, **call_options)

    sizes = EMBED, HEADS
    check_layer(
        *wrap(
            call,
            torch.nn.MultiheadAttention(*sizes, **({"batch_first": True} | options)),
            partial(models.MultiheadAttention, *sizes, **options),
            partial(linen.MultiheadAttention, *sizes, **options),
        ),
        *inputs(**options),
        *masks.values(),
        signed=True,
        # float64 settles the algorithm.
        dtypes=("float32", "float64") if case == "packed" else ("float64",),
    )


def in_all_three(**options):
    """Return a torch layer and its NNX and Linen counterparts, as functions."""
    source = torch.nn.MultiheadAttention(EMBED, HEADS, batch_first=True, **options)
    randomise(source, signed=True)
    layer = models.MultiheadAttention(EMBED, HEADS, **options, rngs=nnx.Rngs(0))
    module, x = (
        linen.MultiheadAttention(EMBED, HEADS, **options),
        jnp.ones((1, 1, EMBED)),
    )
    shapes = jax.eval_shape(
        partial(module.init, deterministic=True), jax.random.key(0), x, x, x
    )
    _, variables = from_torch((module, shapes), source)
    return source, from_torch(layer, source), partial(module.apply, variables)


def test_a_query_that_may_look_nowhere_gives_nan_when_weights_are_asked_for():
    x = normal(1, 3, EMBED).astype("f")
    blocked = np.zeros((3, 3), bool)
    blocked[0] = True
    source, *ports = in_all_three()
    expected, _ = source(*[torch.tensor(x)] * 3, attn_mask=torch.tensor(blocked))
    for port in ports:
        actual, _ = port(x, x, x, attn_mask=blocked)
        assert np.isnan(actual[0, 0]).all()
        np.testing.assert_allclose(actual, expected.detach(), rtol=1e-5, atol=1e-6)


def test_dropout_acts_on_the_weights_and_only_in_training():
    x = normal(1, 3, EMBED).astype("f")
    # Dropout of everything is the same in all three, whatever they draw.
    source, layer, in_linen = in_all_three(dropout=1.0)
    for training in (True, False):
        source.train(training)
        layer.train() if training else layer.eval()
        _, expected = source(*[torch.tensor(x)] * 3)
        _, in_nnx = layer(x, x, x)
        key = {"dropout": jax.random.key(0)}
        _, weights = in_linen(x, x, x, deterministic=not training, rngs=key)
        assert bool((expected == 0).all()) == training
        np.testing.assert_allclose(in_nnx, expected.detach(), rtol=1e-5)
        np.testing.assert_allclose(weights, expected.detach(), rtol=1e-5)


# Flax's own attention.

STOCK = {
    "packed": {},
    "no_bias": {"bias": False},
    "separate": {"kdim": 5, "vdim": 5},
}


def keep(layer, query, key, value, blocked):
    """Call torch's attention with its mask, and Flax's with the opposite."""
    if isinstance(layer, torch.nn.Module):
        return layer(query, key, value, attn_mask=blocked)[0]
    decode = {"decode": False} if isinstance(layer, nnx.Module) else {}
    return layer(query, key, value, mask=~blocked[None, None], **decode)


def in_full_precision(query, key, value, *, mask, dtype, **_):
    """Attend as Linen does: NNX has its softmax in float32 whatever the dtype."""
    return nn.dot_product_attention(query, key, value, mask=mask, dtype=dtype)


@pytest.mark.parametrize("case", STOCK)
def test_flaxs_attention_is_torchs_with_the_mask_reversed(case):
    options = STOCK[case]
    use_bias = options.get("bias", True)
    in_linen = nn.MultiHeadDotProductAttention if use_bias else nn.MultiHeadAttention
    check_layer(
        *wrap(
            keep,
            torch.nn.MultiheadAttention(EMBED, HEADS, batch_first=True, **options),
            partial(
                nnx.MultiHeadAttention,
                HEADS,
                EMBED,
                in_kv_features=options.get("kdim"),
                use_bias=use_bias,
                attention_fn=in_full_precision,
            ),
            partial(in_linen, HEADS, use_bias=use_bias),
        ),
        *inputs(**options),
        FUTURE,
        signed=True,
        dtypes=("float32", "float64") if case == "packed" else ("float64",),
    )


def stock(**options):
    """Return an attention of NNX's own."""
    return nnx.MultiHeadAttention(
        HEADS, EMBED, decode=False, **options, rngs=nnx.Rngs(0)
    )


def test_a_mask_of_torchs_means_the_opposite_in_flax():
    source, *_ = in_all_three()
    layer = from_torch(stock(), source)
    query, key, value = (array.astype("f") for array in inputs())
    expected = source(
        *map(torch.tensor, (query, key, value)), attn_mask=torch.tensor(FUTURE)
    )
    expected = expected[0].detach().numpy()

    def error(mask):
        return np.abs(layer(query, key, value, mask=mask[None, None]) - expected).max()

    assert error(~FUTURE) < 1e-6
    assert error(FUTURE) > 0.1


def test_a_query_that_may_look_nowhere_looks_everywhere_in_flax():
    source, *_ = in_all_three()
    layer, x = from_torch(stock(), source), normal(1, 3, EMBED).astype("f")
    actual = layer(x, mask=jnp.zeros((1, 1, 3, 3), bool))
    # Without queries every key fits as well as any other.
    with torch.no_grad():
        source.in_proj_weight[:EMBED] = 0
        source.in_proj_bias[:EMBED] = 0
        expected, _ = source(*[torch.tensor(x)] * 3)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_nnx_attends_in_float32_even_under_float64():
    query, key, value = inputs()
    source, *_ = in_all_three()
    expected, _ = source.double()(*map(torch.tensor, (query, key, value)))
    expected = expected.detach().numpy()
    with jax.enable_x64(True):
        ports = [
            from_torch(stock(param_dtype="float64", **options), source)
            for options in ({}, {"attention_fn": in_full_precision})
        ]
        errors = [
            np.abs(np.asarray(port(query, key, value)) - expected).max()
            for port in ports
        ]
    assert errors[0] > 1e-10
    assert errors[1] < 1e-14


def test_a_learned_key_and_value_are_refused_with_what_to_use():
    source = torch.nn.MultiheadAttention(EMBED, HEADS, add_bias_kv=True)
    with pytest.raises(ConversionError) as caught:
        from_torch(stock(), source)
    assert len(caught.value.problems) == 2
    for name, problem in zip(["bias_k", "bias_v"], caught.value.problems, strict=True):
        assert f"{name!r} (1, 1, 6) is not used." in problem
        assert "use jaxclip.models.MultiheadAttention (or that of jaxc" in problem


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"normalize_qk": True}, "it normalizes queries and keys, which torch's does"),
        ({"num_kv_heads": 1}, "its 2 heads share 1 heads of keys and values; torch's"),
        ({"qkv_features": 8}, "it takes queries of 6 features, has 8 in all heads and"),
        ({"out_features": 3}, "in all heads and gives out 3; in torch's all three are"),
    ],
)
def test_attention_that_torch_does_not_have_is_refused(options, problem):
    with pytest.raises(ConversionError, match=problem):
        to_torch(stock(**options))
    if "num_kv_heads" in options:
        return
    module, x = nn.MultiHeadDotProductAttention(HEADS, **options), jnp.ones((1, EMBED))
    with pytest.raises(ConversionError, match=problem):
        to_torch((module, module.init(jax.random.key(0), x)))

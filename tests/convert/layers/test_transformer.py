"""The layers of transformers, alone and in stacks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn
from flax import nnx

from jaxclip import models
from jaxclip.convert import from_torch, to_torch
from jaxclip.models import linen
from tests.convert.layers.harness import check_layer, normal, randomise
from tests.convert.layers.wrapped import wrap

BATCH, TARGETS, SOURCES, MODEL, HEADS, HIDDEN = 2, 3, 4, 4, 2, 5

FUTURE = np.triu(np.ones((TARGETS, TARGETS), bool), 1)
PADDING = np.array([[False, False, False], [False, False, True]])
MEMORY_MASK = np.random.default_rng(0).normal(size=(TARGETS, SOURCES))
MEMORY_PADDING = np.array([[False, True, False, False], [False, False, True, True]])

ENCODER_MASKS = {"src_mask": FUTURE, "src_key_padding_mask": PADDING}
DECODER_MASKS = {
    "tgt_mask": FUTURE,
    "memory_mask": MEMORY_MASK,
    "tgt_key_padding_mask": PADDING,
    "memory_key_padding_mask": np.where(MEMORY_PADDING, -np.inf, 0.0),
}

# Between them the rows switch on every option of both kinds of layer.
LAYERS = {
    "encoder": ("Encoder", {"batch_first": False}, ENCODER_MASKS),
    "encoder, norm first": (
        "Encoder",
        {"norm_first": True, "activation": "gelu", "bias": False},
        {},
    ),
    "decoder": ("Decoder", {"activation": "gelu", "layer_norm_eps": 0.1}, {}),
    "decoder, norm first": (
        "Decoder",
        {"norm_first": True, "batch_first": False},
        DECODER_MASKS,
    ),
}


def inputs(kind, batch_first=True, **_):
    """Return what a layer is called with."""
    arrays = [normal(BATCH, TARGETS, MODEL), normal(BATCH, SOURCES, MODEL, seed=2)]
    arrays = arrays if kind == "Decoder" else arrays[:1]
    return arrays if batch_first else [array.swapaxes(0, 1) for array in arrays]


def with_masks(kind, masks):
    count = 2 if kind == "Decoder" else 1

    def call(layer, *arrays):
        named = dict(zip(masks, arrays[count:], strict=True))
        return layer(*arrays[:count], **named)

    return call


@pytest.mark.parametrize("case", LAYERS)
def test_layers_are_torchs_with_every_option_and_mask(case):
    kind, options, masks = LAYERS[case]
    name, sizes = f"Transformer{kind}Layer", (MODEL, HEADS, HIDDEN)
    options = {"dropout": 0.0} | options
    in_torch = {"batch_first": True} | options
    check_layer(
        *wrap(
            with_masks(kind, masks),
            getattr(torch.nn, name)(*sizes, **in_torch),
            partial(getattr(models, name), *sizes, **options),
            partial(getattr(linen, name), *sizes, **options),
        ),
        *inputs(kind, **options),
        *masks.values(),
        signed=True,
        # float64 settles the algorithm.
        dtypes=("float32", "float64") if case == "decoder" else ("float64",),
    )


@pytest.mark.parametrize("kind", ["Encoder", "Decoder"])
def test_stacks_are_torchs(kind):
    name, sizes = f"Transformer{kind}", (MODEL, HEADS, HIDDEN)
    masks = DECODER_MASKS
    if kind == "Encoder":
        masks = {"mask": FUTURE, "src_key_padding_mask": PADDING}
    arrays = [*inputs(kind), *masks.values()]
    arrays = [x.astype("f") if x.dtype.kind == "f" else x for x in arrays]
    call = with_masks(kind, masks)

    layer = getattr(torch.nn, f"{name}Layer")(*sizes, dropout=0.0, batch_first=True)
    nested = {"enable_nested_tensor": False} if kind == "Encoder" else {}
    norm = torch.nn.LayerNorm(MODEL)
    source = getattr(torch.nn, name)(layer, 2, norm, **nested)
    randomise(source, signed=True)
    expected = call(source, *map(torch.tensor, arrays)).detach()

    rngs = nnx.Rngs(0)
    layer = getattr(models, f"{name}Layer")
    layer = partial(layer, *sizes, dropout=0.0, rngs=rngs)
    norm = nnx.LayerNorm(MODEL, epsilon=1e-5, rngs=rngs)
    stack = from_torch(getattr(models, name)(layer, 2, norm), source)
    assert_close(call(stack, *arrays), expected)

    layer = partial(getattr(linen, f"{name}Layer"), *sizes, dropout=0.0)
    module = getattr(linen, name)(layer, 2, nn.LayerNorm(epsilon=1e-5))
    init = partial(call, partial(module.init, jax.random.key(0)))
    pair = from_torch((module, jax.eval_shape(init, *arrays)), source)
    assert_close(call(partial(module.apply, pair[1]), *arrays), expected)

    for converted in (stack, pair):
        returned = to_torch(converted)
        assert returned.keys() == source.state_dict().keys()
        for name, tensor in source.state_dict().items():
            assert torch.equal(returned[name], tensor), name


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["Encoder", "Decoder"])
def test_dropout_lies_where_torch_has_it_and_only_in_training(kind):
    # Dropout of everything is the same in all three, whatever they draw.
    name, sizes = f"Transformer{kind}Layer", (MODEL, HEADS, HIDDEN)
    source = getattr(torch.nn, name)(*sizes, dropout=1.0, batch_first=True)
    randomise(source, signed=True)
    layer = getattr(models, name)(*sizes, dropout=1.0, rngs=nnx.Rngs(0))
    layer = from_torch(layer, source)
    module = getattr(linen, name)(*sizes, dropout=1.0)
    arrays = [array.astype("f") for array in inputs(kind)]
    init = partial(module.init, deterministic=True)
    shapes = jax.eval_shape(init, jax.random.key(0), *arrays)
    _, variables = from_torch((module, shapes), source)
    for training in (True, False):
        source.train(training)
        layer.train() if training else layer.eval()
        # With gradients torch takes the path that it trains on.
        expected = source(*map(torch.tensor, arrays)).detach()
        key = {"dropout": jax.random.key(0)}
        off = {"deterministic": not training}
        in_linen = module.apply(variables, *arrays, **off, rngs=key)
        for actual in (layer(*arrays), in_linen):
            assert_close(actual, expected)


@pytest.mark.parametrize("kind", ["Encoder", "Decoder"])
def test_layers_of_a_stack_start_from_numbers_of_their_own(kind):
    name, rngs = f"Transformer{kind}", nnx.Rngs(0)
    layer = partial(getattr(models, f"{name}Layer"), MODEL, HEADS, HIDDEN, rngs=rngs)
    stack = getattr(models, name)(layer, 2)
    first, second = (layer.linear1.kernel[...] for layer in stack.layers)
    assert (first != second).all()
    # torch's are copies of one.
    theirs = getattr(torch.nn, f"{name}Layer")(MODEL, HEADS, HIDDEN, batch_first=True)
    theirs = getattr(torch.nn, name)(theirs, 2)
    assert torch.equal(theirs.layers[0].linear1.weight, theirs.layers[1].linear1.weight)


@pytest.mark.parametrize("kind", ["Encoder", "Decoder"])
@pytest.mark.parametrize("package", [models, linen])
def test_layers_that_do_not_exist_are_refused(package, kind):
    layer = getattr(package, f"Transformer{kind}Layer")
    rngs = {"rngs": nnx.Rngs(0)} if package is models else {}

    def build(*sizes, **options):
        layer_or_module = layer(*sizes, **options, **rngs)
        if package is linen:
            x = jnp.ones((1, 1, 4))
            layer_or_module.init(jax.random.key(0), *[x] * (1 + (kind == "Decoder")))

    with pytest.raises(ValueError, match="activation is 'silu'; it must be one of 're"):
        build(4, 2, 8, activation="silu")
    with pytest.raises(ValueError, match="dim_feedforward is 0; it must be at least 1"):
        build(4, 2, 0)
    with pytest.raises(ValueError, match="num_heads is 3; it must divide embed_dim"):
        build(4, 3, 8)
    with pytest.raises(ValueError, match=r"dropout is -1\.0; it must be from 0 to 1"):
        build(4, 2, 8, dropout=-1.0)

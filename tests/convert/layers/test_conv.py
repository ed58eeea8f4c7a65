"""Convolutions and transposed convolutions of one, two and three axes."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn
from flax import nnx

from jaxclip import models
from jaxclip.convert import ConversionError, from_torch
from jaxclip.models import linen
from tests.convert.layers.harness import check_layer, normal

# Axes, and torch's arguments. Sizes, windows and strides are odd and unequal.
CONVS = {
    "1d": (1, {}),
    "1d, all": (1, {"stride": 3, "padding": 2, "dilation": 2, "groups": 2}),
    "1d, no bias": (1, {"bias": False}),
    "2d": (2, {"padding": (1, 2)}),
    "2d, stride": (2, {"stride": (2, 3), "padding": (0, 1)}),
    "2d, all": (2, {"stride": 2, "padding": 3, "dilation": (2, 1), "groups": 2}),
    "2d, depthwise": (2, {"groups": 4, "padding": 1}),
    "3d, all": (3, {"stride": (1, 2, 2), "padding": 1, "groups": 2}),
}
WINDOW = (3, 2, 4)

# Which axes go where is settled in float64; float32 has its say along one axis.
DTYPES = {1: ("float32", "float64"), 2: ("float64",), 3: ("float64",)}
SIZES = (7, 6, 5)


def each(value, axes):
    return (value,) * axes if isinstance(value, int) else value


@pytest.mark.parametrize(("axes", "options"), CONVS.values(), ids=CONVS)
def test_conv(axes, options):
    window = WINDOW[:axes]
    arguments = {
        "kernel_size": window,
        "strides": options.get("stride", 1),
        "padding": [(p, p) for p in each(options.get("padding", 0), axes)],
        "kernel_dilation": options.get("dilation", 1),
        "feature_group_count": options.get("groups", 1),
        "use_bias": options.get("bias", True),
    }
    check_layer(
        getattr(torch.nn, f"Conv{axes}d")(4, 8, window, **options),
        partial(nnx.Conv, 4, 8, **arguments),
        partial(nn.Conv, 8, **arguments),
        normal(2, 4, *SIZES[:axes]),
        channels_last=True,
        dtypes=DTYPES[axes],
    )


TRANSPOSES = {
    "1d": (1, {}),
    "1d, dilation": (1, {"stride": 2, "dilation": 3, "output_padding": 2}),
    "1d, no bias": (1, {"bias": False, "stride": 3}),
    "2d": (2, {"padding": (1, 0)}),
    "2d, output padding": (
        2,
        {"stride": (2, 3), "padding": 1, "output_padding": (1, 2)},
    ),
    "2d, more padding than window": (2, {"stride": 2, "padding": (3, 2)}),
    "3d": (3, {"stride": (1, 2, 2), "padding": (2, 1, 1), "output_padding": (0, 1, 0)}),
}


@pytest.mark.parametrize("transpose_kernel", [False, True])
@pytest.mark.parametrize(("axes", "options"), TRANSPOSES.values(), ids=TRANSPOSES)
def test_stock_conv_transpose(axes, options, transpose_kernel):
    window, dilation = WINDOW[:axes], options.get("dilation", 1)
    reach = [(k - 1) * dilation for k in window]
    padding = each(options.get("padding", 0), axes)
    extra = each(options.get("output_padding", 0), axes)
    arguments = {
        "kernel_size": window,
        "strides": each(options.get("stride", 1), axes),
        "padding": [
            (r - p, r - p + e) for r, p, e in zip(reach, padding, extra, strict=True)
        ],
        "kernel_dilation": dilation,
        "use_bias": options.get("bias", True),
        "transpose_kernel": transpose_kernel,
    }
    check_layer(
        getattr(torch.nn, f"ConvTranspose{axes}d")(4, 6, window, **options),
        partial(nnx.ConvTranspose, 4, 6, **arguments),
        partial(nn.ConvTranspose, 6, **arguments),
        normal(2, 4, *SIZES[:axes]),
        channels_last=True,
        dtypes=DTYPES[axes],
    )


GROUPED = {
    "1d, groups": (1, {"groups": 2}),
    "2d, depthwise": (2, {"groups": 4, "stride": 2}),
    "3d, groups": (
        3,
        {"groups": 2, "stride": 2, "padding": 1, "output_padding": 1, "dilation": 2},
    ),
}


@pytest.mark.parametrize(
    ("axes", "options"),
    [*TRANSPOSES.values(), *GROUPED.values()],
    ids=[*TRANSPOSES, *GROUPED],
)
def test_own_conv_transpose(axes, options):
    names = {
        "stride": "strides",
        "dilation": "kernel_dilation",
        "groups": "feature_group_count",
        "bias": "use_bias",
    }
    arguments = {names.get(name, name): value for name, value in options.items()}
    window = WINDOW[:axes]
    check_layer(
        getattr(torch.nn, f"ConvTranspose{axes}d")(4, 8, window, **options),
        partial(models.ConvTranspose, 4, 8, window, **arguments),
        partial(linen.ConvTranspose, 4, 8, window, **arguments),
        normal(2, 4, *SIZES[:axes]),
        channels_last=True,
        dtypes=DTYPES[axes],
    )


def test_groups_that_the_stock_layer_lacks_are_refused_with_what_to_use():
    source = torch.nn.ConvTranspose1d(4, 6, 3, groups=2)
    with pytest.raises(ConversionError) as caught:
        from_torch(nnx.ConvTranspose(4, 6, 3, rngs=nnx.Rngs(0)), source)
    assert caught.value.problems == (
        "'weight' has shape (4, 3, 3); 'kernel' (3, 4, 6) needs (4, 6, 3) in torch's "
        "layout. Flax's ConvTranspose has no groups; if torch's has, use "
        "jaxclip.models.ConvTranspose (or that of jaxclip.models.linen).",
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"feature_group_count": 3},
            "feature_group_count is 3; it must divide in_features, 4, and "
            "out_features, 6.",
        ),
        (
            {"strides": (2, 2), "output_padding": 2},
            "output_padding is 2; on each axis it must be less than the stride, "
            "(2, 2), or the dilation, 1.",
        ),
        (
            {"padding": (1, 1, 1)},
            "padding is (1, 1, 1); it must be an integer of at least 0, or one for "
            "each of the 2 axes of the kernel.",
        ),
        ({"strides": 0}, "strides is 0; it must be an integer of at least 1, or one "),
        ({"feature_group_count": 0}, "feature_group_count is 0; it must be at least"),
    ],
)
def test_arguments_of_the_own_layer_are_checked(options, message):
    match = re.escape(message)
    with pytest.raises(ValueError, match=match):
        models.ConvTranspose(4, 6, (3, 3), rngs=nnx.Rngs(0), **options)
    layer = linen.ConvTranspose(4, 6, (3, 3), **options)
    with pytest.raises(ValueError, match=match):
        jax.eval_shape(layer.init, jax.random.key(0), jnp.ones((5, 5, 4)))


def test_any_number_of_batch_axes_will_do():
    layer = models.ConvTranspose(4, 6, (3,), strides=2, rngs=nnx.Rngs(0))
    x = normal(2, 3, 5, 4).astype("f")
    y = layer(x)
    assert y.shape == (2, 3, 11, 6)
    np.testing.assert_allclose(layer(x[1, 2]), y[1, 2], rtol=1e-6, atol=1e-6)


def test_channels_that_are_not_last_are_refused():
    layer = models.ConvTranspose(4, 6, (3,), rngs=nnx.Rngs(0))
    match = r"x has shape \(2, 4, 5\); its last axis must be the channels, of which"
    with pytest.raises(ValueError, match=match):
        layer(jnp.ones((2, 4, 5)))

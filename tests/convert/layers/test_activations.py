"""Activations that learn."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
import torch
from flax import linen as nn
from flax import nnx

from jaxclip import models
from jaxclip.convert import ConversionError, from_torch
from jaxclip.models import linen
from tests.convert.layers.harness import check_layer, normal


def test_prelu():
    check_layer(
        torch.nn.PReLU(),
        lambda rngs, param_dtype: nnx.PReLU(param_dtype=param_dtype),
        nn.PReLU,
        normal(4, 3, 5),
    )


@pytest.mark.parametrize("slopes", [1, 3])
def test_own_prelu(slopes):
    x = normal(4, 3, 5)
    x[0] = 0  # where the derivative is the slope, in torch and here
    check_layer(
        torch.nn.PReLU(slopes),
        partial(models.PReLU, slopes),
        partial(linen.PReLU, slopes),
        x,
        channels_last=True,
    )


def test_slopes_that_the_stock_layer_lacks_are_refused_with_what_to_use():
    with pytest.raises(ConversionError) as caught:
        from_torch(nnx.PReLU(), torch.nn.PReLU(3))
    assert caught.value.problems == (
        "'weight' has shape (3,); 'negative_slope' () needs (1,) in torch's layout. "
        "Flax's PReLU has one slope for all channels; use jaxclip.models.PReLU (or "
        "that of jaxclip.models.linen).",
    )


def test_the_stock_derivative_at_0_is_1_and_torchs_the_slope():
    zero = torch.zeros(1, requires_grad=True)
    torch.nn.PReLU()(zero).backward()
    assert zero.grad == 0.25
    assert jax.grad(lambda x: models.PReLU()(x)[0])(jnp.zeros(1)) == 0.25
    assert jax.grad(lambda x: nnx.PReLU(0.25)(x)[0])(jnp.zeros(1)) == 1


@pytest.mark.parametrize("shape", [(3, 1), (3, 4)])
def test_channels_that_are_not_last_are_refused(shape):
    with pytest.raises(
        ValueError, match="its last axis must be the channels, of which"
    ):
        models.PReLU(3)(jnp.ones(shape))


def test_the_slope_starts_as_torchs():
    assert models.PReLU().weight[0] == torch.nn.PReLU().weight.item()

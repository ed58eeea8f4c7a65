"""Embeddings, with and without a row for padding."""

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
from jaxclip.convert import from_torch
from jaxclip.models import linen
from tests.convert.layers.harness import check_layer

TOKENS = np.array([[3, 0, 2], [2, 2, 4]])


def test_embedding():
    check_layer(
        torch.nn.Embedding(5, 3),
        partial(nnx.Embed, 5, 3),
        partial(nn.Embed, 5, 3),
        TOKENS,
    )


@pytest.mark.parametrize("padding_idx", [None, 2, -1])
def test_own_embedding(padding_idx):
    check_layer(
        torch.nn.Embedding(5, 3, padding_idx=padding_idx),
        partial(models.Embed, 5, 3, padding_idx=padding_idx),
        partial(linen.Embed, 5, 3, padding_idx=padding_idx),
        TOKENS,
    )


def test_the_stock_embedding_learns_padding():
    source = torch.nn.Embedding(5, 3, padding_idx=2)
    source(torch.tensor(TOKENS)).sum().backward()
    assert not source.weight.grad[2].any()

    def loss(layer):
        return layer(TOKENS).sum()

    stock = nnx.grad(loss)(from_torch(nnx.Embed(5, 3, rngs=nnx.Rngs(0)), source))
    np.testing.assert_array_equal(stock.embedding[2], [3, 3, 3])
    own = models.Embed(5, 3, padding_idx=2, rngs=nnx.Rngs(0))
    grads = nnx.grad(loss)(from_torch(own, source))
    np.testing.assert_array_equal(grads.embedding[...], source.weight.grad)


def test_a_tied_use_of_the_rows_learns_padding_in_torch_and_here():
    source = torch.nn.Embedding(5, 3, padding_idx=2)
    hidden = source(torch.tensor(TOKENS))
    torch.nn.functional.linear(hidden, source.weight).sum().backward()
    assert source.weight.grad[2].any()
    layer = from_torch(models.Embed(5, 3, padding_idx=2, rngs=nnx.Rngs(0)), source)
    grads = nnx.grad(lambda layer: layer.attend(layer(TOKENS)).sum())(layer)
    np.testing.assert_allclose(grads.embedding[...], source.weight.grad, rtol=1e-5)


@pytest.mark.parametrize("padding_idx", [5, -6])
def test_a_row_for_padding_that_is_not_there_is_refused(padding_idx):
    match = re.escape(f"padding_idx is {padding_idx}; it must be one of the 5 rows,")
    with pytest.raises(ValueError, match=match):
        models.Embed(5, 3, padding_idx=padding_idx, rngs=nnx.Rngs(0))
    layer = linen.Embed(5, 3, padding_idx=padding_idx)
    with pytest.raises(ValueError, match=match):
        jax.eval_shape(layer.init, jax.random.key(0), jnp.zeros(1, int))

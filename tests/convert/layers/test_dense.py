"""Dense layers over one axis and over several, and products by subscripts."""

from functools import partial

import pytest
import torch
from flax import linen as nn
from flax import nnx

from jaxclip import models
from jaxclip.convert import ConversionError, to_torch
from jaxclip.models import linen
from tests.convert.layers.harness import check_layer, normal


@pytest.mark.parametrize("bias", [True, False])
def test_linear(bias):
    check_layer(
        torch.nn.Linear(5, 3, bias=bias),
        partial(nnx.Linear, 5, 3, use_bias=bias),
        partial(nn.Dense, 3, use_bias=bias),
        normal(4, 2, 5),
    )


class Flattened(torch.nn.Linear):
    """A Linear from the last two axes of its input to two axes."""

    def forward(self, x):
        return super().forward(x.flatten(-2)).unflatten(-1, (4, 5))


class Headed(torch.nn.Linear):
    """A Linear to two axes, as of heads."""

    def forward(self, x):
        return super().forward(x).unflatten(-1, (4, 5))


@pytest.mark.parametrize("bias", [True, False])
def test_dense_general_over_two_axes(bias):
    check_layer(
        Flattened(6, 20, bias=bias),
        partial(nnx.LinearGeneral, (2, 3), (4, 5), axis=(-2, -1), use_bias=bias),
        partial(nn.DenseGeneral, (4, 5), axis=(-2, -1), use_bias=bias),
        normal(7, 2, 3),
    )


def test_dense_general_over_one_axis():
    check_layer(
        Headed(6, 20),
        partial(nnx.LinearGeneral, 6, (4, 5)),
        partial(nn.DenseGeneral, (4, 5)),
        normal(7, 6),
    )


def test_batch_axes_are_refused_with_what_to_do():
    layer = nnx.LinearGeneral(3, 2, batch_axis={0: 4}, rngs=nnx.Rngs(0))
    match = (
        r"LinearGeneral at 'fc': it has batch axes, .* which no layer of torch has\. "
        r"Keep the kernel as a raw parameter"
    )
    with pytest.raises(ConversionError, match=match):
        to_torch(nnx.Dict(fc=layer))


class Einsum(torch.nn.Module):
    """A product by subscripts, as users of torch write it."""

    def __init__(self):
        """Make the two arrays."""
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(3, 5, 4))
        self.bias = torch.nn.Parameter(torch.empty(5, 4))

    def forward(self, x):
        return torch.einsum("bi,ijk->bjk", x, self.weight) + self.bias


def test_einsum():
    subscripts = "bi,ijk->bjk"
    check_layer(
        Einsum(),
        partial(nnx.Einsum, subscripts, (3, 5, 4), (5, 4)),
        lambda param_dtype: nn.Einsum(
            (3, 5, 4), subscripts, use_bias=True, param_dtype=param_dtype
        ),
        normal(2, 3),
    )


@pytest.mark.parametrize("bias", [True, False])
def test_bilinear(bias):
    check_layer(
        torch.nn.Bilinear(3, 4, 2, bias=bias),
        partial(models.Bilinear, 3, 4, 2, use_bias=bias),
        partial(linen.Bilinear, 3, 4, 2, use_bias=bias),
        normal(5, 2, 3, seed=1),
        normal(5, 2, 4, seed=2),
    )

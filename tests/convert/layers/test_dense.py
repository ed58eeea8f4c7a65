"""Dense layers and embeddings."""

from functools import partial

import torch
from flax import linen as nn
from flax import nnx

from tests.convert.layers.harness import check_layer, normal


def test_linear():
    check_layer(
        torch.nn.Linear(5, 3),
        partial(nnx.Linear, 5, 3),
        partial(nn.Dense, 3),
        normal(4, 5),
    )

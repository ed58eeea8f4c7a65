"""Layers that the harness cannot call by themselves: with a state, or with masks."""

from functools import partial

import torch
from flax import linen as nn
from flax import nnx


def wrap(call, source, nnx_layer, linen_layer):
    """Wrap a layer of each framework, so that one function says how it is called.

    Args:
        call: Takes a layer and arrays, and calls it.
        source: A torch layer.
        nnx_layer: A function ``(rngs=, param_dtype=) -> NNX module``.
        linen_layer: A function ``(param_dtype=) -> Linen module``.

    Returns:
        What ``check_layer`` takes, with the layer under the name "layer" in all three.
    """
    return (
        TorchWrapped(call, source),
        lambda **kwargs: NNXWrapped(call, nnx_layer(**kwargs)),
        lambda **kwargs: LinenWrapped(call, partial(linen_layer, **kwargs)),
    )


class TorchWrapped(torch.nn.Module):
    def __init__(self, call, layer):
        """Take the layer."""
        super().__init__()
        self.call, self.layer = call, layer

    def forward(self, *inputs):
        return self.call(self.layer, *inputs)


class NNXWrapped(nnx.Module):
    def __init__(self, call, layer):
        """Take the layer."""
        self.call, self.layer = call, layer

    def __call__(self, *inputs):
        return self.call(self.layer, *inputs)


class LinenWrapped(nn.Module):
    call: object
    make: object

    def setup(self):
        self.layer = self.make()

    def __call__(self, *inputs):
        return self.call(self.layer, *inputs)

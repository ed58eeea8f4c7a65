"""Small models to convert, in torch, in NNX and in Linen."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
import torch
from flax import nnx

import torchref.gpt
import torchref.my_linear
import torchref.rnn
from jaxclip import models
from jaxclip.models import linen


def abstract_linen(module, *inputs):
    """Return a Linen module and the shapes of its variables."""
    return module, jax.eval_shape(module.init, jax.random.key(0), *inputs)


@pytest.fixture
def build():
    """Return a function that makes a torch model and a Flax model of a dtype."""

    def build(name, framework, dtype="float32"):
        torch.manual_seed(3)
        source, nnx_model, linen_model = makers(name)
        source = source.to(getattr(torch, dtype))
        with jax.enable_x64(True):
            if framework == "nnx":
                make = lambda: nnx_model(rngs=nnx.Rngs(0), param_dtype=dtype)  # noqa: E731
                return source, nnx.eval_shape(make)
            module = linen_model(param_dtype=dtype)
            inputs = jnp.zeros(4, dtype) if name == "my_net" else jnp.zeros((1, 1), int)
            return source, abstract_linen(module, inputs)

    return build


def makers(name):
    """Return a torch model, and functions that make its Flax counterparts."""
    if name == "my_net":
        return torchref.my_linear.my_net(), models.my_net, linen.my_net
    if name == "gpt":
        sizes = (5, 4, 6, 2, 2)
        return (
            torchref.gpt.GPT(*sizes),
            partial(models.GPT, *sizes),
            partial(linen.GPT, *sizes),
        )
    if name == "scratch":
        model, sizes = "RNNLMScratch", (5, 4)
    else:
        model, sizes = "RNNLM", (5, 4, name, 2)
    return (
        getattr(torchref.rnn, model)(*sizes),
        partial(getattr(models, model), *sizes),
        partial(getattr(linen, model), *sizes),
    )

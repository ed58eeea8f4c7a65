"""The models side by side: torch's, the NNX one, and the Linen one."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import torchref.gpt
import torchref.my_linear
import torchref.resnet
import torchref.rnn
from jaxclip import convert, models
from jaxclip.models import linen

VOCAB, HIDDEN, BATCH, STEPS = 5, 4, 3, 6
CHANNELS, SIZE, CLASSES = 2, 6, 5


@dataclass(frozen=True)
class Trio:
    """A model three times over.

    Each builder makes a model afresh; ``nnx`` and ``linen`` take a ``param_dtype``.
    What it takes are "tokens", "vectors" or "images"; a recurrent one takes a state
    too, and one of images keeps running averages.
    """

    name: str
    torch: Callable[[], Any]
    nnx: Callable[..., Any]
    linen: Callable[..., Any]
    takes: str = "tokens"
    recurrent: bool = False
    steps: int = 50

    def torch_model(self, dtype: torch.dtype, seed: int = 7) -> Any:
        torch.manual_seed(seed)
        # torch's 0.01 would leave tanh in its linear part, where cells look alike.
        model = self.torch()
        with torch.no_grad():
            for param in model.parameters():
                param.normal_()
            if isinstance(model, torch.nn.Module):
                for buffer in model.buffers():
                    if buffer.is_floating_point():
                        buffer.uniform_(0.5, 1.5)
        return model.to(dtype)

    def nnx_model(self, model: Any, dtype: Any) -> Any:
        """Return the NNX model with the weights of a torch model."""
        target = nnx.eval_shape(lambda: self.nnx(rngs=nnx.Rngs(0), param_dtype=dtype))
        return convert.from_torch(target, model)

    def linen_model(self, model: Any, dtype: Any) -> Any:
        """Return the Linen model and its variables, with a torch model's weights."""
        module = self.linen(param_dtype=dtype)
        mode = {"train": False} if self.takes == "images" else {}
        init = partial(module.init, **mode)
        inputs = self.for_flax(self.inputs()[:1])
        inputs = inputs if self.takes == "tokens" else inputs.astype(dtype)
        variables = jax.eval_shape(init, jax.random.key(0), inputs)
        return convert.from_torch((module, variables), model)

    def inputs(self, seed: int = 0) -> np.ndarray:
        rng = np.random.default_rng(seed)
        if self.takes == "tokens":
            return rng.integers(0, VOCAB, (BATCH, STEPS))
        shape = (4,) if self.takes == "vectors" else (CHANNELS, SIZE, SIZE)
        return rng.normal(size=(BATCH, *shape))

    def for_flax(self, inputs: Any) -> Any:
        """Put the channels of images last."""
        inputs = jnp.asarray(inputs)
        return jnp.moveaxis(inputs, 1, -1) if self.takes == "images" else inputs


def named_parameters(model: Any) -> dict[str, Any]:
    """Return a torch model's parameters, a tied one under each of its names."""
    if isinstance(model, torch.nn.Module):
        return dict(model.named_parameters(remove_duplicate=False))
    return dict(model.named_parameters())


def _rnnlm(cell: str, num_layers: int) -> Trio:
    sizes = (VOCAB, HIDDEN, cell, num_layers)
    return Trio(
        f"{cell}-{num_layers}",
        lambda: torchref.rnn.RNNLM(*sizes),
        lambda **kwargs: models.RNNLM(*sizes, **kwargs),
        lambda **kwargs: linen.RNNLM(*sizes, **kwargs),
        recurrent=True,
    )


_GPT = (VOCAB, STEPS, HIDDEN, 2, 2)
_RESNET = (CHANNELS, CLASSES, (3, 4))


TRIOS = [
    Trio(
        "my_linear",
        lambda: torchref.my_linear.MyLinear(4, 3),
        lambda **kwargs: models.MyLinear(4, 3, **kwargs),
        lambda **kwargs: linen.MyLinear(4, 3, **kwargs),
        takes="vectors",
    ),
    Trio(
        "my_net",
        torchref.my_linear.my_net,
        models.my_net,
        linen.my_net,
        takes="vectors",
    ),
    Trio(
        "scratch",
        lambda: torchref.rnn.RNNLMScratch(VOCAB, HIDDEN),
        lambda **kwargs: models.RNNLMScratch(VOCAB, HIDDEN, **kwargs),
        lambda **kwargs: linen.RNNLMScratch(VOCAB, HIDDEN, **kwargs),
        recurrent=True,
    ),
    *(_rnnlm(cell, n) for cell in ("rnn", "gru", "lstm") for n in (1, 2, 3)),
    Trio(
        "gpt",
        lambda: torchref.gpt.GPT(*_GPT),
        lambda **kwargs: models.GPT(*_GPT, **kwargs),
        lambda **kwargs: linen.GPT(*_GPT, **kwargs),
        steps=20,
    ),
    Trio(
        "resnet",
        lambda: torchref.resnet.ResNet(*_RESNET),
        lambda **kwargs: models.ResNet(*_RESNET, **kwargs),
        lambda **kwargs: linen.ResNet(*_RESNET, **kwargs),
        takes="images",
        steps=20,
    ),
]


BY_NAME = {trio.name: trio for trio in TRIOS}

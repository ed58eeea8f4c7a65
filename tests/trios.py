"""The models side by side: torch's, the NNX one, and the Linen one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import torchref.my_linear
import torchref.rnn
from jaxclip import convert, models
from jaxclip.models import linen

VOCAB, HIDDEN, BATCH, STEPS = 5, 4, 3, 6


@dataclass(frozen=True)
class Trio:
    """A model three times over; ``recurrent`` ones take tokens and a state.

    Each builder makes a model afresh; ``nnx`` and ``linen`` take a ``param_dtype``.
    """

    name: str
    torch: Callable[[], Any]
    nnx: Callable[..., Any]
    linen: Callable[..., Any]
    recurrent: bool = True

    def torch_model(self, dtype: torch.dtype) -> Any:
        torch.manual_seed(7)
        # torch's 0.01 would leave tanh in its linear part, where cells look alike.
        model = self.torch()
        with torch.no_grad():
            for param in model.parameters():
                param.normal_()
        return model.to(dtype)

    def nnx_model(self, model: Any, dtype: Any) -> Any:
        """Return the NNX model with the weights of a torch model."""
        target = nnx.eval_shape(lambda: self.nnx(rngs=nnx.Rngs(0), param_dtype=dtype))
        return convert.from_torch(target, model)

    def linen_model(self, model: Any, dtype: Any) -> Any:
        """Return the Linen model and its variables, with a torch model's weights."""
        module = self.linen(param_dtype=dtype)
        inputs = jnp.zeros((1, 1), int) if self.recurrent else jnp.zeros(4, dtype)
        variables = jax.eval_shape(module.init, jax.random.key(0), inputs)
        return convert.from_torch((module, variables), model)

    def inputs(self, seed: int = 0) -> np.ndarray:
        rng = np.random.default_rng(seed)
        if self.recurrent:
            return rng.integers(0, VOCAB, (BATCH, STEPS))
        return rng.normal(size=(BATCH, 4))


def _rnnlm(cell: str, num_layers: int) -> Trio:
    sizes = (VOCAB, HIDDEN, cell, num_layers)
    return Trio(
        f"{cell}-{num_layers}",
        lambda: torchref.rnn.RNNLM(*sizes),
        lambda **kwargs: models.RNNLM(*sizes, **kwargs),
        lambda **kwargs: linen.RNNLM(*sizes, **kwargs),
    )


TRIOS = [
    Trio(
        "my_linear",
        lambda: torchref.my_linear.MyLinear(4, 3),
        lambda **kwargs: models.MyLinear(4, 3, **kwargs),
        lambda **kwargs: linen.MyLinear(4, 3, **kwargs),
        recurrent=False,
    ),
    Trio(
        "my_net",
        torchref.my_linear.my_net,
        models.my_net,
        linen.my_net,
        recurrent=False,
    ),
    Trio(
        "scratch",
        lambda: torchref.rnn.RNNLMScratch(VOCAB, HIDDEN),
        lambda **kwargs: models.RNNLMScratch(VOCAB, HIDDEN, **kwargs),
        lambda **kwargs: linen.RNNLMScratch(VOCAB, HIDDEN, **kwargs),
    ),
    *(_rnnlm(cell, n) for cell in ("rnn", "gru", "lstm") for n in (1, 2, 3)),
]


BY_NAME = {trio.name: trio for trio in TRIOS}

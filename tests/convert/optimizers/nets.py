"""A small net in torch and in Flax, and gradients for it that nothing computes."""

import numpy as np
import torch
from flax import linen as nn
from flax import nnx

from jaxclip import convert


class TorchNet(torch.nn.Module):
    def __init__(self):
        """Make two layers, of which one is square, and a norm."""
        super().__init__()
        self.fc1 = torch.nn.Linear(3, 4)
        self.norm = torch.nn.LayerNorm(4)
        self.fc2 = torch.nn.Linear(4, 4, bias=False)


class Net(nnx.Module):
    def __init__(self, dtype="float64"):
        """Make the same."""
        rngs = nnx.Rngs(0)
        self.fc1 = nnx.Linear(3, 4, rngs=rngs, param_dtype=dtype)
        self.norm = nnx.LayerNorm(4, rngs=rngs, param_dtype=dtype)
        self.fc2 = nnx.Linear(4, 4, use_bias=False, rngs=rngs, param_dtype=dtype)


class LinenNet(nn.Module):
    def setup(self):
        self.fc1 = nn.Dense(4, param_dtype="float64")
        self.norm = nn.LayerNorm(param_dtype="float64")
        self.fc2 = nn.Dense(4, use_bias=False, param_dtype="float64")

    def __call__(self, x):
        return self.fc2(self.norm(self.fc1(x)))


def net(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return TorchNet().to(dtype)


def target(model, dtype="float64"):
    """Return the net in Flax, with the weights of the one in torch."""
    return convert.from_torch(lambda: Net(dtype), model)


def gradients(model, steps, seed=1):
    """Return a gradient of each parameter for each step."""
    rng = np.random.default_rng(seed)
    return [
        {name: rng.normal(size=tuple(p.shape)) for name, p in model.named_parameters()}
        for _ in range(steps)
    ]


def step(model, optimizer, grads, scheduler=None):
    """Take torch's steps; a parameter whose gradient is not there has none."""
    for grad in grads:
        for name, param in model.named_parameters():
            given = grad.get(name)
            param.grad = None if given is None else torch.tensor(given).to(param.dtype)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def weights(model):
    return {n: p.detach().numpy().copy() for n, p in model.named_parameters()}

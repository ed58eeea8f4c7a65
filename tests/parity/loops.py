"""A torch loop to record, and the recording of it."""

import torch
from torch import nn
from torch.nn import functional as F

from jaxclip.parity import open_trace, record

X = torch.linspace(-1, 1, 24).reshape(6, 4)
Y = torch.linspace(1, -1, 6).reshape(6, 1)


class Net(nn.Module):
    """A net with buffers, dropout, a shared weight, and a nested output."""

    def __init__(self):
        """Make the layers."""
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Dropout(0.5))
        self.again = nn.Linear(4, 4)
        self.again.weight = self.body[0].weight
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        hidden = self.body(self.norm(x))
        return {"y": self.head(self.again(self.body(hidden))), "rest": (hidden, 3)}


def setup(model=Net, seed=0, **options):
    torch.manual_seed(seed)
    model = model()
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01} | options
    return model, torch.optim.SGD(model.parameters(), **options)


def step(model, optimizer, scheduler=None, x=X, y=Y):
    optimizer.zero_grad()
    output = model(x)
    output = output["y"] if isinstance(output, dict) else output
    loss = F.mse_loss(output, y)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step()
    if scheduler is not None:
        scheduler.step()
    return loss.detach(), norm


def recorded(path, model, optimizer, *, steps=1, take=step, **options):
    with record(path, model, optimizer, **options) as run:
        for _ in range(steps):
            with run.step(x=X, y=Y):
                take(model, optimizer)
    return run, open_trace(path)


def equal(one, other):
    """Say whether two nests of tensors and numbers are equal to the bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        pairs = zip(one.items(), other.items(), strict=True)
        return all(k == m and equal(v, w) for (k, v), (m, w) in pairs)
    if isinstance(one, list | tuple):
        return all(equal(v, w) for v, w in zip(one, other, strict=True))
    return one == other

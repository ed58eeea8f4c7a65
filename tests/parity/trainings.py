"""The small nets in training: the run that is recorded, and the port that is right."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import optax
import torch
from flax import nnx

import jaxclip
from jaxclip import optim
from jaxclip.optim import in_torch_order
from jaxclip.parity import Port, record
from tests.parity.more_nets import NETS, batches

LR, DECAY, MAX_NORM = 0.1, 0.1, 0.05


@dataclass(frozen=True)
class Training:
    """How torch trains, and a port that trains the same.

    Attributes:
        torch: Makes torch's optimizer of parameters.
        optimizer: Makes the port's optimizer.
        schedule: Makes torch's scheduler of its optimizer.
    """

    torch: Callable[..., torch.optim.Optimizer]
    optimizer: Callable[..., optax.GradientTransformation]
    schedule: Callable[..., Any] | None = None


def halving(count: Any) -> Any:
    """Return the learning rate of ``ExponentialLR`` with a gamma of a half."""
    return LR * 0.5**count


def torch_groups(parameters: Any) -> torch.optim.Optimizer:
    """Return AdamW with matrices that decay, and others that learn slower."""
    matrices, others = [], []
    for parameter in parameters:
        (matrices if parameter.ndim > 1 else others).append(parameter)
    groups = [{"params": matrices}, {"params": others, "lr": LR / 2, "weight_decay": 0}]
    return torch.optim.AdamW(groups, lr=LR, weight_decay=DECAY)


def groups(
    *, lr: float = LR / 2, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Return what `torch_groups` does, or otherwise for what is no matrix."""

    def labels(params: Any) -> Any:
        return jax.tree.map(lambda p: "matrix" if p.ndim > 1 else "other", params)

    parts = {
        "matrix": optim.adamw(LR, weight_decay=DECAY),
        "other": optim.adamw(lr, weight_decay=weight_decay),
    }
    return optax.partition(parts, labels)


TRAININGS = {
    "sgd": Training(
        partial(torch.optim.SGD, lr=LR, momentum=0.9, weight_decay=DECAY),
        partial(optim.sgd, LR, momentum=0.9, weight_decay=DECAY),
    ),
    "small decay": Training(
        partial(torch.optim.SGD, lr=LR, momentum=0.9, weight_decay=1e-4),
        partial(optim.sgd, LR, momentum=0.9, weight_decay=1e-4),
    ),
    "nesterov": Training(
        partial(torch.optim.SGD, lr=LR, momentum=0.9, nesterov=True),
        partial(optim.sgd, LR, momentum=0.9, nesterov=True),
    ),
    "dampened": Training(
        partial(torch.optim.SGD, lr=LR, momentum=0.9, dampening=0.5),
        partial(optim.sgd, LR, momentum=0.9, dampening=0.5),
    ),
    "ascent": Training(
        partial(torch.optim.SGD, lr=LR, weight_decay=DECAY, maximize=True),
        partial(optim.sgd, LR, weight_decay=DECAY, maximize=True),
    ),
    "adamw": Training(
        partial(torch.optim.AdamW, lr=LR, weight_decay=DECAY),
        partial(optim.adamw, LR, weight_decay=DECAY),
    ),
    "amsgrad": Training(
        partial(torch.optim.Adam, lr=LR, amsgrad=True),
        partial(optim.adam, LR, amsgrad=True),
    ),
    "rmsprop": Training(
        partial(torch.optim.RMSprop, lr=LR / 10),
        partial(optim.rmsprop, LR / 10),
    ),
    "adagrad": Training(
        partial(torch.optim.Adagrad, lr=LR),
        partial(optim.adagrad, LR),
    ),
    "groups": Training(torch_groups, groups),
    "schedule": Training(
        partial(torch.optim.SGD, lr=LR),
        partial(optim.sgd, halving),
        partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5),
    ),
}


def recording(
    path: Path,
    net: str,
    training: str,
    *,
    dtype: torch.dtype = torch.float32,
    steps: int = 2,
    seed: int = 0,
    device: str = "cpu",
) -> Path:
    """Record a net in training."""
    torch.manual_seed(seed)
    model = NETS[net].torch().to(device, dtype)
    how = TRAININGS[training]
    optimizer = how.torch(model.parameters())
    scheduler = how.schedule(optimizer) if how.schedule else None
    with record(path, model, optimizer, scheduler=scheduler) as run:
        for batch in batches(net, steps, dtype, seed):
            x, y = (tensor.to(device) for tensor in batch)
            with run.step(x=x, y=y):
                optimizer.zero_grad()
                NETS[net].torch_loss(model(x), y).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
                optimizer.step()
                if scheduler is not None:
                    scheduler.step()
    return path


def frozen(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Freeze the parameter that is frozen in torch."""
    return in_torch_order(
        optimizer, frozen=jaxclip.by_path(lambda path: path.startswith("scale"))
    )


def port(net: str, training: str, *, fault: str = "", **changes: Any) -> Port:
    """Return the port of a net, with a fault or without.

    Args:
        net: The net.
        training: The training.
        fault: What the net's port or its loss does otherwise.
        **changes: What the port is given instead.
    """
    of = NETS[net]
    freeze = frozen if of.frozen else lambda optimizer: optimizer

    def loss_fn(model: Any, batch: dict[str, Any]) -> Any:
        outputs = model(batch["x"])
        return of.loss(outputs, batch["y"], fault), outputs

    given: dict[str, Any] = {
        "model": of.port(fault, rngs=nnx.Rngs(0)),
        "loss_fn": loss_fn,
        "optimizer": freeze(TRAININGS[training].optimizer()),
        "clip": freeze(jaxclip.clip_by_global_norm(MAX_NORM)),
        "flatten": of.flatten,
        "stacked": of.stacked,
    }
    return Port(**(given | changes))

"""Bugs of ports, planted one at a time, and where each is to be found.

A case is a row of ``MUTATIONS``: a net of `small_nets` with a fault in its port, or a
training that the port does otherwise.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import optax
import torch
from flax import nnx

import jaxclip
from jaxclip import optim
from jaxclip.optim import in_torch_order
from jaxclip.parity import Port, record
from tests.parity.small_nets import NETS, batches

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


TRAININGS = {
    "sgd": Training(
        partial(torch.optim.SGD, lr=LR, momentum=0.9, weight_decay=DECAY),
        partial(optim.sgd, LR, momentum=0.9, weight_decay=DECAY),
    ),
    "nesterov": Training(
        partial(torch.optim.SGD, lr=LR, momentum=0.9, nesterov=True),
        partial(optim.sgd, LR, momentum=0.9, nesterov=True),
    ),
    "adamw": Training(
        partial(torch.optim.AdamW, lr=LR, weight_decay=DECAY),
        partial(optim.adamw, LR, weight_decay=DECAY),
    ),
    "schedule": Training(
        partial(torch.optim.SGD, lr=LR),
        partial(optim.sgd, halving),
        partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5),
    ),
}


@dataclass(frozen=True)
class Mutation:
    """A bug, and where it is to be found.

    Attributes:
        name: What is wrong; the fault of the net, if it is one of the net's.
        stage: The first stage that is to differ.
        module: The module of the first tensor that is to differ; None for any.
        net: The net.
        training: The training.
        step: The first step that is to differ.
        changes: What the port is given instead.
        wide: Whether it takes a recording in float64 to see it.
        long: Whether to leave it to the long tests.
    """

    name: str
    stage: str
    module: str | None
    net: str = "vectors"
    training: str = "sgd"
    step: int = 0
    changes: dict[str, Any] = field(default_factory=dict)
    wide: bool = False
    long: bool = False


def recording(
    path: Path,
    net: str,
    training: str,
    *,
    dtype: torch.dtype = torch.float32,
    steps: int = 2,
    seed: int = 0,
) -> Path:
    """Record a net in training."""
    torch.manual_seed(seed)
    model = NETS[net][0]().to(dtype)
    how = TRAININGS[training]
    optimizer = how.torch(model.parameters())
    scheduler = how.schedule(optimizer) if how.schedule else None
    with record(path, model, optimizer, scheduler=scheduler) as run:
        for x, y in batches(net, steps, dtype, seed):
            with run.step(x=x, y=y):
                optimizer.zero_grad()
                outputs = model(x)
                if net == "tokens":
                    loss = torch.nn.functional.cross_entropy(
                        outputs.flatten(0, 1), y.flatten()
                    )
                else:
                    loss = ((outputs - y) ** 2).mean()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
                optimizer.step()
                if scheduler is not None:
                    scheduler.step()
    return path


def loss_fn(model: Any, batch: dict[str, Any], *, reduce: Any = jnp.mean) -> Any:
    """Return the loss and the outputs."""
    outputs = model(batch["x"])
    if jnp.issubdtype(batch["y"].dtype, jnp.integer):
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs, batch["y"])
        return reduce(losses), outputs
    return reduce((outputs - batch["y"]) ** 2), outputs


def frozen(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Freeze the parameter that is frozen in torch."""
    return in_torch_order(
        optimizer, frozen=jaxclip.by_path(lambda path: path.startswith("scale"))
    )


def port(net: str, training: str, *, fault: str = "", **changes: Any) -> Port:
    """Return the port of a net, with a fault or without."""
    norm = jaxclip.clip_by_global_norm(MAX_NORM)
    given: dict[str, Any] = {
        "model": NETS[net][1](fault, rngs=nnx.Rngs(0)),
        "loss_fn": loss_fn,
        "optimizer": TRAININGS[training].optimizer(),
        "clip": frozen(norm) if net == "vectors" else norm,
        "flatten": {"fc": (3, 3, 3)} if net == "images" else None,
    }
    given |= changes
    if net == "vectors" and "optimizer" not in changes:
        given["optimizer"] = frozen(given["optimizer"])
    return Port(**given)


def _optimizer(optimizer: optax.GradientTransformation) -> dict[str, Any]:
    return {"optimizer": frozen(optimizer)}


def _clip(clip: optax.GradientTransformation) -> dict[str, Any]:
    return {"clip": frozen(clip)}


_SUBCLASS = {"layouts": {"fc1": "same"}}
"""What a subclass of a layer of Flax returns is not known."""

MUTATIONS = [
    # The forward pass.
    Mutation("transposed", "activations", "fc1", changes=_SUBCLASS),
    Mutation("one wrong element", "activations", "fc1", changes=_SUBCLASS, long=True),
    Mutation("eps of LayerNorm", "activations", "norm", long=True),
    Mutation("tanh GELU", "activations", "gates", long=True),
    Mutation("dropout left on", "activations", "gates", long=True),
    Mutation("swapped gates", "activations", "fc2", long=True),
    Mutation("padding SAME", "activations", "conv", net="images", long=True),
    Mutation("flatten order", "activations", "fc", "images", changes={"flatten": None}),
    Mutation("mask inverted", "activations", "head", net="tokens"),
    Mutation(
        "scale of attention forgotten", "activations", "head", "tokens", long=True
    ),
    # The loss, and what is differentiated.
    Mutation(
        "sum for mean",
        "loss",
        "",
        changes={"loss_fn": partial(loss_fn, reduce=jnp.sum)},
        long=True,
    ),
    Mutation("missing detach", "gradients", "fc1"),
    Mutation("tied weight untied", "gradients", "embed", net="tokens"),
    # The clip.
    Mutation(
        "eps of the clip",
        *("clipped gradients", None),
        changes=_clip(jaxclip.clip_by_global_norm(MAX_NORM, eps=0.0)),
        wide=True,
        long=True,
    ),
    Mutation(
        "a clip of each leaf",
        *("total norm", ""),
        changes=_clip(jaxclip.clip_by_norm(MAX_NORM)),
        long=True,
    ),
    Mutation(
        "clip after the decay",
        *("total norm", ""),
        changes=_clip(
            optax.chain(
                optax.add_decayed_weights(DECAY), jaxclip.clip_by_global_norm(MAX_NORM)
            )
        )
        | _optimizer(optim.sgd(LR, momentum=0.9)),
        long=True,
    ),
    Mutation(
        "a clip by value",
        *("total norm", ""),
        changes=_clip(jaxclip.clip_by_value(MAX_NORM)),
        long=True,
    ),
    Mutation(
        "max_norm of the clip",
        *("clipped gradients", None),
        changes=_clip(jaxclip.clip_by_global_norm(1.01 * MAX_NORM)),
        long=True,
    ),
    Mutation("no clip", "update", None, changes={"clip": None}),
    Mutation(
        "frozen gradient in the norm",
        *("total norm", ""),
        changes={"clip": jaxclip.clip_by_global_norm(MAX_NORM)},
        long=True,
    ),
    # The optimizer.
    Mutation(
        "frozen parameter trained",
        *("update", ""),
        changes={"optimizer": TRAININGS["sgd"].optimizer()},
    ),
    Mutation(
        "learning rate",
        *("update", None),
        changes=_optimizer(optim.sgd(2 * LR, momentum=0.9, weight_decay=DECAY)),
        long=True,
    ),
    Mutation(
        "momentum as an average",
        *("update", None),
        step=1,
        changes=_optimizer(
            optim.sgd(LR, momentum=0.9, dampening=0.1, weight_decay=DECAY)
        ),
        long=True,
    ),
    Mutation(
        "momentum forgotten",
        *("optimizer state", None),
        changes=_optimizer(optim.sgd(LR, weight_decay=DECAY)),
        long=True,
    ),
    Mutation(
        "nesterov forgotten",
        *("update", None),
        training="nesterov",
        changes=_optimizer(optim.sgd(LR, momentum=0.9)),
        long=True,
    ),
    Mutation(
        "weight decay forgotten",
        *("update", None),
        changes=_optimizer(optim.sgd(LR, momentum=0.9)),
        long=True,
    ),
    Mutation(
        "decay not decoupled",
        *("update", None),
        training="adamw",
        changes=_optimizer(optim.adam(LR, weight_decay=DECAY)),
        long=True,
    ),
    Mutation(
        "eps of Adam",
        *("update", None),
        training="adamw",
        changes=_optimizer(optim.adamw(LR, weight_decay=DECAY, eps=1e-6)),
        long=True,
    ),
    Mutation(
        "schedule off by one",
        *("update", None),
        training="schedule",
        changes=_optimizer(optim.sgd(lambda count: halving(count + 1))),
    ),
    # What is no parameter.
    Mutation(
        "biased variance",
        *("buffers after", "bn"),
        net="images",
        changes={"ignore": ["*.num_batches_tracked"]},
    ),
    Mutation("momentum of BatchNorm", "buffers after", "bn", "images", long=True),
]


def mutated(mutation: Mutation) -> Port:
    """Return the port with the bug in it."""
    return port(
        mutation.net, mutation.training, fault=mutation.name, **mutation.changes
    )

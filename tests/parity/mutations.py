"""Bugs of ports, planted one at a time, and where each is to be found.

A case is a row of ``MUTATIONS``: a net of `small_nets` with a fault in its port, or a
training that the port does otherwise.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxclip
from jaxclip import optim
from jaxclip.parity import Port
from tests.parity.trainings import (
    DECAY,
    LR,
    MAX_NORM,
    TRAININGS,
    frozen,
    groups,
    halving,
    port,
)


@dataclass(frozen=True)
class Mutation:
    """A bug, and where it is to be found.

    Attributes:
        name: What is wrong; the fault of the net or of the loss, if it is one of these.
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


def _optimizer(optimizer: optax.GradientTransformation) -> dict[str, Any]:
    return {"optimizer": frozen(optimizer)}


def _clip(clip: optax.GradientTransformation) -> dict[str, Any]:
    return {"clip": frozen(clip)}


def _without_correction(count: Any) -> Any:
    return (1 - 0.9**count) / jnp.sqrt(1 - 0.999**count)


def _scaled(
    optimizer: optax.GradientTransformation, by: Any
) -> optax.GradientTransformation:
    """Multiply what an optimizer makes of the gradients by a function of the step."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        updates, state = optimizer.update(updates, state, params)
        return jax.tree.map(lambda u: u * by(state.count), updates), state

    return optax.GradientTransformation(optimizer.init, update)


_SUBCLASS = {"layouts": {"fc1": "same"}}
"""What a subclass of a layer of Flax returns is not known."""

MUTATIONS = [
    # The forward pass.
    Mutation("transposed", "activations", "fc1", changes=_SUBCLASS),
    Mutation("one wrong element", "activations", "fc1", changes=_SUBCLASS, long=True),
    Mutation("bias forgotten", "activations", "fc1", changes=_SUBCLASS, long=True),
    Mutation("a layer in bfloat16", "activations", "fc1", long=True),
    Mutation("eps of LayerNorm", "activations", "norm", long=True),
    Mutation(
        "unbiased LayerNorm",
        *("activations", "norm"),
        changes={"layouts": {"norm": "same"}},
        long=True,
    ),
    Mutation("tanh GELU", "activations", "gates", long=True),
    Mutation("tanh GELU of small inputs", "activations", "fc2", "small", long=True),
    Mutation("one element wrong by little", "activations", "fc2", "small", long=True),
    Mutation("SiLU for GELU", "activations", "gates", long=True),
    Mutation("dropout left on", "activations", "gates", long=True),
    Mutation("swapped gates", "activations", "fc2", long=True),
    Mutation("residual forgotten", "activations", "fc2", long=True),
    Mutation("one wrong element in a million", "output", "", "wide", long=True),
    Mutation("padding SAME", "activations", "conv", net="images", long=True),
    Mutation(
        "kernel flipped",
        *("activations", "conv", "images"),
        changes={"layouts": {"conv": "channels_last_2d"}},
        long=True,
    ),
    Mutation("height for width", "activations", "conv", "images", long=True),
    Mutation("eps of BatchNorm", "activations", "bn", "images", long=True),
    Mutation("running averages used", "activations", "bn", "images", long=True),
    Mutation("flatten order", "activations", "fc", "images", changes={"flatten": None}),
    Mutation("eps of GroupNorm", "activations", "norm", "pools", long=True),
    Mutation("groups of GroupNorm", "activations", "norm", "pools", long=True),
    Mutation("slope of the leaky ReLU", "activations", "up", "pools", long=True),
    Mutation("max over zeros at the border", "activations", "up", "pools", long=True),
    Mutation(
        "transposed kernel not turned",
        *("activations", "up", "pools"),
        changes={"layouts": {"up": "channels_last_2d"}},
        long=True,
    ),
    Mutation("border left out of the average", "activations", "fc", "pools", long=True),
    Mutation("mask inverted", "activations", "head", net="tokens"),
    Mutation("mask off by one", "activations", "head", "tokens", long=True),
    Mutation("mask that leaks", "activations", "head", "tokens", long=True),
    Mutation("softmax over queries", "activations", "head", "tokens", long=True),
    Mutation("queries for keys", "activations", "head", "tokens", long=True),
    Mutation(
        "scale of attention forgotten", "activations", "head", "tokens", long=True
    ),
    Mutation("positions off by one", "activations", "position", "padded", long=True),
    Mutation(
        "scale of the embedding forgotten", "activations", "norm", "padded", long=True
    ),
    Mutation("eps of RMSNorm", "activations", "norm", "padded", long=True),
    Mutation("GELU for SiLU", "activations", "down", "padded", long=True),
    Mutation("time backwards", "activations", "ih", "sequences", long=True),
    Mutation("gates in another order", "activations", "hh", "sequences", long=True),
    Mutation(
        "hidden bias outside the reset gate",
        *("activations", "hh", "sequences"),
        long=True,
    ),
    Mutation("update gate the other way", "activations", "hh", "sequences", long=True),
    # What is drawn at random, and what is in a scan.
    Mutation(
        "variance for standard deviation",
        *("activations", "blocks.0.norm", "sampled"),
        long=True,
    ),
    Mutation(
        "one draw for all rows", "activations", "blocks.0.norm", "sampled", long=True
    ),
    Mutation("what is kept not scaled up", "activations", "blocks.0.down", "sampled"),
    Mutation(
        "tanh GELU in scanned layers",
        *("activations", "blocks.0.down", "sampled"),
        long=True,
    ),
    Mutation(
        "layers from the last to the first",
        *("activations", "blocks.0.norm", "sampled"),
        long=True,
    ),
    # Equinox, row by row.
    Mutation("one key for all rows", "activations", "drop", "mapped", long=True),
    Mutation("dropout left out", "activations", "drop", "mapped", long=True),
    Mutation("eps of Equinox's LayerNorm", "activations", "norm", "mapped", long=True),
    Mutation("mask forgotten", "activations", "attention", "mapped", long=True),
    # The loss, and what is differentiated.
    Mutation("sum for mean", "loss", "", long=True),
    Mutation("mean over rows alone", "loss", "", long=True),
    Mutation("half the squared error", "loss", "", long=True),
    Mutation("targets shifted", "loss", "", "tokens", long=True),
    Mutation("label smoothing forgotten", "loss", "", "padded", long=True),
    Mutation("padding in the loss", "loss", "", "padded", long=True),
    Mutation("padding in the mean", "loss", "", "padded", long=True),
    Mutation("missing detach", "gradients", "fc1"),
    Mutation("too much detached", "gradients", "fc1", long=True),
    Mutation("state detached", "gradients", "ih", "sequences", long=True),
    Mutation("positions not trained", "gradients", "position", "padded", long=True),
    Mutation("padding trained", "gradients", "embed", "padded", long=True),
    Mutation("head not trained", "gradients", "head", "mapped", long=True),
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
        "another norm in the clip",
        *("total norm", ""),
        changes=_clip(jaxclip.clip_by_global_norm(MAX_NORM, 1.0)),
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
        "dampening forgotten",
        *("update", None),
        training="dampened",
        step=1,
        changes=_optimizer(optim.sgd(LR, momentum=0.9)),
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
        "ascent forgotten",
        *("update", None),
        training="ascent",
        changes=_optimizer(optim.sgd(LR, weight_decay=DECAY)),
        long=True,
    ),
    Mutation(
        "weight decay forgotten",
        *("update", None),
        changes=_optimizer(optim.sgd(LR, momentum=0.9)),
        long=True,
    ),
    Mutation(
        "small weight decay forgotten",
        *("update", None),
        training="small decay",
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
        "decay without the learning rate",
        *("update", None),
        training="adamw",
        changes=_optimizer(optim.adamw(LR, weight_decay=DECAY / LR)),
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
        "second beta of Adam",
        *("optimizer state", None),
        training="adamw",
        changes=_optimizer(optim.adamw(LR, (0.9, 0.99), weight_decay=DECAY)),
        long=True,
    ),
    Mutation(
        "bias correction forgotten",
        *("update", None, "padded", "amsgrad"),
        changes={
            "optimizer": _scaled(optim.adam(LR, amsgrad=True), _without_correction)
        },
        long=True,
    ),
    Mutation(
        "amsgrad forgotten",
        *("optimizer state", None),
        training="amsgrad",
        changes=_optimizer(optim.adam(LR)),
        long=True,
    ),
    Mutation(
        "decay of the average of RMSprop",
        *("update", None),
        training="rmsprop",
        changes=_optimizer(optim.rmsprop(LR / 10, alpha=0.9)),
        long=True,
    ),
    Mutation(
        "eps of RMSprop",
        *("update", None),
        training="rmsprop",
        changes=_optimizer(optim.rmsprop(LR / 10, eps=1e-6)),
        long=True,
    ),
    Mutation(
        "first accumulator of Adagrad",
        *("optimizer state", None),
        training="adagrad",
        changes=_optimizer(optim.adagrad(LR, initial_accumulator_value=0.1)),
    ),
    Mutation(
        "decay of biases and norms",
        *("update", None, "padded", "groups"),
        changes={"optimizer": groups(weight_decay=DECAY)},
        long=True,
    ),
    Mutation(
        "learning rate of a group",
        *("update", None, "padded", "groups"),
        changes={"optimizer": groups(lr=LR)},
        long=True,
    ),
    Mutation(
        "schedule off by one",
        *("update", None),
        training="schedule",
        changes=_optimizer(optim.sgd(lambda count: halving(count + 1))),
    ),
    Mutation(
        "schedule forgotten",
        *("update", None),
        training="schedule",
        step=1,
        changes=_optimizer(optim.sgd(LR)),
        long=True,
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

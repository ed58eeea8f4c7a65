"""Recorded runs of the models of the test suite, and their ports."""

from collections.abc import Callable, Container, Iterable
from functools import cache
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch.nn import functional as F

from jaxclip import clip_by_global_norm, optim
from jaxclip.parity import Port, record
from tests.trios import BATCH, CHANNELS, CLASSES, SIZE, STEPS, VOCAB, Trio

OPTIMIZERS: dict[str, tuple[Callable[..., Any], Callable[..., Any], dict[str, Any]]] = {
    "sgd": (
        torch.optim.SGD,
        optim.sgd,
        {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
    ),
    "adam": (torch.optim.Adam, optim.adam, {"lr": 0.01}),
    "adamw": (torch.optim.AdamW, optim.adamw, {"lr": 0.01, "weight_decay": 0.1}),
    "rmsprop": (torch.optim.RMSprop, optim.rmsprop, {"lr": 0.01}),
    "nadam": (torch.optim.NAdam, optim.nadam, {"lr": 0.01}),
}

MAX_NORM = 0.5
WIDTHS = {"my_linear": 3, "my_net": 1}
"""How many numbers the nets of vectors return."""


def recorded_once(folders: Any, recording: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that records each net in each dtype once.

    Args:
        folders: Makes them: pytest's ``tmp_path_factory``.
        recording: Records a net: ``recording(path, net, dtype=...)``.
    """

    @cache
    def kept(net: str, dtype: torch.dtype) -> Any:
        return recording(folders.mktemp("trace") / "run.trace", net, dtype=dtype)

    return lambda net, dtype=torch.float32: kept(net, dtype)


def in_each_dtype(names: Iterable[str], quick: Container[Any]) -> list[Any]:
    """Return a test case for each name and dtype.

    Args:
        names: The names.
        quick: Those that are no long test, as pairs of name and dtype.
    """
    dtypes = torch.float32, torch.float64
    return quick_or_long([(n, dtype) for n in names for dtype in dtypes], quick)


def quick_or_long(
    cases: Iterable[tuple[Any, ...]], quick: Container[Any], ids: int = 2
) -> list[Any]:
    """Return test cases.

    Args:
        cases: Their arguments.
        quick: Those that are no long test, by as many arguments as name them.
        ids: By how many of its first arguments a case is named.
    """
    return [
        pytest.param(
            *case,
            marks=[] if case[:ids] in quick else [pytest.mark.long],
            id="-".join(map(str, case[:ids])),
        )
        for case in cases
    ]


class AsModule(torch.nn.Module):
    """A model that is no ``nn.Module`` as one, as ``record`` wants it."""

    def __init__(self, model: Any) -> None:
        """Take its parameters, under their names."""
        super().__init__()
        self.model = model
        for name, tensor in model.named_parameters():
            self.register_parameter(name, torch.nn.Parameter(tensor.detach()))
            setattr(model, name, getattr(self, name))

    def forward(self, *inputs: Any) -> Any:
        """Call the model."""
        return self.model(*inputs)


def recorded(
    path: Any,
    trio: Trio,
    *,
    optimizer: str = "adamw",
    dtype: torch.dtype = torch.float32,
    steps: int = 3,
    seed: int = 0,
    max_norm: float = MAX_NORM,
    length: int = STEPS,
    device: str = "cpu",
) -> Any:
    """Record some steps of training a model, clipped; return the path."""
    model = trio.torch_model(dtype, seed)
    if not isinstance(model, torch.nn.Module):
        model = AsModule(model)
    model.to(device)
    make, _, options = OPTIMIZERS[optimizer]
    trained = make(model.parameters(), **options)
    with record(path, model, trained) as run:
        for batch in batches(trio, steps, seed, dtype, length):
            x, y = (tensor.to(device) for tensor in batch)
            with run.step(x=x, y=y):
                trained.zero_grad()
                torch_loss(model(x), y).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
                trained.step()
    return path


def batches(
    trio: Trio, steps: int, seed: int, dtype: torch.dtype, length: int = STEPS
) -> list[Any]:
    """Draw batches of inputs and targets."""
    rng = np.random.default_rng(seed)
    if trio.takes == "tokens":
        shape = (steps, 2, BATCH, length)
        return [(x, y) for x, y in torch.from_numpy(rng.integers(0, VOCAB, shape))]

    def draw(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.normal(size=(steps, BATCH, *shape))).to(dtype)

    if trio.takes == "images":
        classes = torch.from_numpy(rng.integers(0, CLASSES, (steps, BATCH)))
        return [*zip(draw(CHANNELS, SIZE, SIZE), classes, strict=True)]
    return [*zip(draw(4), draw(WIDTHS[trio.name]), strict=True)]


def torch_loss(outputs: Any, targets: torch.Tensor) -> torch.Tensor:
    """Return the loss: cross entropy of classes, squared error of numbers."""
    if isinstance(outputs, tuple):
        outputs, _ = outputs
    if targets.is_floating_point():
        return F.mse_loss(outputs, targets)
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def loss_fn(trio: Trio, **options: Any) -> Callable[[Any, Any], Any]:
    """Return the loss function of a port."""

    def loss(model: Any, batch: dict[str, Any]) -> Any:
        outputs = model(trio.for_flax(batch["x"]), **options)
        logits = outputs[0] if isinstance(outputs, tuple) else outputs
        return jax_loss(logits, batch["y"]), outputs

    return loss


def jax_loss(outputs: Any, targets: Any) -> Any:
    """Return what ``torch_loss`` does."""
    if jnp.issubdtype(targets.dtype, jnp.floating):
        return jnp.mean((outputs - targets) ** 2)
    return optax.softmax_cross_entropy_with_integer_labels(outputs, targets).mean()


def port_of(
    trio: Trio, kind: str = "nnx", optimizer: str = "adamw", **changes: Any
) -> Port:
    """Return the port of a model, with weights that do not matter."""
    source = trio.torch_model(torch.float32)
    options: dict[str, Any] = {}
    if kind == "nnx":
        model = trio.nnx_model(source, "float32")
    else:
        model = trio.linen_model(source, "float32")
        options = {"train": True} if trio.takes == "images" else {}
    _, make, hyperparameters = OPTIMIZERS[optimizer]
    given = {
        "model": model,
        "loss_fn": loss_fn(trio, **options),
        "optimizer": make(**hyperparameters),
        "clip": clip_by_global_norm(MAX_NORM),
    }
    return Port(**(given | changes))

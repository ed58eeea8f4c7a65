"""Weights into an NNX model: time and memory, against a plain copy of the same bytes.

The weights have the shapes of GPT-2's, and lie in a live torch module or in a
safetensors file: 124M parameters or, with ``python -m benchmarks.convert_weights
--large``, 1.5B, for which 16 GB should be free. The plain copies make an array of each
tensor as it lies, one of NumPy's and one of JAX's. Each call is made in a process of
its own, as memory that was used before is faster than new: half of the time and more
goes to getting new pages. NumPy asks for large ones, unlike JAX, so that its copy may
take a third of the time of JAX's, or three times as long where there are none at hand.

The extra memory is the most that the process held at any time beyond what it held
before (a live source, too) and beyond the result; pages of the file count while they
are mapped.
"""

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import memory
from benchmarks.timing import hardware, ratio
from jaxclip import convert
from jaxclip._safetensors import (
    read_safetensors,
    write_safetensors,
)

ROUNDS = 7

SIZES = {"124M": (12, 768), "1.5B": (48, 1600)}
"""The number of layers and their width."""

VOCABULARY, POSITIONS = 50257, 1024

CONVERSION = "convert.from_torch"


def linears(width: int) -> Iterator[tuple[str, int, int]]:
    """Yield the name, the inputs and the outputs of each layer in a block."""
    yield "attention", width, 3 * width
    yield "projection", width, width
    yield "up", width, 4 * width
    yield "down", 4 * width, width


class Model(nnx.Module):
    """The weights of GPT-2 in Flax."""

    def __init__(self, depth: int, width: int, rngs: nnx.Rngs) -> None:
        """Make the layers."""
        self.tokens = nnx.Embed(VOCABULARY, width, rngs=rngs)
        self.positions = nnx.Embed(POSITIONS, width, rngs=rngs)
        self.blocks = nnx.List(
            nnx.Dict(
                {
                    name: nnx.Linear(inputs, outputs, rngs=rngs)
                    for name, inputs, outputs in linears(width)
                }
            )
            for _ in range(depth)
        )


def torch_model(depth: int, width: int) -> Any:
    """Return the same in torch."""
    import torch

    with torch.device("meta"):
        blocks = [
            torch.nn.ModuleDict(
                {
                    name: torch.nn.Linear(inputs, outputs)
                    for name, inputs, outputs in linears(width)
                }
            )
            for _ in range(depth)
        ]
        model = torch.nn.ModuleDict(
            {
                "tokens": torch.nn.Embedding(VOCABULARY, width),
                "positions": torch.nn.Embedding(POSITIONS, width),
                "blocks": torch.nn.ModuleList(blocks),
            }
        )
    model = model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.fill_(0.5)
    return model


def _tensors(source: Any) -> Mapping[str, Any]:
    return (
        read_safetensors(source)
        if isinstance(source, Path)
        else {name: t.numpy() for name, t in source.state_dict().items()}
    )


def numpy_copy(source: Any, target: nnx.Module) -> Any:
    """Copy each tensor as it lies into an array of NumPy's."""
    del target
    return [np.array(tensor) for tensor in _tensors(source).values()]


def jax_copy(source: Any, target: nnx.Module) -> Any:
    """Copy each tensor as it lies into an array of JAX's."""
    del target
    tensors = _tensors(source).values()
    return [jax.numpy.array(np.asarray(t)).block_until_ready() for t in tensors]


def conversion(source: Any, target: nnx.Module) -> Any:
    """Convert the weights."""
    return convert.from_torch(target, source)


CALLS: dict[str, Callable[[Any, nnx.Module], Any]] = {
    "NumPy copy": numpy_copy,
    "JAX copy": jax_copy,
    CONVERSION: conversion,
}


def measured(name: str, size: str, file: Path | None) -> tuple[float, float]:
    """Return the milliseconds of a call, and its peak bytes beyond its result."""
    import torch

    source = file or torch_model(*SIZES[size])
    target = nnx.eval_shape(lambda: Model(*SIZES[size], nnx.Rngs(0)))
    leaves = jax.tree.leaves(nnx.state(target))
    result = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    # Whatever is imported and compiled once is no part of the call.
    tiny = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    CALLS[name](torch.nn.Linear(2, 3), tiny)
    before = memory.resident()
    memory.forget_peak()
    start = time.perf_counter()
    made = CALLS[name](source, target)
    milliseconds = (time.perf_counter() - start) * 1e3
    extra = memory.peak() - before - result
    del made
    return milliseconds, extra


def table(size: str, file: Path | None, rounds: int) -> Table:
    """Measure the calls in turns."""
    where = "a safetensors file" if file else "a live module"
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in CALLS}
    spawn = multiprocessing.get_context("spawn")
    for _ in track(range(rounds), description=f"{size} from {where}"):
        for name, rows in results.items():
            with spawn.Pool(1) as fresh:
                rows.append(fresh.apply(measured, (name, size, file)))
    times = {name: np.array([row[0] for row in rows]) for name, rows in results.items()}
    _, width = SIZES[size]
    largest = 4 * VOCABULARY * width / 1e6
    made = Table(
        "call",
        *("median ms", "× NumPy copy", "× JAX copy", "extra MB", "× largest tensor"),
        title=f"{size} weights from {where}, float32; {hardware()}",
    )
    for name, milliseconds in times.items():
        extra = float(np.median([row[1] for row in results[name]])) / 1e6
        made.add_row(
            name,
            f"{np.median(milliseconds):.0f}",
            f"{ratio(milliseconds, times['NumPy copy']):.2f}",
            f"{ratio(milliseconds, times['JAX copy']):.2f}",
            f"{extra:.0f}",
            f"{extra / largest:.2f}",
        )
    return made


def main() -> list[Table]:
    """Print a table for each source."""
    size, rounds = ("1.5B", 3) if "--large" in sys.argv[1:] else ("124M", ROUNDS)
    tables = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        weights = torch_model(*SIZES[size]).state_dict()
        write_safetensors(file, {name: t.numpy() for name, t in weights.items()})
        del weights
        for source in (file, None):
            tables.append(table(size, source, rounds))
            Console(width=100).print(tables[-1])
    return tables


if __name__ == "__main__":
    main()

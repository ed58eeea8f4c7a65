"""Verifying a recorded step of GPT-2, against a step in torch plus a step in JAX.

The model has 124M parameters (``--small``: 11M), and is trained by AdamW with a clip,
on one sequence of 64 tokens. Verifying adds to the two steps a float64 run,
three times more with what is given changed by an ulp, and to compare. It compiles, as
the JAX step does the first time. Each call is made in a process of its own; the memory
is the most that it held at any time beyond what it held before.
"""

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import memory

SIZES = {
    "124M": {"vocab_size": 50257, "block_size": 1024, "n_embd": 768, "n_head": 12}
    | {"n_layer": 12},
    "11M": {"vocab_size": 8192, "block_size": 256, "n_embd": 384, "n_head": 6}
    | {"n_layer": 4},
}

TOKENS = 64
LR, MAX_NORM = 1e-4, 1.0


class Measured(NamedTuple):
    """A call: its seconds, those of its second time, and its memory.

    Attributes:
        first: The seconds that it took first, in which JAX compiles.
        again: The seconds that it took the second time; NaN if it is not repeated.
        peak: The most bytes that the process held, beyond what it held before.
    """

    first: float
    again: float
    peak: int


def torch_training(size: str) -> tuple[Any, Any, Callable[[Any], None]]:
    """Make the model, its optimizer, and a function that takes a step."""
    import torch
    from torch.nn import functional as F

    from torchref.gpt import GPT

    torch.manual_seed(0)
    model = GPT(**SIZES[size])
    optimizer = torch.optim.AdamW(model.parameters(), LR)

    def step(tokens: Any) -> None:
        optimizer.zero_grad()
        logits = model(tokens[:, :-1]).flatten(0, 1)
        loss = F.cross_entropy(logits, tokens[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()

    return model, optimizer, step


def jax_port(size: str) -> Any:
    """Return the port."""
    import optax
    from flax import nnx

    from jaxclip import clip_by_global_norm, models, optim
    from jaxclip.parity import Port

    def loss_fn(model: Any, batch: dict[str, Any]) -> Any:
        logits = model(batch["tokens"][:, :-1])
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits, batch["tokens"][:, 1:]
        )
        return losses.mean(), logits

    model = nnx.eval_shape(lambda: models.GPT(**SIZES[size], rngs=nnx.Rngs(0)))
    return Port(model, loss_fn, optim.adamw(LR), clip=clip_by_global_norm(MAX_NORM))


def tokens(size: str) -> Any:
    """Draw a batch."""
    import torch

    generator = torch.Generator().manual_seed(1)
    vocabulary = SIZES[size]["vocab_size"]
    return torch.randint(vocabulary, (1, TOKENS + 1), generator=generator)


def recording(size: str, path: Path) -> None:
    """Record the second step, in which the optimizer has a state."""
    from jaxclip.parity import record

    model, optimizer, step = torch_training(size)
    batch = tokens(size)
    step(batch)
    with record(path, model, optimizer) as run, run.step(tokens=batch):
        step(batch)


def torch_step(size: str, path: Path) -> Measured:
    """Take steps in torch."""
    del path
    *_, step = torch_training(size)
    batch = tokens(size)
    return _measured(lambda: step(batch), twice=True)


def jax_step(size: str, path: Path) -> Measured:
    """Take steps in JAX."""
    del path
    import jax
    import optax
    from flax import nnx

    from jaxclip import models

    port = jax_port(size)
    graphdef, params = nnx.split(models.GPT(**SIZES[size], rngs=nnx.Rngs(0)))
    optimizer = optax.chain(port.clip, port.optimizer)
    batch = {"tokens": tokens(size).numpy()}
    state = optimizer.init(params)

    def loss_fn(params: Any) -> Any:
        return port.loss_fn(nnx.merge(graphdef, params), batch)[0]

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    return _measured(lambda: jax.block_until_ready(step(params, state)), twice=True)


def verification(size: str, path: Path) -> Measured:
    """Verify the recorded step, the free run left out."""
    from jaxclip.parity import verify

    port = jax_port(size)

    def call() -> None:
        verify(path, port, free_run=False).raise_if_different()

    return _measured(call, twice=False)


CALLS = {
    "a step in torch": torch_step,
    "a step in JAX": jax_step,
    "verify": verification,
}


def _measured(call: Callable[[], object], *, twice: bool) -> Measured:
    before = memory.resident()
    memory.forget_peak()
    start = time.perf_counter()
    call()
    first = time.perf_counter() - start
    peak = memory.peak() - before
    start = time.perf_counter()
    if twice:
        call()
    return Measured(first, time.perf_counter() - start if twice else float("nan"), peak)


def main() -> list[Table]:
    """Print the table."""
    from benchmarks.timing import hardware

    size = "11M" if "--small" in sys.argv[1:] else "124M"
    spawn = multiprocessing.get_context("spawn")
    results: dict[str, Measured] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.trace"
        with spawn.Pool(1) as fresh:
            fresh.apply(recording, (size, path))
        for name, call in track(CALLS.items(), description="verifying"):
            with spawn.Pool(1) as fresh:
                results[name] = fresh.apply(call, (size, path))
    torch, jax, verified = results.values()
    table = Table(
        "",
        *("first, s", "again, s", "× both steps, first", "peak MB", "× parameters"),
        title=f"Verifying a step of {size} parameters, float32; {hardware()}",
    )
    nbytes = 4e6 * float(size.removesuffix("M"))
    for name, found in results.items():
        table.add_row(
            name,
            f"{found.first:.1f}",
            f"{found.again:.1f}" if found is not verified else "",
            f"{found.first / (torch.first + jax.first):.2f}",
            f"{found.peak / 1e6:.0f}",
            f"{found.peak / nbytes:.1f}",
        )
    Console(width=120).print(table)
    return [table]


if __name__ == "__main__":
    main()

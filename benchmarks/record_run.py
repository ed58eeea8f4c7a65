"""Recording a step of torch, against the step alone and against writing the bytes.

The net is six blocks of 384 units with four times as many within, 7M parameters, under
AdamW with a clip: what is kept of a step is mostly nine trees of the parameters' size.
To write the bytes is to copy arrays that are at hand, to hash them and to write them to
a file, beside the step that is not recorded. Files go to the folder for temporary ones.

A second net has dropout by a function behind each of its blocks: torch's kernels are
watched in a step that draws, one by one.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional as F

from benchmarks.timing import hardware, in_turns, ratio, rounded, torch_device
from jaxclip._safetensors import read_safetensors, write_safetensors
from jaxclip.parity import STAGES, record

ROUNDS = 7
DEPTH, WIDTH, BATCH = 6, 384, 64

KEEPS = {
    "recorded": STAGES,
    "recorded, without the optimizer's state": tuple(
        stage for stage in STAGES if not stage.startswith("opt_state")
    ),
    "recorded, losses and norms alone": ("loss", "total_norm"),
}

ALONE, WRITTEN = "not recorded", "not recorded, and its bytes written"

DRAWING = {
    "recorded, losses and norms alone": ("loss", "total_norm"),
    "recorded, and the masks": ("loss", "total_norm", "masks"),
}


class Dropped(nn.Module):
    """Dropout by a function."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Drop a tenth."""
        return F.dropout(x, 0.1)


def training(
    *, drops: bool = False
) -> tuple[nn.Module, torch.optim.Optimizer, Callable[[], None]]:
    """Make a model, its optimizer, and a function that takes a step.

    Args:
        drops: Whether there is dropout behind each block.
    """
    torch.manual_seed(0)
    layers = (
        (nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        + (Dropped(),) * drops
        for _ in range(DEPTH)
    )
    model = nn.Sequential(*(layer for block in layers for layer in block))
    model.to(torch_device())
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    x = torch.randn(BATCH, WIDTH).to(torch_device())

    def step() -> None:
        optimizer.zero_grad()
        F.mse_loss(model(x), x).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return model, optimizer, step


@contextmanager
def recorded(
    folder: Path, keep: tuple[str, ...], *, drops: bool = False
) -> Iterator[Callable[[], None]]:
    """Yield a function that takes a recorded step."""
    model, optimizer, step = training(drops=drops)
    step()
    with record(folder, model, optimizer, keep=keep) as run:

        def take() -> None:
            with run.step():
                step()

        take()
        yield take


def main() -> list[Table]:
    """Print the table."""
    with ExitStack() as stack:
        here = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folders = {name: here / str(index) for index, name in enumerate(KEEPS)}
        *_, step = training()
        calls: dict[str, Callable[[], None]] = {ALONE: step}
        for name, keep in KEEPS.items():
            calls[name] = stack.enter_context(recorded(folders[name], keep))
        files = {name: folders[name] / "step-000000.safetensors" for name in KEEPS}
        sizes = {name: file.stat().st_size for name, file in files.items()}
        shutil.copy(files["recorded"], here / "whole.safetensors")
        arrays = {
            name: np.array(stored)
            for name, stored in read_safetensors(here / "whole.safetensors").items()
        }

        def write() -> None:
            step()
            copies = {name: array.copy() for name, array in arrays.items()}
            write_safetensors(here / "written", copies, hashlib.sha256().update)

        calls[WRITTEN] = write
        times = in_turns(calls, ROUNDS, "recording", at_once=1)
    table = Table(
        "a step",
        *("median ms", f"× {ALONE}", f"× {WRITTEN}", "MB written"),
        title=f"Recording a step of 7M parameters, float32; {hardware()}",
    )
    for name, values in times.items():
        written = sizes["recorded"] if name == WRITTEN else sizes.get(name, 0)
        table.add_row(
            name,
            rounded(values),
            f"{ratio(values, times[ALONE]):.2f}",
            f"{ratio(values, times[WRITTEN]):.2f}",
            f"{written / 1e6:.1f}",
        )
    tables = [table, drawing()]
    for each in tables:
        Console(width=120).print(each)
    return tables


def drawing() -> Table:
    """Time steps that draw random numbers, with and without their masks."""
    with ExitStack() as stack:
        here = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        *_, step = training(drops=True)
        calls: dict[str, Callable[[], None]] = {ALONE: step}
        for index, (name, keep) in enumerate(DRAWING.items()):
            made = recorded(here / str(index), keep, drops=True)
            calls[name] = stack.enter_context(made)
        times = in_turns(calls, ROUNDS, "recording of dropout", at_once=1)
    table = Table(
        *("a step", "median ms", f"× {ALONE}"),
        title=f"Recording what {DEPTH} dropouts by functions draw; {hardware()}",
    )
    for name, values in times.items():
        share = ratio(values, times[ALONE])
        table.add_row(name, rounded(values), f"{share:.2f}")
    return table


if __name__ == "__main__":
    main()

"""What the demo prints: tables and verdicts."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from jaxclip.demo._differences import relative_difference
from jaxclip.demo._history import Array, History
from jaxclip.demo._notebook_net import Gradients, NetComparison, max_ulps
from jaxclip.demo._settings import BATCH_SIZE, SEQUENCE_LENGTH
from jaxclip.demo._trainings import Trainings
from jaxclip.demo._ways import MAX_NORM

_SHOWN = ("nn.utils.clip_grad_norm_", "jaxclip.clip_grad_norm")
"""The ways whose gradients are printed in full."""


def print_net(console: Console, net: NetComparison) -> None:
    """Print the notebook's net: parameters, gradients, clipped gradients."""
    table = _table("The parameters and their shapes", "torch", "", "JAX (Flax)", "")
    for param in net.parameters:
        table.add_row(
            param.torch_name,
            _shape(param.torch_shape),
            param.jax_name,
            _shape(param.jax_shape),
        )
    console.print(table)
    console.print(
        _gradients(
            "The gradients of the output, JAX's laid out as torch's",
            {"torch": net.torch_grads, "JAX": net.jax_grads},
            {"torch": net.torch_norm, "JAX": net.jax_norm},
        )
    )
    clipped = {way.name: way.grads for way in net.ways if way.name in _SHOWN}
    console.print(
        _gradients(
            f"The gradients clipped to a norm of {MAX_NORM:g}",
            clipped,
            {name: _norm(grads) for name, grads in clipped.items()},
        )
    )

    table = _table(
        f"Every way to clip to {MAX_NORM:g}, held against the first of its formula",
        *("", "norm", "1.bias", "ulps apart"),
    )
    formula = ""
    for way in net.ways:
        if way.formula != formula:
            formula = way.formula
            table.add_row(formula, style="bold")
        table.add_row(
            f"  {way.name}",
            f"{_norm(way.grads):.6f}",
            _matrix(way.grads["1.bias"]),
            "" if way.comparison is None else str(max_ulps(way.comparison)),
        )
    console.print(table)


def print_trainings(console: Console, trainings: Trainings) -> None:
    """Print the language model's runs, at chosen steps and as a whole."""
    torch, jax, free = trainings.torch, trainings.jax, trainings.unclipped
    steps = chosen_steps(len(torch.losses))
    differences = relative_difference(torch.losses, jax.losses)

    table = _table(
        "The loss in nats per character, and the perplexity (ppl), exp(loss)",
        *("step", "torch loss", "JAX loss", "torch ppl", "JAX ppl"),
        *("rel. diff.", "unclipped"),
    )
    for step in steps:
        i = step - 1
        table.add_row(
            str(step),
            _number(torch.losses[i]),
            _number(jax.losses[i]),
            _perplexity(torch.losses[i]),
            _perplexity(jax.losses[i]),
            f"{differences[i]:.1e}",
            _number(free.losses[i]),
        )
    console.print(table)

    table = _table(
        "The norm of the gradients, before and after clipping",
        *("step", "torch before", "after", "JAX before", "after", "unclipped"),
    )
    for step in steps:
        i = step - 1
        norms = [[run.grad_norms[i], run.clipped_norms[i]] for run in (torch, jax)]
        table.add_row(
            str(step),
            *(_number(norm) for norm in itertools.chain(*norms)),
            _number(free.grad_norms[i]),
        )
    console.print(table)

    table = _table(
        "The runs as a whole",
        *("", "last loss", "clipped", "greatest norm", "first step", "then chars/s"),
    )
    for name, run in trainings.runs.items():
        share = 0.0 if run is free else run.clipped_share(trainings.max_norm)
        table.add_row(
            name,
            _number(run.last_loss),
            f"{share:.0%}",
            _number(np.max(run.grad_norms)),
            f"{run.seconds[0]:.2f} s",
            "-" if len(run.seconds) == 1 else f"{_chars_per_second(run):,.0f}",
        )
    console.print(table)
    for name, run in trainings.runs.items():
        if (first := run.first_nonfinite) is not None:
            loss = run.losses[first - 1]
            console.print(f"{name}: the loss is {loss} at step {first}.", style="bold")
    console.print(
        "The last loss is the mean over the last twentieth of the steps. JAX compiles "
        "on its first step. torch has one thread, which suits so small a net best; JAX "
        "takes the cores that it finds.",
        style="dim",
    )


def chosen_steps(steps: int) -> list[int]:
    """Return 1, 2, 5, 10, 20, 50 and so on, and the last step.

    Example:
        >>> chosen_steps(60)
        [1, 2, 5, 10, 20, 50, 60]
    """
    powers = (10**power for power in range(len(str(steps))))
    marks = (digit * power for power in powers for digit in (1, 2, 5))
    return sorted({mark for mark in marks if mark < steps} | {steps})


def _gradients(
    title: str, grads: Mapping[str, Gradients], norms: Mapping[str, float]
) -> Table:
    """Lay the gradients of several sides beside each other, parameter by parameter."""
    table = _table(title, "", *grads, justify="left")  # the rows of a matrix align
    sides = list(grads.values())
    for name in sides[0]:
        table.add_row(name, *(_matrix(side[name]) for side in sides))
    table.add_row("total norm", *(f"{norms[side]:.6f}" for side in grads))
    return table


def _table(
    title: str, *columns: str, justify: Literal["left", "right"] = "right"
) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="italic", box=box.SIMPLE
    )
    for i, column in enumerate(columns):
        table.add_column(column, justify=justify if i else "left", no_wrap=not i)
    return table


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _matrix(array: Array) -> str:
    return np.array2string(array, precision=4, suppress_small=True, floatmode="fixed")


def _number(value: float) -> str:
    """Write a loss or a norm, to four decimals unless it has exploded."""
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.3e}"


def _norm(grads: Gradients) -> float:
    squares = (np.sum(np.square(g, dtype=np.float64)) for g in grads.values())
    return float(np.sqrt(sum(squares)))


def _chars_per_second(run: History) -> float:
    """Return the speed without the first step, which compiles and warms up."""
    return BATCH_SIZE * SEQUENCE_LENGTH / float(np.mean(run.seconds[1:]))


def _perplexity(loss: float) -> str:
    with np.errstate(over="ignore"):
        return f"{np.exp(np.float64(loss)):.4g}"

"""torch's schedulers, ours, and the nearest of Optax, each run anew.

`scripts/write_readme_tables.py` prints the rows into the README, and
`test_optax` holds them to what is said of them.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.optim.schedules.harness import (
    LR,
    STEPS,
    evaluate,
    hyperparameters,
    make_optimizer,
    torch_run,
)


@dataclass(frozen=True)
class Row:
    """A scheduler three times over, as expressions.

    Attributes:
        torch: Of the optimizer ``o``, whose learning rate is 0.1.
        jaxclip: The same.
        optax: What comes nearest; nothing, if nothing does.
    """

    torch: str
    jaxclip: str
    optax: str = ""

    def learning_rates(self, library: str) -> np.ndarray[Any, Any]:
        """Return the learning rates of a library in float64, update by update."""
        if library == "torch":
            lrs: np.ndarray[Any, Any] = torch_run(self.torch)[0]
            return lrs
        schedule = evaluate(getattr(self, library), optax=optax)
        with jax.enable_x64(True):
            return np.asarray(jax.vmap(schedule)(jnp.arange(STEPS + 1)))


class PlateauRow(Row):
    """The scheduler that learns from a value, given one that falls and then stays."""

    VALUES = (1.0, 0.8, *(STEPS - 1) * (0.7,))

    def learning_rates(self, library: str) -> np.ndarray[Any, Any]:
        """Return the learning rates of a library in float64, update by update."""
        if library == "torch":
            optimizer = make_optimizer()
            scheduler = evaluate(self.torch, o=optimizer)
            lrs = []
            for value in self.VALUES:
                lrs.append(hyperparameters(optimizer)[0])
                scheduler.step(value)
            return np.array(lrs)
        plateau = evaluate(getattr(self, library), optax=optax)
        optimizer = optax.chain(optax.scale(LR), plateau)

        def step(state: Any, value: Any) -> tuple[Any, Any]:
            updates, state = optimizer.update(jnp.ones(()), state, value=value)
            return state, updates

        with jax.enable_x64(True):
            state = optimizer.init(jnp.ones(()))
            return np.asarray(jax.lax.scan(step, state, jnp.array(self.VALUES))[1])


_PERIODS = (
    "optax.sgdr_schedule([dict(init_value=0.1, peak_value=0.1, warmup_steps=0, "
    "decay_steps=n) for n in [50, 100, 200, 400]])"
)

ROWS = [
    Row(
        "LambdaLR(o, lambda t: (t + 1) / 10 if t < 10 else 1.0)",
        "lambda_lr(0.1, lambda t: (t + 1) / 10 if t < 10 else 1.0, total_iters=10)",
        "optax.linear_schedule(0.0, 0.1, 10)",
    ),
    Row(
        "MultiplicativeLR(o, lambda t: 0.95)",
        "multiplicative_lr(0.1, lambda t: 0.95, total_iters=500)",
    ),
    Row(
        "StepLR(o, 30)",
        "step_lr(0.1, 30)",
        "optax.exponential_decay(0.1, 30, 0.1, staircase=True)",
    ),
    Row(
        "MultiStepLR(o, [30, 80])",
        "multi_step_lr(0.1, [30, 80])",
        "optax.piecewise_constant_schedule(0.1, {30: 0.1, 80: 0.1})",
    ),
    Row(
        "ConstantLR(o, 0.25, 40)",
        "constant_lr(0.1, 0.25, 40)",
        "optax.piecewise_constant_schedule(0.025, {40: 4.0})",
    ),
    Row(
        "LinearLR(o, 0.01, 1.0, 100)",
        "linear_lr(0.1, 0.01, 1.0, 100)",
        "optax.linear_schedule(0.001, 0.1, 100)",
    ),
    Row(
        "ExponentialLR(o, 0.99)",
        "exponential_lr(0.1, 0.99)",
        "optax.exponential_decay(0.1, 1, 0.99)",
    ),
    Row(
        "PolynomialLR(o, 400, 0.9)",
        "polynomial_lr(0.1, 400, 0.9)",
        "optax.polynomial_schedule(0.1, 0.0, 0.9, 400)",
    ),
    Row(
        "CosineAnnealingLR(o, 200)",
        "cosine_annealing_lr(0.1, 200)",
        "optax.cosine_decay_schedule(0.1, 200)",
    ),
    Row(
        "CosineAnnealingWarmRestarts(o, 50, 2)",
        "cosine_annealing_warm_restarts(0.1, 50, 2)",
        _PERIODS,
    ),
    Row("CyclicLR(o, 0.01, 0.1, 100)", "cyclic_lr(0.01, 0.1, 100)"),
    Row(
        "OneCycleLR(o, 0.1, 500)",
        "one_cycle_lr(0.1, 500)",
        "optax.cosine_onecycle_schedule(500, 0.1)",
    ),
    Row(
        "OneCycleLR(o, 0.1, 500, anneal_strategy='linear', three_phase=True)",
        "one_cycle_lr(0.1, 500, anneal_strategy='linear', three_phase=True)",
        "optax.linear_onecycle_schedule(500, 0.1, pct_final=0.6)",
    ),
    PlateauRow(
        "ReduceLROnPlateau(o, factor=0.5, patience=3)",
        "reduce_lr_on_plateau(0.1, factor=0.5, patience=3)",
        "optax.contrib.reduce_on_plateau(factor=0.5, patience=3)",
    ),
    Row(
        "SWALR(o, 0.02)",
        "swa_lr(0.1, 0.02)",
        "optax.cosine_decay_schedule(0.1, 10, 0.2)",
    ),
    Row(
        "SequentialLR(o, [LinearLR(o, 0.1, total_iters=50),"
        " CosineAnnealingLR(o, 450)], [50])",
        "sequential_lr([linear_lr(0.1, 0.1, total_iters=50),"
        " cosine_annealing_lr(0.1, 450)], [50])",
        "optax.warmup_cosine_decay_schedule(0.01, 0.1, 50, 500)",
    ),
    Row(
        "ChainedScheduler([ConstantLR(o, 0.1, 20), ExponentialLR(o, 0.99)])",
        "chained_scheduler([constant_lr(0.1, 0.1, 20), exponential_lr(0.1, 0.99)])",
    ),
]


@functools.cache
def distances(row: Row, library: str) -> np.ndarray[Any, Any]:
    """Return how far a library is from torch, in parts of the highest rate."""
    torchs = row.learning_rates("torch")
    away: np.ndarray[Any, Any] = np.abs(row.learning_rates(library) - torchs)
    return away / torchs.max()


def shown(row: Row, library: str) -> str:
    """Return by how much a library differs, as a cell of a table; 1e-12 is nothing."""
    if not getattr(row, library):
        return ""
    away = distances(row, library)
    wrong = np.nonzero(away > 1e-12)[0]
    return f"{away.max():.1%}, from count {wrong[0]}" if wrong.size else "0"


def table() -> list[tuple[str, str, str, str, str]]:
    """Return the rows: torch's, ours and its distance, Optax's and its distance."""
    return [
        (
            f"`{row.torch.replace('(o, ', '(').replace('(o)', '()')}`",
            f"`{row.jaxclip}`",
            shown(row, "jaxclip"),
            f"`{row.optax}`" if row.optax else "",
            shown(row, "optax"),
        )
        for row in ROWS
    ]

"""torch's optimizers, and how far ours and the nearest of Optax step from them.

`scripts/write_readme_tables.py` prints the rows into the README.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from jaxclip import optim
from tests.optim.against_torch import (
    SHAPES,
    Pair,
    apart,
    gradients,
    parameters,
    run_torch,
)

STEPS = 20


@dataclass(frozen=True)
class Row:
    """An optimizer of torch, ours, and what is nearest to it in Optax.

    Attributes:
        theirs: torch's class.
        ours: The function of jaxclip.optim.
        options: Arguments by name, for both; the rest is torch's default.
        only_ours: Further ones for ours.
        nearest: The name of Optax's function, or None where it has none.
        nearest_options: Its arguments, chosen to come nearest.
        shapes: Those of the parameters.
    """

    theirs: Callable[..., torch.optim.Optimizer]
    ours: Callable[..., optax.GradientTransformationExtraArgs]
    options: dict[str, Any] = field(default_factory=dict)
    only_ours: dict[str, Any] = field(default_factory=dict)
    nearest: str | None = None
    nearest_options: dict[str, Any] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=lambda: SHAPES)

    def cells(self) -> list[str]:
        """Return both calls of each library as they are written, and differences."""
        cells = [
            call(self.theirs.__name__, self.options),
            call(f"optim.{self.ours.__name__}", self.only_ours).replace("()", ""),
            self.difference(self.ours(**self.options | self.only_ours)),
        ]
        if self.nearest is None:
            return [*cells, "none", ""]
        return [
            *cells,
            call(f"optax.{self.nearest}", self.nearest_options),
            self.difference(attrgetter(self.nearest)(optax)(**self.nearest_options)),
        ]

    def difference(self, optimizer: optax.GradientTransformation) -> str:
        """Say how far parameters are from torch's in float64, relative to them."""
        params = parameters(shapes=self.shapes)
        grads = gradients(steps=STEPS, shapes=self.shapes)
        expected = run_torch(Pair(self.theirs, self.ours, self.options), params, grads)
        expected = {name: expected[name] for name in params}
        with jax.enable_x64(True):
            exact = largest(run(optimizer, params, grads, jnp.float64), expected)
        single = largest(run(optimizer, params, grads, jnp.float32), expected)
        # What torch's own float32 differs by is 2e-6 at most.
        is_rounding = exact < 1e-12 and single < 4e-6
        return "rounding" if is_rounding else f"{max(exact, single):.0e}"


def call(function: str, options: dict[str, Any]) -> str:
    given = ", ".join(f"{name}={value!r}" for name, value in options.items())
    return f"`{function}({given})`"


def largest(history: dict[str, Any], expected: dict[str, Any]) -> float:
    return max(float(each.max()) for each in apart(history, expected).values())


def run(
    optimizer: optax.GradientTransformation,
    params: dict[str, Any],
    grads: dict[str, Any],
    dtype: Any,
) -> dict[str, Any]:
    """Return the parameters after each step."""

    def step(carry: Any, grad: Any) -> Any:
        params, state = carry
        updates, state = optimizer.update(grad, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    start, given = jax.tree.map(lambda x: jnp.asarray(x, dtype), (params, grads))
    history = jax.lax.scan(step, (start, optimizer.init(start)), given)[1]
    return {name: np.asarray(values) for name, values in history.items()}


ROWS = [
    Row(
        torch.optim.SGD,
        optim.sgd,
        {"lr": 0.01, "momentum": 0.9, "nesterov": True},
        nearest="sgd",
        nearest_options={"learning_rate": 0.01, "momentum": 0.9, "nesterov": True},
    ),
    Row(
        torch.optim.SGD,
        optim.sgd,
        {"lr": 0.01, "momentum": 0.9, "dampening": 0.1},
        nearest="sgd",
        nearest_options={"learning_rate": 0.01, "momentum": 0.9},
    ),
    Row(torch.optim.ASGD, optim.asgd),
    Row(
        torch.optim.Adam,
        optim.adam,
        {},
        nearest="adam",
        nearest_options={"learning_rate": 1e-3},
    ),
    Row(
        torch.optim.Adam,
        optim.adam,
        {"amsgrad": True},
        nearest="amsgrad",
        nearest_options={"learning_rate": 1e-3},
    ),
    Row(
        torch.optim.AdamW,
        optim.adamw,
        {},
        nearest="adamw",
        nearest_options={"learning_rate": 1e-3, "weight_decay": 1e-2},
    ),
    Row(
        torch.optim.Adamax,
        optim.adamax,
        {},
        nearest="adamax",
        nearest_options={"learning_rate": 2e-3},
    ),
    Row(
        torch.optim.NAdam,
        optim.nadam,
        nearest="nadam",
        nearest_options={"learning_rate": 2e-3},
    ),
    Row(
        torch.optim.RAdam,
        optim.radam,
        nearest="radam",
        nearest_options={"learning_rate": 1e-3},
    ),
    Row(
        torch.optim.RMSprop,
        optim.rmsprop,
        {},
        nearest="rmsprop",
        nearest_options={"learning_rate": 1e-2, "decay": 0.99, "eps_in_sqrt": False},
    ),
    Row(
        torch.optim.Adagrad,
        optim.adagrad,
        {},
        nearest="adagrad",
        nearest_options={
            "learning_rate": 1e-2,
            "initial_accumulator_value": 0.0,
            "eps": 1e-20,
        },
    ),
    Row(
        torch.optim.Adadelta,
        optim.adadelta,
        {},
        nearest="adadelta",
        nearest_options={"learning_rate": 1.0},
    ),
    Row(
        torch.optim.Adafactor,
        optim.adafactor,
        {"eps": (1e-6, 1e-3)},
        nearest="adafactor",
        nearest_options={
            "learning_rate": 1e-2,
            "min_dim_size_to_factor": 1,
            "eps": 1e-12,
        },
    ),
    Row(
        torch.optim.Rprop,
        optim.rprop,
        nearest="rprop",
        nearest_options={"learning_rate": 1e-2},
    ),
    Row(
        torch.optim.Muon,
        optim.muon,
        only_ours={"out_axis": 0},
        nearest="contrib.muon",
        nearest_options={"learning_rate": 1e-3, "weight_decay": 0.1, "eps": 1e-7},
        shapes={"kernel": (6, 8)},
    ),
]


@functools.cache
def table() -> list[list[str]]:
    """Return the cells of each row."""
    return [row.cells() for row in ROWS]

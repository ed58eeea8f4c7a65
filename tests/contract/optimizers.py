"""The optimizers, one row each; every row is held to `test_optimizer_contract`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import optax
import pytest

from jaxclip import optim


@dataclass(frozen=True)
class Optimizer:
    """An optimizer: what makes it, and of what.

    Attributes:
        factory: A function of `jaxclip.optim`.
        options: Its arguments, the learning rate among them.
        needs_params: Whether ``update`` needs the parameters.
        static: Those arguments that ``optax.inject_hyperparams`` is not to make into
            arrays.
        shards: Whether it steps each shard of a parameter by itself, with a state
            that lies where the parameters do.
    """

    factory: Callable[..., optax.GradientTransformationExtraArgs]
    options: dict[str, Any] = field(default_factory=dict)
    needs_params: bool = False
    static: tuple[str, ...] = ()
    shards: bool = True

    @property
    def name(self) -> str:
        options = [
            f"{name}={'schedule' if callable(value) else value}"
            for name, value in self.options.items()
        ]
        return f"{self.factory.__name__}({', '.join(options)})"

    @property
    def is_scheduled(self) -> bool:
        return any(map(callable, self.options.values()))

    def make(self, **more: Any) -> optax.GradientTransformationExtraArgs:
        return self.factory(**self.options | more)

    def inject(self, **more: Any) -> optax.GradientTransformationExtraArgs:
        """Make it as a user does who wants to change its numbers as it runs."""
        factory = optax.inject_hyperparams(self.factory, self.static)
        return factory(**self.options | more)


# One with trees in its state, and one with arrays of numbers too. The others are made
# by the same code, and are long.
QUICK = [
    Optimizer(
        optim.adamw,
        {"lr": 0.1, "weight_decay": 0.1, "amsgrad": True},
        needs_params=True,
    ),
    Optimizer(optim.asgd, {"lr": 0.1, "t0": 1.0}, needs_params=True),
]
LONG = [
    Optimizer(optim.adafactor, {"lr": 0.1}, needs_params=True, shards=False),
    Optimizer(optim.adadelta, {"lr": 0.5}),
    Optimizer(optim.adagrad, {"lr": 0.1, "initial_accumulator_value": 0.1}),
    Optimizer(optim.adam, {"lr": optax.linear_schedule(0.1, 0.2, 10)}),
    Optimizer(optim.adamax, {"lr": 0.1, "weight_decay": 0.1}, needs_params=True),
    Optimizer(
        optim.lbfgs,
        {"lr": 0.1, "max_iter": 1, "history_size": 3},
        static=("max_iter", "history_size"),
        shards=False,
    ),
    Optimizer(optim.nadam, {"lr": 0.1}),
    Optimizer(optim.radam, {"lr": 0.1}),
    Optimizer(optim.rmsprop, {"lr": 0.1, "centered": True, "momentum": 0.5}),
    Optimizer(optim.rprop, {"lr": 0.1}),
    Optimizer(optim.sgd, {"lr": 0.1}),
    Optimizer(
        optim.sgd,
        {"lr": 0.1, "momentum": 0.5, "nesterov": True, "maximize": True},
    ),
]
OPTIMIZERS = [
    pytest.param(row, marks=[] if row in QUICK else [pytest.mark.long], id=row.name)
    for row in QUICK + LONG
]

"""The transformations, one row each; every row is held to `test_contract`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import optax

import jaxclip

SCHEDULE = optax.linear_schedule(2.0, 0.5, transition_steps=10)


@dataclass(frozen=True)
class Case:
    """A transformation: what makes it, and of what.

    Its threshold is to clip gradients of norm 5 over some leaves, and none of 0.01.
    """

    factory: Callable[..., optax.GradientTransformationExtraArgs]
    threshold: Any
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        threshold = "schedule" if callable(self.threshold) else self.threshold
        options = [f"{name}={value}" for name, value in self.options.items()]
        return f"{self.factory.__name__}({', '.join([str(threshold), *options])})"

    def make(self, **more: Any) -> optax.GradientTransformationExtraArgs:
        return self.factory(self.threshold, **self.options, **more)

    def inject(self) -> optax.GradientTransformationExtraArgs:
        """Make it as a user does who wants to change its numbers as it runs."""
        return optax.inject_hyperparams(self.factory)(self.threshold, **self.options)


CASES = [
    Case(jaxclip.clip_by_global_norm, 1.0),
    Case(jaxclip.clip_by_global_norm, 1.0, {"eps": 0.0}),
    Case(jaxclip.clip_by_global_norm, 1.0, {"norm_type": 1.0}),
    Case(jaxclip.clip_by_global_norm, 1.0, {"norm_type": float("inf")}),
    Case(jaxclip.clip_by_global_norm, SCHEDULE),
    Case(jaxclip.clip_by_norm, 1.0),
    Case(jaxclip.clip_by_value, 1.0),
]

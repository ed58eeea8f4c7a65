"""The transformations, one row each; every row is held to `test_contract`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import optax
import pytest

import jaxclip

SCHEDULE = optax.linear_schedule(2.0, 0.5, transition_steps=10)


@dataclass(frozen=True)
class Case:
    """A transformation: what makes it, and of what.

    Its threshold is to clip gradients of norm 5 over some leaves, and none of 0.01.

    Attributes:
        factory: Makes the transformation of its threshold and options.
        threshold: Its first argument, or the one that ``argument`` names.
        options: The others.
        argument: The name of the threshold, where it is not the first argument.
        static: Those arguments that ``optax.inject_hyperparams`` is not to make into
            arrays.
        learns: Whether a step depends on the steps before it, other than by their
            number.
        skips: Whether it drops what is not finite, so that nothing else counts it.
        needs_params: Whether ``update`` needs the parameters.
        keeps_tree: Whether its state holds a tree like the parameters.
        shards: What it is told in ``shard_map``: "axis_name", "specs", or nothing.
        quick: Whether it is in the quick tests, and not another number in the place
            of one that is.
    """

    factory: Callable[..., optax.GradientTransformationExtraArgs]
    threshold: Any
    options: dict[str, Any] = field(default_factory=dict)
    argument: str | None = None
    static: tuple[str, ...] = ()
    learns: bool = False
    skips: bool = False
    needs_params: bool = False
    keeps_tree: bool = False
    shards: str | None = "axis_name"
    quick: bool = True

    @property
    def name(self) -> str:
        threshold = "schedule" if callable(self.threshold) else self.threshold
        options = [
            f"{name}={value}"
            for name, value in self.options.items()
            if not callable(value)
        ]
        return f"{self.factory.__name__}({', '.join([str(threshold), *options])})"

    def make(self, **more: Any) -> optax.GradientTransformationExtraArgs:
        return self._call(self.factory, **more)

    def inject(self) -> optax.GradientTransformationExtraArgs:
        """Make it as a user does who wants to change its numbers as it runs."""
        return self._call(optax.inject_hyperparams(self.factory, self.static))

    def _call(self, factory, **more):
        if self.argument is None:
            return factory(self.threshold, **self.options, **more)
        return factory(**{self.argument: self.threshold}, **self.options, **more)


def clip_by_group_norm(max_norm, *, nonfinite="propagate", axis_name=None):
    limits = {"b": max_norm, "others": 2.0}
    return jaxclip.clip_by_group_norm(
        limits, labels, nonfinite=nonfinite, axis_name=axis_name
    )


def labels(updates):
    return jaxclip.by_path(lambda path: "b" if path == "b" else "others")(updates)


def per_example_clip(max_norm):
    """Clip batches of one, whose gradients the other rows are given."""

    def add_axis(leaf):
        return leaf if leaf.dtype == jax.dtypes.float0 else leaf[None]

    batch = optax.stateless(lambda updates, _: jax.tree.map(add_axis, updates))
    return optax.chain(batch, jaxclip.per_example_clip(max_norm, axis_name=()))


def skip_nonfinite(max_norm, *, axis_name=None):
    clip = jaxclip.clip_by_global_norm(max_norm, axis_name=axis_name)
    return jaxclip.skip_nonfinite(clip, axis_name=axis_name)


def skip_spikes(max_norm, *, window=6, axis_name=None):
    clip = jaxclip.clip_by_global_norm(max_norm, axis_name=axis_name)
    return jaxclip.skip_spikes(clip, window=window, watch="norm", axis_name=axis_name)


CASES = [
    Case(jaxclip.clip_by_global_norm, 1.0),
    Case(jaxclip.clip_by_global_norm, 1.0, {"eps": 0.0}, quick=False),
    Case(jaxclip.clip_by_global_norm, 1.0, {"norm_type": 1.0}, quick=False),
    Case(jaxclip.clip_by_global_norm, 1.0, {"norm_type": 3.0}),
    Case(jaxclip.clip_by_global_norm, 1.0, {"norm_type": float("inf")}, quick=False),
    Case(jaxclip.clip_by_global_norm, 1.0, {"per_leaf": True}, keeps_tree=True),
    Case(jaxclip.clip_by_global_norm, SCHEDULE),
    Case(jaxclip.clip_by_norm, 1.0),
    Case(jaxclip.clip_by_value, 1.0),
    Case(jaxclip.clip_by_block_rms, 0.1),
    Case(jaxclip.clip_by_update_rms, 0.1),
    Case(clip_by_group_norm, 1.0),
    Case(
        jaxclip.adaptive_grad_clip,
        1.0,
        {"axis": "flax"},
        needs_params=True,
        shards="specs",
    ),
    Case(jaxclip.clippy, 0.5, {"absolute": 0.01}, needs_params=True),
    Case(
        jaxclip.autoclip,
        50.0,
        {"window": 6},
        static=("window",),
        learns=True,
    ),
    Case(
        jaxclip.zclip, 1.0, {"warmup_steps": 5}, argument="max_grad_norm", learns=True
    ),
    Case(jaxclip.adagc, 1.0, {"warmup_steps": 5}, argument="lambda_abs", learns=True),
    Case(
        jaxclip.spam_clip,
        9.0,
        {"b2": 0.5, "warmup_steps": 2},
        learns=True,
        keeps_tree=True,
    ),
    Case(per_example_clip, 1.0, skips=True, shards=None),
    Case(skip_nonfinite, 1.0, skips=True),
    Case(
        skip_spikes,
        1.0,
        {"window": 6},
        static=("window",),
        learns=True,
        skips=True,
    ),
]

ROWS = [
    pytest.param(case, id=case.name, marks=[] if case.quick else [pytest.mark.long])
    for case in CASES
]

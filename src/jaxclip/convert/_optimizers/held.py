"""Which states of Optax's and ours hold what torch keeps, under which names."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxclip.convert._targets.tree import Path, tree_path
from jaxclip.optim.schedules import PlateauState


@dataclass(frozen=True)
class Holding:
    """What a state holds, by the names of its fields.

    Attributes:
        trees: torch's name for each tree that is like the parameters.
        vectors: torch's name for each array that has a number for each parameter.
        step: The array of the parameters' own steps.
        shared_step: The step that all of its parameters have taken.
        count: The number of updates, of which schedules are functions.
        scheduler: What torch's ReduceLROnPlateau keeps, under its names.
    """

    trees: Mapping[str, str] = field(default_factory=dict)
    vectors: Mapping[str, str] = field(default_factory=dict)
    step: str | None = None
    shared_step: str | None = None
    count: str | None = None
    scheduler: tuple[str, ...] = ()


_KNOWN = {
    optax.ScaleByAdamState: Holding(
        {"mu": "exp_avg", "nu": "exp_avg_sq"}, shared_step="count"
    ),
    optax.TraceState: Holding({"trace": "momentum_buffer"}),
    optax.ScaleByRmsState: Holding({"nu": "square_avg"}),
    optax.ScaleByRStdDevState: Holding({"mu": "grad_avg", "nu": "square_avg"}),
    optax.ScaleByRssState: Holding({"sum_of_squares": "sum"}),
    optax.ScaleByAdaDeltaState: Holding({"e_g": "square_avg", "e_x": "acc_delta"}),
    optax.ScaleByScheduleState: Holding(count="count"),
    PlateauState: Holding(
        count="count", scheduler=("lr", "best", "num_bad_epochs", "cooldown_counter")
    ),
}
"""States that hold the same as torch's do, of Optax's own and of schedules."""

_ADAMAX = Holding({"mu": "exp_avg", "nu": "exp_inf"}, shared_step="count")
"""Optax's Adamax has the state of its Adam, and another average in it."""

_RMSPROP = "the momentum of optax.rmsprop, which is of what the learning rate scaled,"

_OURS = {
    _RMSPROP: "rmsprop",
    "ScaleByAmsgradState": "adam(amsgrad=True)",
    "ScaleByRpropState": "rprop",
    "FactoredState": "adafactor",
    "MuonState": "muon",
}
"""What has torch's state where Optax's holds other numbers."""

_COUNTERS = {
    optax.InjectHyperparamsState: "count",
    optax.InjectStatefulHyperparamsState: "count",
    optax.MultiStepsState: "gradient_step",
}
"""Optax's wrappers that count updates, and hold other states."""


def holding(state: Any, *, adamax: bool = False) -> Holding | None:
    """Say what a state holds; None if it is none that holds what torch keeps.

    Args:
        state: The state.
        adamax: Whether torch's optimizer is Adamax.
    """
    if adamax and type(state) is optax.ScaleByAdamState:
        return _ADAMAX
    if type(state) in _KNOWN:
        return _KNOWN[type(state)]
    if not (is_from(state, "jaxclip.optim") and {"count", "step"} <= {*state._fields}):
        return None
    slots = {
        name: value
        for name, value in state._asdict().items()
        if name not in ("count", "step") and value is not None
    }
    vectors = {name for name, value in slots.items() if _is_array(value)}
    return Holding(
        trees={name: name for name in slots if name not in vectors},
        vectors={name: name for name in vectors},
        step=None if state.step is None else "step",
        count="count",
    )


def replaced(
    state: Any,
    replace: Callable[[Any, Holding], Any],
    count: Callable[[Any], Any],
    *,
    adamax: bool = False,
) -> Any:
    """Return a tree of states with other values in those that torch has, too.

    Args:
        state: The tree: tuples, lists and dicts of states, nested.
        replace: Makes another state of one that holds what torch keeps.
        count: Makes another count of updates of one in a wrapper.
        adamax: Whether torch's optimizer is Adamax.
    """
    if (held := holding(state, adamax=adamax)) is not None:
        return replace(state, held)

    def inner(child: Any) -> Any:
        return replaced(child, replace, count, adamax=adamax)

    if hasattr(state, "_fields"):
        fields = {name: inner(value) for name, value in state._asdict().items()}
        if (counter := _COUNTERS.get(type(state))) is not None:
            fields[counter] = count(fields[counter])
        return type(state)(**fields)
    if isinstance(state, tuple | list):
        return type(state)(map(inner, state))
    if isinstance(state, dict):
        return {key: inner(value) for key, value in state.items()}
    return state


def holders(state: Any, *, adamax: bool = False) -> Iterator[tuple[Any, Holding]]:
    """Yield each state in a tree that holds what torch keeps, or counts updates.

    Args:
        state: The tree.
        adamax: Whether torch's optimizer is Adamax.
    """
    if (held := holding(state, adamax=adamax)) is not None:
        yield state, held
        return
    if (counter := _COUNTERS.get(type(state))) is not None:
        yield state, Holding(count=counter)
    if isinstance(state, tuple | list | dict):
        for child in _children(state):
            yield from holders(child, adamax=adamax)


def strangers(state: Any) -> list[str]:
    """Say which states of optimizers hold averages of another kind.

    What clips, and what users make, is passed over: it starts anew.
    """
    return [_not_carried_over(name) for name in _strange(state)]


def _not_carried_over(name: str) -> str:
    said = f"{name} is a state that is not carried over"
    if name not in _OURS:
        return f"{said}."
    return (
        f"{said}: torch's holds other numbers, and that of jaxclip.optim.{_OURS[name]} "
        "the same."
    )


def _strange(state: Any) -> Iterator[str]:
    if holding(state) is not None or not _has_states(state):
        return
    if _scales_before_momentum(state):
        yield _RMSPROP
    of_optimizer = is_from(state, "optax") or is_from(state, "jaxclip.optim")
    if of_optimizer and any(
        _is_average(value)
        for name, value in state._asdict().items()
        # What MultiSteps has added up so far: torch has it in no checkpoint.
        if name != "acc_grads" and not _has_states(value)
    ):
        yield type(state).__name__
    for child in _children(state):
        yield from _strange(child)


def _scales_before_momentum(state: Any) -> bool:
    """Say whether a chain ends with momentum, after what has the learning rate."""
    kinds = [*map(type, state)] if type(state) is tuple else []
    averages = optax.ScaleByRmsState, optax.ScaleByRStdDevState
    return kinds[-1:] == [optax.TraceState] and any(
        kind in averages for kind in kinds[:-2]
    )


def parameter_paths(state: Any, held: Holding) -> list[Path]:
    """Return the paths of the parameters of a state, in the order of its vectors."""
    columns = [
        jax.tree_util.tree_leaves_with_path(getattr(state, name), is_leaf=_is_none)
        for name in held.trees
    ]
    # A parameter has a place in each tree, and an array in one of them at least.
    rows = zip(*columns, strict=True)
    return [
        tree_path(row[0][0]) for row in rows if any(leaf is not None for _, leaf in row)
    ]


def is_from(state: Any, package: str) -> bool:
    """Say whether a state is a named tuple that a package defines."""
    where = f"{type(state).__module__}."
    return hasattr(state, "_fields") and where.startswith(f"{package}.")


def flat(tree: Any) -> list[tuple[Path, Any]]:
    """Return the arrays in a tree like the parameters, with their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(tree_path(path), leaf) for path, leaf in leaves]


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "shape")


def _is_none(value: Any) -> bool:
    return value is None


def _is_average(value: Any) -> bool:
    """Say whether a field holds arrays of floats, beside single numbers."""
    return any(
        _is_array(leaf) and jnp.ndim(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating)
        for leaf in jax.tree.leaves(value)
    )


def _children(state: Any) -> Iterable[Any]:
    """Return what is in a tuple, a list or a dict."""
    return state.values() if isinstance(state, dict) else state


def _has_states(value: Any) -> bool:
    """Say whether a value is a state, or one of the containers that hold them."""
    if isinstance(value, optax.MaskedNode):
        return False
    if hasattr(value, "_fields"):
        return True
    if isinstance(value, tuple | list | dict):
        return any(
            map(_has_states, value.values() if isinstance(value, dict) else value)
        )
    return False

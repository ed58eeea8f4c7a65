"""What torch keeps, put into the states of a transformation."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip._arrays import to_numpy
from jaxclip.convert._arrays import to_jax
from jaxclip.convert._optimizers.factored import (
    FACTORS,
    factors_to_flax,
    not_factored,
)
from jaxclip.convert._optimizers.held import Holding, flat, parameter_paths
from jaxclip.convert._optimizers.layout import Layout
from jaxclip.convert._plan import Entry
from jaxclip.convert._targets.tree import Leaf, Path

Kept = Mapping[str, Mapping[str, Any]]
"""What torch keeps, by the parameter's name and by what torch calls it."""


def placed(array: np.ndarray, old: Any) -> jax.Array:
    """Copy an array to where the one is that it replaces, in its dtype."""
    return to_jax(array, like=old, dtype=old.dtype)


class Filling:
    """Puts what torch keeps into states.

    Args:
        layout: Which parameter is which.
        kept: What torch keeps of each parameter.
        count: The number of updates so far; None if nothing says it.
        plateau: What a ReduceLROnPlateau keeps; nothing if there is none.
        place: Makes a state's array from a NumPy array, and the one that it replaces.
    """

    def __init__(
        self,
        layout: Layout,
        kept: Kept,
        count: int | None,
        plateau: Mapping[str, Any],
        place: Callable[[np.ndarray, Any], Any] = placed,
    ) -> None:
        """Take note of what is to be used up."""
        self.layout = layout
        self.kept = kept
        self._count = count
        self._plateau = plateau
        self._place = place
        self._plateaus = 0
        self._used: set[tuple[str, str]] = set()
        self._missing: dict[str, list[str]] = {}

    def state(self, state: Any, held: Holding) -> Any:
        """Return a state with torch's values."""
        fields: dict[str, Any] = {}
        factors = [name for name in held.trees if name in FACTORS]
        if factors:
            fields |= self._factors({name: getattr(state, name) for name in factors})
        for name, key in held.trees.items():
            if name not in factors:
                fields[name] = self._tree(getattr(state, name), key)
        paths = parameter_paths(state, held)
        for name, key in held.vectors.items():
            fields[name] = self._vector(getattr(state, name), key, paths)
        if held.step is not None:
            steps = [self._step(path) for path in paths]
            fields[held.step] = jnp.asarray(steps, jnp.int32).reshape(len(steps))
        if held.shared_step is not None:
            fields[held.shared_step] = self._shared_step(paths)
        if held.count is not None:
            fields[held.count] = self.count(getattr(state, held.count))
        if held.scheduler:
            fields |= self._scheduler({n: getattr(state, n) for n in held.scheduler})
        return state._replace(**fields)

    def count(self, old: Any) -> jax.Array:
        """Return the number of updates."""
        if self._count is None:
            self.layout.problem(
                "nothing in the source counts the updates, of which schedules are "
                "functions. Pass scheduler=, or count=; where no schedule is in the "
                "transformation, count=0 will do."
            )
            return jnp.asarray(old)
        return jnp.asarray(self._count, jnp.asarray(old).dtype)

    def problems(self) -> list[str]:
        """Return all that does not fit, once the states are filled."""
        left: dict[str, list[str]] = {}
        for name, own in self.kept.items():
            for key in _kept_keys(own) - {"step"}:
                if (name, key) not in self._used:
                    left.setdefault(key, []).append(name)
        if self._plateau and not self._plateaus:
            self.layout.problem(
                "torch's scheduler is a ReduceLROnPlateau, and no state is that of "
                "jaxclip.optim.schedules.reduce_lr_on_plateau."
            )
        return [
            *self.layout.problems,
            *(_unequal("no ", key, names, "a") for key, names in self._missing.items()),
            *(_unequal("", key, left[key], "no") for key in sorted(left)),
        ]

    def _scheduler(self, old: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a ReduceLROnPlateau keeps."""
        self._plateaus += 1
        if not self._plateau:
            self.layout.problem(
                "a state is that of reduce_lr_on_plateau, and the source holds no "
                "ReduceLROnPlateau. Pass scheduler=..."
            )
            return dict(old)
        return {n: jnp.asarray(self._plateau[n], v.dtype) for n, v in old.items()}

    def _tree(self, tree: Any, key: str) -> Any:
        """Return a tree like the parameters with torch's values."""
        held = dict(flat(tree))
        made: dict[Path, Any] = {}
        for path, leaf in held.items():
            if path in made:
                continue
            made[path] = leaf
            entry = self.layout.entry(path)
            if entry is None:
                continue
            paths = self.layout.parts(entry, path, held)
            if paths is None:
                continue
            made |= self._arrays(entry, key, {path: held[path] for path in paths})
        return _like(tree, made)

    def _factors(self, trees: Mapping[str, Any]) -> dict[str, Any]:
        """Return Adafactor's averages of rows and of columns."""
        old = {name: dict(flat(tree)) for name, tree in trees.items()}
        made = {name: {**arrays} for name, arrays in old.items()}
        for path in next(iter(old.values())):
            entry = self.layout.entry(path)
            if entry is None:
                continue
            given = {k: [self._take(n, k) for n in entry.names] for k in trees}
            if not self._whole(entry, given):
                continue
            shapes = {name: arrays[path].shape for name, arrays in old.items()}
            torch = {key: tuple(map(to_numpy, own)) for key, own in given.items()}
            found = factors_to_flax(entry, torch, shapes)
            if found is None:
                self.layout.problem(not_factored(entry))
                continue
            for name, array in found.items():
                made[name][path] = self._cast(entry, name, array, old[name][path])
        return {name: _like(tree, made[name]) for name, tree in trees.items()}

    def _whole(self, entry: Entry, given: Mapping[str, list[Any]]) -> bool:
        """Say whether torch has all that there should be of an entry, or a problem."""
        for key, values in given.items():
            if any(value is None for value in values):
                if any(value is not None for value in values):
                    self.layout.problem(_apart(entry, key))
                elif any(_has(self.kept, name) for name in entry.names):
                    self._missing.setdefault(key, []).append(entry.names[0])
                return False
        return True

    def _arrays(self, entry: Entry, key: str, old: dict[Path, Any]) -> dict[Path, Any]:
        """Return the values of an entry's variables, or the old ones."""
        if any((name, key) in self._used for name in entry.names):
            self.layout.problem(
                f"two states of the transformation hold {key!r} of {entry.names[0]!r}."
            )
        values = [self._take(name, key) for name in entry.names]
        if not self._whole(entry, {key: values}):
            return old
        arrays = [to_numpy(value) for value in values]
        for (name, spec), array in zip(entry.expected.items(), arrays, strict=True):
            if array.shape != spec.shape:
                self.layout.problem(
                    f"{key!r} of {name!r} has shape {array.shape}; the parameter has "
                    f"{spec.shape}. Are param_names, or the order, right?"
                )
                return old
        fresh: dict[Path, Any] = {}
        for path, array in zip(old, entry.to_flax(*arrays), strict=True):
            fresh[path] = self._cast(entry, key, array, old[path])
        return fresh

    def _cast(self, entry: Entry, key: str, array: np.ndarray, old: Any) -> Any:
        wide = jnp.promote_types(array.dtype, old.dtype)
        if wide != old.dtype:
            self.layout.problem(
                f"{key!r} of {', '.join(map(repr, entry.names))} is {array.dtype}, "
                f"and the state of the transformation {old.dtype}. Nothing is rounded: "
                f"make the state of {wide} parameters."
            )
            return old
        return self._place(array, old)

    def _vector(self, old: Any, key: str, paths: list[Path]) -> Any:
        values = []
        for path, before in zip(paths, np.asarray(old), strict=True):
            entry = self.layout.entry(path)
            if entry is None:
                continue
            given = {
                float(value)
                for name in entry.names
                if (value := self._take(name, key)) is not None
            }
            if len(given) > 1:
                self.layout.problem(_apart(entry, key))
            values.append(given.pop() if given else before)
        # Without an entry there is a problem, and no state.
        return self._place(np.asarray(values), old)

    def _step(self, path: Path) -> int:
        """Return how many steps a variable has taken."""
        entry = self.layout.entry(path)
        if entry is None:
            return 0
        steps = set()
        for name in entry.names:
            own = self.kept.get(name, {})
            if "step" in own:
                steps.add(int(own["step"]))
            else:
                # A buffer is how torch's SGD knows a first step from others.
                steps.add(max(self._count or 0, 1) if _has(self.kept, name) else 0)
        if len(steps) > 1:
            self.layout.problem(_apart(entry, "step"))
        return max(steps)

    def _shared_step(self, paths: list[Path]) -> jax.Array:
        steps = {path: self._step(path) for path in paths}
        if len(set(steps.values())) > 1:
            first, *others = sorted(steps, key=lambda path: steps[path])
            self.layout.problem(
                f"{Leaf(first, None)} has taken {steps[first]} steps, and "
                f"{Leaf(others[-1], None)} {steps[others[-1]]}. Optax counts one for "
                "all of them; jaxclip.optim counts each."
            )
        return jnp.asarray(max(steps.values(), default=0), jnp.int32)

    def _take(self, name: str, key: str) -> Any:
        self._used.add((name, key))
        return self.kept.get(name, {}).get(key)


def _like(tree: Any, arrays: Mapping[Path, Any]) -> Any:
    """Return a tree with other arrays, by their paths."""
    leaves = [arrays[path] for path, _ in flat(tree)]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def _has(kept: Kept, name: str) -> bool:
    return bool(_kept_keys(kept.get(name, {})))


def _kept_keys(own: Mapping[str, Any]) -> set[str]:
    return {key for key, value in own.items() if value is not None}


def _apart(entry: Entry, key: str) -> str:
    return (
        f"{', '.join(map(repr, entry.names))} are one array here, {entry}, and differ "
        f"in {key!r} in torch, which cannot be joined."
    )


def _unequal(no: str, key: str, names: list[str], which: str) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return (
        f"torch keeps {no}{key!r} of {names[0]!r}{more}, and {which} state of the "
        "transformation does. Are the options the same?"
    )

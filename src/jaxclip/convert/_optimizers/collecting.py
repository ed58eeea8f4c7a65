"""What the states of a transformation hold, as torch keeps it."""

from typing import Any

import numpy as np

from jaxclip._arrays import to_numpy
from jaxclip.convert._optimizers.factored import (
    FACTORS,
    factors_to_torch,
    not_factored,
)
from jaxclip.convert._optimizers.held import Holding, flat, holders, parameter_paths
from jaxclip.convert._optimizers.layout import Layout
from jaxclip.convert._plan import Entry
from jaxclip.convert._targets.tree import Path

_STEPLESS = {"momentum_buffer"}
"""All that torch's SGD and Muon keep, which count no steps."""


class Collecting:
    """Takes what torch keeps out of states.

    Args:
        layout: Which parameter is which.
        state: The tree of states.
        adamax: Whether torch's optimizer is Adamax.

    Attributes:
        count: The number of updates so far; None if no state counts them.
        kept: Arrays by the parameter's name and by what torch calls them. ``"step"``
            is an int.
        uncounted: Names of parameters whose steps nothing counts: ``"step"`` is 1.
        plateau: What a ReduceLROnPlateau keeps.
    """

    def __init__(self, layout: Layout, state: Any, *, adamax: bool = False) -> None:
        """Take all that there is."""
        self.layout = layout
        self.kept: dict[str, dict[str, Any]] = {}
        self.plateau: dict[str, Any] = {}
        self.uncounted: set[str] = set()
        found = list(holders(state, adamax=adamax))
        self.count = self._count(found)
        for inner, held in found:
            self._state(inner, held)
            own = {name: getattr(inner, name).item() for name in held.scheduler}
            self.plateau |= own

    def _count(self, found: list[tuple[Any, Holding]]) -> int | None:
        counts = {int(getattr(s, h.count)) for s, h in found if h.count is not None}
        if len(counts) > 1:
            self.layout.problem(
                f"the states count {', '.join(map(str, sorted(counts)))} updates; "
                "torch has one scheduler for all parameter groups."
            )
        return max(counts, default=None)

    def _state(self, state: Any, held: Holding) -> None:
        arrays = {key: dict(flat(getattr(state, n))) for n, key in held.trees.items()}
        paths = parameter_paths(state, held)
        steps = dict(zip(paths, self._steps(state, held, len(paths)), strict=True))
        vectors = {
            key: dict(zip(paths, to_numpy(getattr(state, name)), strict=True))
            for name, key in held.vectors.items()
        }
        counts_steps = not {*arrays} <= _STEPLESS
        counts = held.step, held.shared_step, self.count
        is_guessed = counts_steps and all(count is None for count in counts)
        if not counts_steps:
            # That there is no buffer is how torch's SGD knows a first step.
            paths = [path for path in paths if steps[path] != 0]
        for path in paths:
            entry = self.layout.entry(path)
            if entry is None:
                continue
            numbers = {key: own[path] for key, own in vectors.items()}
            for name in entry.names:
                own = self.kept.setdefault(name, {})
                own |= {"step": steps[path]} if counts_steps else {}
                own |= numbers
                if is_guessed:
                    self.uncounted.add(name)
        factors = {key: arrays.pop(key) for key in FACTORS if key in arrays}
        if factors:
            self._factors(factors)
        for key, values in arrays.items():
            self._tree(key, {path: values[path] for path in paths if path in values})

    def _steps(self, state: Any, held: Holding, count: int) -> list[int]:
        if held.step is not None:
            return [int(step) for step in np.asarray(getattr(state, held.step))]
        if held.shared_step is not None:
            return [int(getattr(state, held.shared_step))] * count
        # Optax's states without one are of optimizers whose steps torch counts, too,
        # and does nothing with.
        return [1 if self.count is None else self.count] * count

    def _factors(self, values: dict[str, dict[Path, Any]]) -> None:
        """Take Adafactor's averages of rows and of columns."""
        for path in next(iter(values.values())):
            entry = self.layout.entry(path)
            if entry is None:
                continue
            own = {name: to_numpy(arrays[path]) for name, arrays in values.items()}
            found = factors_to_torch(entry, own)
            if found is None:
                self.layout.problem(not_factored(entry))
                continue
            for key, tensors in found.items():
                for name, tensor in zip(entry.names, tensors, strict=True):
                    self.kept.setdefault(name, {})[key] = tensor

    def _tree(self, key: str, values: dict[Path, Any]) -> None:
        done: set[Entry] = set()
        for path in values:
            entry = self.layout.entry(path)
            if entry is None or entry in done:
                continue
            done.add(entry)
            parts = self.layout.parts(entry, path, values)
            if parts is None:
                continue
            tensors = entry.to_torch(*(to_numpy(values[part]) for part in parts))
            for name, tensor in zip(entry.names, tensors, strict=True):
                self.kept.setdefault(name, {})[key] = tensor

"""The port's runs with their decisions seen, and single elements moved past a kink."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip.parity._verify._compute._deciding import Decision
from jaxclip.parity._verify._compute._evaluation import Seen
from jaxclip.parity._verify._compute._runs import Forward, Precision, Runs
from jaxclip.parity._verify._random._drawn import Drawn

Array = np.ndarray[Any, Any]

CAPACITY = 128
"""How many elements of one value can be moved."""


@dataclass(frozen=True)
class Move:
    """An element that is moved.

    Attributes:
        site: Which decision it goes into, counted from 0.
        index: Its flat index in the value that decides.
        by: What is added to it.
    """

    site: int
    index: int
    by: float


@dataclass(frozen=True)
class Site:
    """A decision of the port, as a run of it made it.

    Attributes:
        decision: The decision.
        where: Functions and files in which it is made.
        number: The number of the value that decides, in that run.
        value: The value.
        bound: What it is held against.
    """

    decision: Decision
    where: tuple[str, ...]
    number: int
    value: Array
    bound: Array | None

    @property
    def distance(self) -> Array:
        """By what each element would have to move to where it decides otherwise."""
        return self.decision.distance(self.value, self.bound)


class Watched(Runs):
    """The runs of a port, in which elements can be moved.

    Args:
        runs: The runs; what they compiled is shared.
    """

    def __init__(self, runs: Runs) -> None:
        """Move nothing yet."""
        self.__dict__.update(vars(runs))
        self._moved = jax.jit(self._with_moves, static_argnames="wide")
        self._values = jax.jit(self._with_values, static_argnames="wide")
        self._seen: dict[bool, list[Seen]] = {}
        self._active: set[int] = set()
        self._moves: Mapping[int, list[Move]] = {}

    def sites(
        self,
        variables: Any,
        batch: Mapping[str, Any],
        drawn: Drawn,
        precision: Precision,
    ) -> list[Site]:
        """Return the decisions that a run makes."""
        params, rest = self._model.split(variables)
        wide = bool(precision.wide)
        values = self._values(params, rest, dict(batch), drawn, wide=wide)
        return [
            Site(
                *(seen.decision, seen.where, seen.number),
                np.asarray(value, np.float64),
                None if bound is None else np.asarray(bound, np.float64),
            )
            for seen, (value, bound) in zip(self._seen[wide], values, strict=True)
        ]

    def watch(self, sites: Iterable[int]) -> None:
        """Say in which decisions elements will be moved."""
        self._active = {*sites}

    def moving(self, moves: Iterable[Move]) -> None:
        """Say which elements the next runs move."""
        by_site = defaultdict(list)
        for move in moves:
            by_site[move.site].append(move)
        self._moves = by_site

    def forward(
        self,
        variables: Any,
        batch: Mapping[str, Any],
        drawn: Drawn,
        precision: Precision,
    ) -> Forward:
        """Call the loss function, and differentiate it, with elements moved."""
        params, rest = self._model.split(variables)
        wide = bool(precision.wide)
        placed: dict[int, Any] = {}
        for site in sorted(self._active):
            where, by = placed.setdefault(
                self._seen[wide][site].number,
                ([], []),
            )
            where += [move.index for move in self._moves.get(site, ())]
            by += [move.by for move in self._moves.get(site, ())]
        filled = {number: _filled(*moves) for number, moves in placed.items()}
        given = params, rest, dict(batch), drawn
        found: Forward = self._moved(filled, *given, wide=wide)
        return found

    def _with_moves(self, moves: Any, *given: Any, wide: bool) -> Forward:
        traced = self.traced(*given, wide=wide)
        return self.evaluated(traced, *given, lift=wide, moves=moves)[0]

    def _with_values(self, *given: Any, wide: bool) -> Any:
        traced = self.traced(*given, wide=wide)
        _, self._seen[wide] = self.evaluated(traced, *given, lift=wide)
        return [(seen.value, seen.bound) for seen in self._seen[wide]]


def _filled(where: Sequence[int], by: Sequence[float]) -> tuple[Any, Any]:
    """Return moves in arrays of one length, whatever their number."""
    spare = CAPACITY - len(where)
    indices = np.asarray([*where, *[-1] * spare], np.int32)
    return jnp.asarray(indices), jnp.asarray(np.asarray([*by, *[0.0] * spare], "f8"))

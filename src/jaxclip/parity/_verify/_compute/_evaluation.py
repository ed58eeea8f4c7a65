"""Evaluating what JAX traced equation by equation, so that it can be changed.

In float64 throughout, whatever the traced function casts to (``lift``); and with single
elements of what it computes moved by a little (``moves``), where a comparison or a
maximum looks at them.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxclip.parity._verify._compute._deciding import Decision, decision_of
from jaxclip.parity._verify._compute._lifting import bound, lifted
from jaxclip.parity._verify._tracing._calls import Calls, Repeated
from jaxclip.parity._verify._tracing._equations import HIDING, INLINED, source_of
from jaxclip.parity._verify._tracing._inside import ASK, MARK, Axes, Question, Turns

Moves = Mapping[int, tuple[Any, Any]]
"""By the number of a value: flat indices of its elements, and what is added there."""

_DRAWING = {
    *("random_bits", "threefry2x32", "rng_bit_generator", "random_gamma"),
    *("random_seed", "random_fold_in", "random_split", "random_wrap", "random_unwrap"),
}
"""Primitives that draw random numbers, which nothing rounds."""


class Value(NamedTuple):
    """A value, and its number; what depends on constants and draws alone has none."""

    array: Any
    number: int | None = None


class Seen(NamedTuple):
    """A decision, and what it was made of.

    Attributes:
        decision: The decision.
        number: The number of the value that decides.
        value: The value; for a scan those of all iterations, stacked.
        bound: What it is held against, likewise; None if that is 0 or itself.
        where: Functions and files in which it is made, the innermost last.
    """

    decision: Decision
    number: int
    value: Any
    bound: Any
    where: tuple[str, ...]


class Marked(NamedTuple):
    """What a module returned inside of a transformation.

    Attributes:
        path: The path of the module.
        tree: The structure of what it returned.
        leaves: The arrays in it, with the axes in front.
        axes: The scans and maps around it.
    """

    path: str
    tree: Any
    leaves: list[Any]
    axes: Axes


class Evaluation:
    """One evaluation of a traced function.

    Args:
        lift: Whether all floats are float64.
        moves: What is added to elements of its values.
        answers: What was asked for inside of transformations: arrays with an axis for
            each scan and map in front.
        returned: By the number of a mark's equation, the paths of the modules that
            return there, one for each time that it is come by.

    Attributes:
        seen: The decisions that were made, in order.
        marked: What modules returned inside of transformations, in order.
    """

    def __init__(
        self,
        *,
        lift: bool = False,
        moves: Moves | None = None,
        answers: Mapping[Question, Any] | None = None,
        returned: Mapping[int, Sequence[str | None]] | None = None,
    ) -> None:
        """Start with nothing seen."""
        self._returned = {} if returned is None else returned
        self._met: Counter[int] = Counter()
        self._lift, self._moves, self._answers = lift, moves or {}, answers or {}
        self.seen: list[Seen] = []
        self.marked: list[Marked] = []
        self._count = 0
        self._blind = self._again = False
        self._passed: dict[int, int] = {}
        self._iterations: tuple[Any, ...] = ()

    def __call__(self, closed: core.ClosedJaxpr, *args: Any) -> list[Any]:
        """Evaluate it."""
        given = [self._made(self._cast(arg), None) for arg in args]
        return [
            value.array
            for value in self._run(closed.jaxpr, closed.consts, given, (), None)
        ]

    def _cast(self, array: Any) -> Any:
        return lifted(array) if self._lift else array

    def _made(self, array: Any, position: Any) -> Value:
        """Number a value, and move its elements.

        Args:
            array: The value.
            position: In which iteration of a scan it is made, or None.
        """
        number = self._count
        self._count += 1
        if number in self._moves and not self._blind:
            where, by = self._moves[number]
            local = where if position is None else where - position * array.size
            # What is out of bounds is dropped; a negative index would not be.
            local = jnp.where(local < 0, array.size, local)
            flat = array.reshape(-1).at[local].add(by.astype(array.dtype), mode="drop")
            array = flat.reshape(array.shape)
        return Value(array, number)

    def _run(
        self,
        jaxpr: core.Jaxpr,
        consts: Sequence[Any],
        given: Sequence[Value],
        where: tuple[str, ...],
        position: Any,
    ) -> list[Value]:
        known: dict[Any, Value] = {}

        def read(atom: Any) -> Value:
            if hasattr(atom, "val"):  # a literal
                return Value(self._cast(np.asarray(atom.val, atom.aval.dtype)))
            return known[atom]

        for var, const in zip(jaxpr.constvars, consts, strict=True):
            known[var] = Value(self._cast(const))
        known |= zip(jaxpr.invars, given, strict=True)
        for eqn in jaxpr.eqns:
            values = [read(atom) for atom in eqn.invars]
            made = self._equation(eqn, values, where, position)
            known |= zip(eqn.outvars, made, strict=True)
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(
        self, eqn: Any, values: list[Value], where: tuple[str, ...], position: Any
    ) -> list[Value]:
        name = eqn.primitive.name
        if name in INLINED and INLINED[name] in eqn.params:
            inner = eqn.params[INLINED[name]]
            jaxpr = getattr(inner, "jaxpr", inner)
            called = eqn.params.get("name")
            within = (*where, called) if isinstance(called, str) else where
            consts = getattr(inner, "consts", ())
            again = self._again
            # A checkpoint computes anew what its derivative needs.
            self._again = again or eqn.params.get("differentiated", False)
            made = self._run(jaxpr, consts, values, within, position)
            self._again = again
            return made
        if eqn.primitive is MARK:
            self._keep(eqn, values)
            return values
        if eqn.primitive is ASK:
            return [self._answered(eqn, values[0]), *values[1:]]
        if name == "scan":
            return self._scan(eqn, values, where, position)
        arrays = [value.array for value in values]
        if name in HIDING:
            outputs = (self._while if name == "while" else self._cond)(eqn, arrays)
        else:
            self._look(eqn, values, where)
            outputs = bound(eqn, arrays, lift=self._lift)
        if name in _DRAWING or all(value.number is None for value in values):
            return [Value(output) for output in outputs]
        made = [self._made(output, position) for output in outputs]
        if name in ("max", "min", "clamp"):
            self._pass_on(eqn, values, made)
        return made

    def _keep(self, eqn: Any, values: list[Value]) -> None:
        if self._again or self._blind:
            return
        path = self._returned[id(eqn)][self._met[id(eqn)]]
        self._met[id(eqn)] += 1
        if path is not None:
            tree, maps = eqn.params["tree"], eqn.params["mapped"]
            leaves = [value.array for value in values[: tree.num_leaves]]
            self.marked.append(Marked(path, tree, leaves, Axes(maps=maps)))

    def _answered(self, eqn: Any, drawn: Value) -> Value:
        """Return what torch drew in this iteration; the port's own if nobody knows."""
        found = self._answers.get(eqn.params["question"])
        if found is None:
            return drawn
        answer = found[self._iterations]
        return Value(self._cast(answer.astype(eqn.outvars[0].aval.dtype)))

    def _pass_on(self, eqn: Any, values: list[Value], made: list[Value]) -> None:
        """Take what passes a bound for what it was: its derivative compares the two."""
        for value, atom in zip(values, eqn.invars, strict=True):
            same = atom.aval.shape == eqn.outvars[0].aval.shape
            if same and value.number is not None and made[0].number is not None:
                self._passed[made[0].number] = value.number
                return

    def _look(self, eqn: Any, values: list[Value], where: tuple[str, ...]) -> None:
        for decision, place, against in decision_of(eqn):
            value = values[place]
            if self._blind or value.number is None:
                continue
            bounds = None if against is None else values[against].array
            source = source_of(eqn)
            names = (*where, source) if source else where
            number = value.number
            while number in self._passed:
                number = self._passed[number]
            self.seen.append(Seen(decision, number, value.array, bounds, names))

    def _scan(
        self, eqn: Any, values: list[Value], where: tuple[str, ...], position: Any
    ) -> list[Value]:
        given = eqn.params
        consts, carried = given["num_consts"], given["num_carry"]
        # A value from outside is moved there, and not anew in each iteration.
        fixed = [Value(value.array) for value in values[:consts]]
        start = [value.array for value in values[consts : consts + carried]]
        xs = [value.array for value in values[consts + carried :]]
        first, outer, outer_marked = self._count, self.seen, self.marked
        met = self._met
        iterations = self._iterations
        turns = Turns(given["length"], given["reverse"])
        inner: list[Seen] = []
        marked: list[Marked] = []

        def body(carry: Any, given_x: Any) -> Any:
            nonlocal inner, marked
            x, turn = given_x
            # A body may be traced more than once.
            self._count, self.seen, self.marked = first, [], []
            self._met = met.copy()
            self._iterations = (*iterations, turn)
            at = turn if position is None else position * given["length"] + turn
            own = [*fixed, *(self._made(array, at) for array in (*carry, *x))]
            jaxpr = given["jaxpr"]
            made = [
                v.array for v in self._run(jaxpr.jaxpr, jaxpr.consts, own, where, at)
            ]
            inner, self.seen = self.seen, outer
            marked, self.marked = self.marked, outer_marked
            self._iterations = iterations
            kept = [(seen.value, seen.bound) for seen in inner]
            leaves = [each.leaves for each in marked]
            return made[:carried], (made[carried:], kept, leaves)

        ended, (ys, kept, leaves) = jax.lax.scan(
            body,
            start,
            (xs, jnp.arange(turns.length)),
            length=given["length"],
            reverse=given["reverse"],
            unroll=given["unroll"],
        )
        self.seen = outer + [
            seen._replace(
                decision=seen.decision.repeated(),
                value=value,
                bound=None if bounds is None else _beside(value, bounds),
            )
            for seen, (value, bounds) in zip(inner, kept, strict=True)
        ]
        self.marked = outer_marked + [
            each._replace(
                leaves=stacked,
                axes=each.axes._replace(scans=(turns, *each.axes.scans)),
            )
            for each, stacked in zip(marked, leaves, strict=True)
        ]
        return [self._made(array, position) for array in (*ended, *ys)]

    def _opaque(self, closed: Any, consts: Sequence[Any] = ()) -> Callable[..., Any]:
        """Return a function that evaluates in what nothing is looked at."""

        def call(*args: Any) -> list[Any]:
            inner = Evaluation(lift=self._lift, answers=self._answers)
            inner._blind = True
            return inner(closed, *consts, *args)

        return call

    def _while(self, eqn: Any, arrays: list[Any]) -> list[Any]:
        given = eqn.params
        first, second = given["cond_nconsts"], given["body_nconsts"]
        ends = self._opaque(given["cond_jaxpr"], arrays[:first])
        body = self._opaque(given["body_jaxpr"], arrays[first : first + second])
        made: list[Any] = jax.lax.while_loop(
            lambda carry: ends(*carry)[0],
            lambda carry: body(*carry),
            arrays[first + second :],
        )
        return made

    def _cond(self, eqn: Any, arrays: list[Any]) -> list[Any]:
        index, *operands = arrays
        branches = [self._opaque(branch) for branch in eqn.params["branches"]]
        made: list[Any] = jax.lax.switch(index, branches, *operands)
        return made


def calls_of(marked: Sequence[Marked]) -> Calls:
    """Return what modules returned inside of transformations."""
    calls: Calls = {}
    for path, tree, leaves, axes in marked:
        output = jax.tree.unflatten(tree, leaves)
        known = Repeated(output, axes) if any(axes) else output
        calls.setdefault(path, []).append(known)
    return calls


def _beside(value: Any, bounds: Any) -> Any:
    """Give the bounds of all iterations the axes of the value, which they lack."""
    missing = (1,) * (value.ndim - bounds.ndim)
    return bounds.reshape(*bounds.shape[:1], *missing, *bounds.shape[1:])

"""What stands in a traced function: which modules return there, and what is asked for.

A module that holds parameters of a plain tree does not know its path. It follows from
the parameters that it is given: from where in the function they come.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.extend import core

from jaxclip.convert._targets.tree import Path
from jaxclip.parity._verify._tracing._equations import INLINED, jaxprs_of
from jaxclip.parity._verify._tracing._inside import (
    ASK,
    MARK,
    Axes,
    Name,
    Question,
    Turns,
)

Label = Path | None
"""The path of the parameter that a value is; None of what is none."""

_SAME = {"convert_element_type", "copy", "reduce_precision", "transpose"}
"""Primitives that leave a parameter what it is, for other purposes than its numbers."""


class Asked(NamedTuple):
    """A question, and where it is asked.

    Attributes:
        question: The question.
        path: The path of who asks.
        axes: The scans and maps that it is asked in.
    """

    question: Question
    path: str
    axes: Axes


class Survey:
    """What stands in a traced function.

    Args:
        jaxpr: The function.
        labels: The paths of its first arguments, which are the parameters.

    Attributes:
        returned: By the number of a mark's equation, the paths of the modules that
            return there, one for each time that it is come by.
        marked: The paths of all modules that return inside of transformations.
        asked: What is asked for, in order. Nobody knows how often that is in a branch
            or a loop, so that it is left out there, unless torch drew just once; so is
            what a checkpoint asks for anew for its derivative.
        unseen: What else is asked for.
    """

    def __init__(self, jaxpr: core.Jaxpr, labels: Sequence[Label]) -> None:
        """Walk through it."""
        self.returned: dict[int, list[str | None]] = {}
        self.marked: set[str] = set()
        self.asked: list[Asked] = []
        self._questions: dict[Question, None] = {}
        self._walk(jaxpr, labels, (), hidden=False)
        seen = {each.question for each in self.asked}
        self.unseen = [each for each in self._questions if each not in seen]

    def __bool__(self) -> bool:
        """Say whether anything stands there."""
        return bool(self.returned or self._questions)

    def _walk(
        self,
        jaxpr: core.Jaxpr,
        labels: Sequence[Label],
        scans: tuple[Turns, ...],
        *,
        hidden: bool,
    ) -> list[Label]:
        """Walk through a function that is in some scans.

        Args:
            jaxpr: The function.
            labels: The paths of its first arguments.
            scans: The scans.
            hidden: Whether nobody knows how often it is called.

        Returns:
            The paths of what it returns.
        """
        known: dict[Any, Label] = dict(zip(jaxpr.invars, labels, strict=False))

        def label_of(atom: Any) -> Label:
            return None if hasattr(atom, "val") else known.get(atom)

        for eqn in jaxpr.eqns:
            own = [label_of(atom) for atom in eqn.invars]
            made = self._equation(eqn, own, scans, hidden=hidden)
            known |= zip(eqn.outvars, made, strict=False)
        return [label_of(atom) for atom in jaxpr.outvars]

    def _equation(
        self, eqn: Any, labels: list[Label], scans: tuple[Turns, ...], *, hidden: bool
    ) -> Sequence[Label]:
        """Note what an equation says; return the paths of what it makes."""
        name, given = eqn.primitive.name, eqn.params
        if eqn.primitive is MARK:
            path = path_of(given["name"], labels)
            self.returned.setdefault(id(eqn), [])
            if path is not None:
                self.marked.add(path)
            if not hidden:
                self.returned[id(eqn)].append(path)
            return labels
        if eqn.primitive is ASK:
            self._ask(given["question"], labels, Axes(scans, given["mapped"]), hidden)
            return labels
        if name in INLINED and INLINED[name] in given:
            inner = given[INLINED[name]]
            # What a checkpoint does anew for its derivative was done before.
            if given.get("differentiated", False):
                return ()
            jaxpr = getattr(inner, "jaxpr", inner)
            return self._walk(jaxpr, labels, scans, hidden=hidden)
        if name == "scan":
            turns = Turns(given["length"], given["reverse"])
            consts, carried = given["num_consts"], given["num_carry"]
            labels[consts : consts + carried] = [None] * carried
            jaxpr = given["jaxpr"].jaxpr
            self._walk(jaxpr, labels, (*scans, turns), hidden=hidden)
            return ()
        for inner in jaxprs_of(eqn):
            # The first operand of a branch says which it is.
            own = labels[1:] if name == "cond" else ()
            self._walk(inner, own, scans, hidden=True)
        return labels if name in _SAME or name == "optimization_barrier" else ()

    def _ask(
        self, question: Question, labels: list[Label], axes: Axes, hidden: bool
    ) -> None:
        self._questions[question] = None
        path = path_of(question.path, labels)
        once = question.alone and not axes.scans
        if path is not None and (once or not hidden):
            self.asked.append(Asked(question, path, axes))


def path_of(name: Name, labels: Sequence[Label]) -> str | None:
    """Return the path of a module, or None if it is not known.

    Args:
        name: What is known of it.
        labels: The paths of what stands with it, that of its parameter last.
    """
    if isinstance(name, str):
        return name
    label, inner = labels[-1], name.parameter
    if label is None or label[len(label) - len(inner) :] != inner:
        return None
    return ".".join((*label[: len(label) - len(inner)], *name.module))

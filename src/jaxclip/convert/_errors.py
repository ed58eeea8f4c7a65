"""The one error that a conversion raises, and the hints in it."""

import difflib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

Shape = tuple[int, ...]

_FEW = 2
"""So many problems of a kind are listed one by one."""


class ConversionError(ValueError):
    """What does not fit between a source and a target, all of it at once.

    Printed, the first of several that differ in the numbers in their names alone
    stands for all of them: what is wrong with one layer is wrong with every layer.

    Args:
        problems: One sentence or two for each problem.
        hint: What to try, if there is something.

    Attributes:
        problems: As given.
        hint: As given.

    Example:
        >>> print(ConversionError(["'a' is missing.", "'b' is not used."]))
        nothing was converted; 2 problems:
          - 'a' is missing.
          - 'b' is not used.
    """

    # Where users import it from, which is what tracebacks should show.
    __module__ = "jaxclip.convert"

    def __init__(self, problems: Iterable[str], hint: str = "") -> None:
        """Keep the problems and the hint."""
        self.problems = tuple(problems)
        self.hint = hint
        super().__init__(self.problems, hint)

    def __str__(self) -> str:
        """List the problems, one to a line."""
        count = len(self.problems)
        head = f"nothing was converted; {count} problem{'s' if count > 1 else ''}:"
        listed = (f"  - {problem}" for problem in _folded(self.problems))
        return "\n".join([head, *listed, *([self.hint] if self.hint else [])])


def _folded(problems: Iterable[str]) -> list[str]:
    """Let one problem stand for those that differ from it in numbers alone."""
    alike: dict[str, list[str]] = defaultdict(list)
    for problem in problems:
        alike[_without_numbers(problem)].append(problem)
    lines = []
    for first, *others in alike.values():
        if len(others) < _FEW:
            lines += [first, *others]
        else:
            last = re.search(r"'[^']*'", others[-1])
            upto = f", to {last[0]}" if last else ""
            lines.append(f"{first} And {len(others)} more like it{upto}.")
    return lines


def _without_numbers(problem: str) -> str:
    """Leave the numbers in names out of a problem, and the hints altogether."""
    said, _, _ = problem.partition(" Nearest: ")
    return re.sub(r"'[^']*'", lambda name: re.sub(r"\d+", "#", name[0]), said)


def nearest(name: str, shapes: Iterable[Shape], candidates: Mapping[str, Shape]) -> str:
    """Name the candidates that a name may have been meant for.

    Args:
        name: The name without a partner.
        shapes: The shapes that a partner may have.
        candidates: The names and shapes to choose from.

    Returns:
        A sentence that starts with a space, or nothing where nothing is near.
    """
    by_name = difflib.get_close_matches(name, candidates, n=3, cutoff=0.6)
    wanted = set(shapes)
    same_shape = [
        other
        for other, shape in candidates.items()
        if shape in wanted and other not in by_name
    ]
    near = [
        *(f"{other!r} {candidates[other]}" for other in by_name),
        *(f"{other!r} {candidates[other]} (same shape)" for other in same_shape[:3]),
    ]
    return f" Nearest: {', '.join(near)}." if near else ""

"""The one error that a conversion raises, and the hints in it."""

import difflib
from collections.abc import Iterable, Mapping

Shape = tuple[int, ...]


class ConversionError(ValueError):
    """What does not fit between a source and a target, all of it at once.

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
        listed = (f"  - {problem}" for problem in self.problems)
        return "\n".join([head, *listed, *([self.hint] if self.hint else [])])


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

"""Functions of the path of a parameter that say what is done with it."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxclip.convert._optimizers.expressions import code_of

_TESTS: dict[str, Callable[[str, tuple[str, ...]], bool]] = {
    "path in {}": lambda path, names: path in names,
    "path.endswith({})": lambda path, names: path.endswith(names),
    "path.startswith({})": lambda path, names: path.startswith(names),
}


@dataclass(frozen=True)
class Choice:
    """A function of a path.

    Attributes:
        name: The name of the function.
        arguments: What its code takes.
        cases: What it returns, under which test, of which names.
        default: What it returns otherwise.
    """

    name: str
    arguments: str
    cases: tuple[tuple[Any, str, tuple[str, ...]], ...]
    default: Any

    def __call__(self, path: str, *_: Any) -> Any:
        """Return what is said of a path."""
        for result, test, names in self.cases:
            if _TESTS[test](path, names):
                return result
        return self.default

    @property
    def code(self) -> str:
        """The function's code."""
        lines = [f"def {self.name}({self.arguments}):"]
        for result, test, names in self.cases:
            if len(names) == 1:
                condition = test.replace(" in ", " == ").format(code_of(names[0]))
            else:
                around = len(test.format("if :"))
                condition = test.format(code_of(names, indent=4, before=around))
            lines += [f"    if {condition}:", f"        return {code_of(result)}"]
        return "\n".join([*lines, f"    return {code_of(self.default)}"])


def choose(name: str, results: Mapping[str, Any], arguments: str = "path") -> Choice:
    """Find a short function that returns these results.

    What a person would look at comes first: the parameter's own name, as where biases
    do not decay, or the part of the model that it is in.

    Args:
        name: The name of the function.
        results: What it is to return for each path.
        arguments: What its code takes, the path first.
    """
    default, *others = (result for result, _ in Counter(results.values()).most_common())
    cases = []
    for other in others:
        inside = [path for path, result in results.items() if result == other]
        outside = [path for path, result in results.items() if result != other]
        cases.append((other, *_test(inside, outside)))
    return Choice(name, arguments, tuple(cases), default)


def _test(inside: list[str], outside: list[str]) -> tuple[str, tuple[str, ...]]:
    """Find the test with the fewest names that tells paths from others."""
    found = [("path in {}", tuple(inside))]
    for test, part in (
        ("path.endswith({})", _own_name),
        ("path.startswith({})", lambda path: f"{path.partition('/')[0]}/"),
    ):
        names = tuple(sorted({part(path) for path in inside}))
        if not any(_TESTS[test](path, names) for path in outside):
            found.append((test, names))
    return min(found, key=lambda pair: len(pair[1]))


def _own_name(path: str) -> str:
    """Return how a path ends: with the name of the variable, and NNX's ``value``."""
    parts = path.split("/")
    return "/".join(["", *parts[-2:]]) if parts[-1] == "value" else f"/{parts[-1]}"

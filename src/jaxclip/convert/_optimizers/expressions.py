"""Python code that is both run and printed, so that the two are the same."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

_WIDTH = 88


@dataclass(frozen=True)
class Call:
    """A call of a function.

    Attributes:
        name: What the code calls the function.
        function: The function.
        arguments: Those that are given by their place.
        options: Those that are given by name.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self) -> Any:
        """Call the function."""
        arguments = (value_of(argument) for argument in self.arguments)
        return self.function(
            *arguments, **{name: value_of(v) for name, v in self.options.items()}
        )


@dataclass(frozen=True)
class Named:
    """Something that the code has a name for.

    Attributes:
        name: The name.
        value: What it stands for.
    """

    name: str
    value: Any


def given(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that are not at their defaults."""
    parameters = inspect.signature(function).parameters
    return {
        name: value
        for name, value in options.items()
        if value != parameters[name].default
    }


def value_of(expression: Any) -> Any:
    """Return what an expression stands for: calls, also in dicts, lists and tuples."""
    match expression:
        case Call():
            return expression()
        case Named(value=value):
            return value
        case dict():
            return {key: value_of(value) for key, value in expression.items()}
        case list() | tuple():
            return type(expression)(map(value_of, expression))
    return expression


def within(expression: Any) -> Iterator[Any]:
    """Yield an expression and all those in it."""
    yield expression
    match expression:
        case Call(arguments=arguments, options=options):
            inner = [*arguments, *options.values()]
        case dict():
            inner = [*expression.values()]
        case list() | tuple():
            inner = [*expression]
        case _:
            inner = []
    for part in inner:
        yield from within(part)


def code_of(expression: Any, indent: int = 0, before: int = 0) -> str:
    """Return the code of an expression, on as many lines as it needs.

    Args:
        expression: What `value_of` takes.
        indent: How many spaces its lines start with.
        before: How many characters stand before it, and after it, on its first line.
    """
    opening, parts, closing = _parts(expression)
    if parts is None:
        return opening
    comma = "," if isinstance(expression, tuple) and len(parts) == 1 else ""
    inside = ", ".join(label + code_of(part, -_FAR) for label, part in parts)
    line = f"{opening}{inside}{comma}{closing}"
    if indent + before + len(line) <= _WIDTH:
        return line
    inner = indent + 4
    if inner + len(inside) <= _WIDTH and not comma:
        lines = [inside]
    else:
        lines = [
            f"{label}{code_of(part, inner, len(label) + 1)}," for label, part in parts
        ]
    return "\n".join(
        [opening, *(" " * inner + line for line in lines), " " * indent + closing]
    )


_FAR = 10**6
"""So far to the left that everything fits on a line."""


def _parts(expression: Any) -> tuple[str, list[tuple[str, Any]] | None, str]:
    match expression:
        case Call(name=name, arguments=arguments, options=options):
            parts = [("", argument) for argument in arguments]
            return f"{name}(", parts + [(f"{k}=", v) for k, v in options.items()], ")"
        case Named(name=name):
            return name, None, ""
        case dict():
            return "{", [(f"{_quoted(k)}: ", v) for k, v in expression.items()], "}"
        case list():
            return "[", [("", part) for part in expression], "]"
        case tuple():
            return "(", [("", part) for part in expression], ")"
    return _quoted(expression), None, ""


def _quoted(value: Any) -> str:
    """Return the code of a value, strings in the quotes that formatters choose."""
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if isinstance(value, str) and not {'"', "\\", "'"} & {*value}:
        return f'"{value}"' if value.isprintable() else repr(value)
    return repr(value)

"""Methods that are wrapped for a while."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

Method = Callable[..., Any]


@contextmanager
def wrapped(
    types: Iterable[type], names: Iterable[str], wrap: Callable[[str, Method], Method]
) -> Iterator[None]:
    """Wrap methods of some types wherever they are defined.

    Args:
        types: The types.
        names: The names of the methods; not each type need have each.
        wrap: Makes another method, given the name and the method.
    """
    owners = {owner for each in types for owner in each.__mro__}
    kept = [
        (owner, name, vars(owner)[name])
        for owner in owners
        for name in names
        if name in vars(owner)
    ]
    for owner, name, method in kept:
        setattr(owner, name, wrap(name, method))
    try:
        yield
    finally:
        for owner, name, method in kept:
            setattr(owner, name, method)

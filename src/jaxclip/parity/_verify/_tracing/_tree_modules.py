"""What the modules in a plain tree of parameters return, as those of Equinox.

They do not know their paths, and are other objects wherever JAX puts the tree together
anew. What they return is marked, and with it goes a parameter of theirs: where that
comes from in the traced function says which module it is.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxclip.convert._targets.bare_trees import children_of
from jaxclip.convert._targets.tree import Path, tree_path
from jaxclip.parity._verify._tracing._equinox import is_state
from jaxclip.parity._verify._tracing._inside import Anchor, marked
from jaxclip.parity._verify._tracing._wrapping import Method, wrapped


class Known(NamedTuple):
    """What is known of a module: its name, and the parameter that goes with it."""

    name: Anchor
    parameter: Any


Around = Callable[[object, Known, Callable[[], Any]], Any]
"""Calls a method: it is given the module, what is known of that, and the method."""


class TreeModules:
    """The modules that are being called.

    Args:
        around: Calls their methods.
    """

    def __init__(self, around: Around) -> None:
        """Start with none."""
        self._around = around
        self._running: list[tuple[object, Known]] = []

    def call(self, module: object, method: Callable[[], Any]) -> Any:
        """Call a module, and mark what it returns.

        Args:
            module: The module.
            method: Its method, without arguments.

        Returns:
            What it returned, to be used in its place.
        """
        known = self._known(module)
        if known is None or any(module is each for each, _ in self._running):
            return method()  # super().__call__
        self._running.append((module, known))
        try:
            output = self._around(module, known, method)
        finally:
            self._running.pop()
        match output:
            case (returned, state) if is_state(state):
                return marked(known.name, returned, known.parameter), state
        return marked(known.name, output, known.parameter)

    def _known(self, module: object) -> Known | None:
        for keys, leaf in jax.tree_util.tree_leaves_with_path(module):
            if isinstance(leaf, jax.core.Tracer) and jnp.issubdtype(
                leaf.dtype, jnp.inexact
            ):
                return Known(Anchor(tree_path(keys), ()), leaf)
        # One without parameters is known by the module that it is called in.
        for outer, (name, parameter) in reversed(self._running):
            inner = _path_within(outer, module)
            if inner is not None:
                anchor = name._replace(module=(*name.module, *inner))
                return Known(anchor, parameter)
        return None


def _path_within(outer: Any, module: object) -> Path | None:
    """Return the path of a module as seen from another, if it is in that."""
    for name, child in children_of(outer).items():
        if child is module:
            return (name,)
        inner = _path_within(child, module)
        if inner is not None:
            return (name, *inner)
    return None


@contextmanager
def captured_tree(types: Iterable[type], around: Around) -> Iterator[None]:
    """Mark what modules of some types return, whose methods are wrapped meanwhile.

    Args:
        types: The types.
        around: Calls their methods.
    """
    modules = TreeModules(around)

    def wrap(_: str, method: Method) -> Method:
        @wraps(method)
        def wrapper(self: object, *args: Any, **options: Any) -> Any:
            return modules.call(self, lambda: method(self, *args, **options))

        return wrapper

    with wrapped(types, ("__call__",), wrap):
        yield

"""What the modules of a model return, kept while the model is called."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from flax import linen, nnx

from jaxclip.parity._verify._tracing._calls import Calls, Inside
from jaxclip.parity._verify._tracing._inside import marked, trace
from jaxclip.parity._verify._tracing._paths import path_of
from jaxclip.parity._verify._tracing._wrapping import wrapped

METHODS = ("__call__", "attend")
"""What returns an activation: an embedding is an output layer by its second method."""

Order = list[tuple[str, str]]
"""The path and the class of each module that returned, in the order in which it did."""


class Captured:
    """Keeps what modules return.

    Attributes:
        calls: What they returned in the trace in which this was made. In another, as
            inside of ``lax.scan`` or ``jax.checkpoint``, it is marked instead.
        order: The modules in the order in which they returned.
    """

    def __init__(self) -> None:
        """Keep nothing yet."""
        self.calls: Calls = {}
        self.order: Order = []
        self._running: set[tuple[int, str]] = set()
        self._trace = trace()

    def call(self, module: object, path: str, name: str, call: Any) -> Any:
        """Call a method of a module, and keep what it returns.

        Args:
            module: The module.
            path: Its path.
            name: The name of the method.
            call: The method, without arguments.

        Returns:
            What it returned, to be used in its place.
        """
        this = id(module), name
        if this in self._running:  # super().__call__
            return call()
        self._running.add(this)
        try:
            output = call()
        finally:
            self._running.discard(this)
        self.order.append((path, class_name(module)))
        own = self.calls.setdefault(path, [])
        if trace() == self._trace:
            own.append(output)
            return output
        own.append(Inside())
        return marked(path, output)


@contextmanager
def captured_nnx(model: nnx.Module) -> Iterator[Captured]:
    """Keep what the modules of an NNX model return, which know their paths.

    Their classes' methods are wrapped meanwhile.
    """
    captured = Captured()

    def wrap(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def wrapper(self: object, *args: Any, **options: Any) -> Any:
            path = path_of(self)
            if path is None:
                return method(self, *args, **options)
            return captured.call(
                *(self, path, name), lambda: method(self, *args, **options)
            )

        return wrapper

    types = {type(module) for _, module in nnx.iter_modules(model)}
    with wrapped(types, METHODS, wrap):
        yield captured


class CapturedLinen(Captured):
    """Keeps what the modules of a Linen model return, while that is called.

    Attributes:
        is_called: Whether it is: another that a loss function calls, as a teacher is,
            may have modules of the same paths.
    """

    is_called = False

    @contextmanager
    def of_call(self) -> Iterator[None]:
        """Say that the model is called."""
        self.is_called = True
        try:
            yield
        finally:
            self.is_called = False


@contextmanager
def captured_linen() -> Iterator[CapturedLinen]:
    """Keep what the modules of a Linen model return."""
    captured = CapturedLinen()

    def interceptor(method: Any, args: Any, options: Any, context: Any) -> Any:
        if not captured.is_called or context.method_name not in METHODS:
            return method(*args, **options)
        module = context.module
        return captured.call(
            *(module, ".".join(module.path), context.method_name),
            lambda: method(*args, **options),
        )

    with linen.intercept_methods(interceptor):
        yield captured


def class_name(thing: object) -> str:
    """Return the name of a thing's class, with the module that defines it."""
    return f"{type(thing).__module__}.{type(thing).__qualname__}"

"""What the modules of a model return, kept while the model is called."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import jax.extend
from flax import nnx
from flax.traverse_util import flatten_dict

from jaxclip.parity._verify._port._paths import Paths

METHODS = ("__call__", "attend")
"""What returns an activation: an embedding is an output layer by its second method."""

Calls = dict[str, list[Any]]
"""What a module returned, call by call, by the path that Flax lists it under."""

Order = list[tuple[str, str]]
"""The path and the class of each module that returned, in the order in which it did."""


@contextmanager
def captured_nnx(
    model: nnx.Module, order: Order | None = None
) -> Iterator[tuple[Calls, set[str]]]:
    """Keep what the modules of an NNX model return.

    Their classes' methods are wrapped meanwhile. A call in another trace than this
    one, as inside ``lax.scan`` or ``jax.checkpoint``, returns nothing that is known
    out here.

    Args:
        model: The model.
        order: What to add each module to that returns.

    Yields:
        The calls, and the paths of the modules that were called in another trace.
    """
    paths = Paths(model)
    calls: Calls = defaultdict(list)
    hidden: set[str] = set()
    running: set[tuple[int, str]] = set()
    trace = _trace()

    def wrap(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def wrapper(self: object, *args: Any, **options: Any) -> Any:
            this = id(self), name
            path = paths.of(self)
            if path is None or this in running:  # super().__call__
                return method(self, *args, **options)
            running.add(this)
            try:
                output = method(self, *args, **options)
            finally:
                running.discard(this)
            if _trace() == trace:
                calls[path].append(output)
                if order is not None:
                    order.append((path, class_name(self)))
            else:
                hidden.add(path)
            return output

        return wrapper

    kept = [
        (owner, name, vars(owner)[name])
        for owner in _owners(type(module) for _, module in nnx.iter_modules(model))
        for name in METHODS
        if name in vars(owner)
    ]
    for owner, name, method in kept:
        setattr(owner, name, wrap(name, method))
    try:
        yield calls, hidden
    finally:
        for owner, name, method in kept:
            setattr(owner, name, method)


def noting(order: Order) -> Callable[..., Any]:
    """Return what ``nn.intercept_methods`` takes to add each module that returns."""

    def interceptor(method: Any, args: Any, options: Any, context: Any) -> Any:
        output = method(*args, **options)
        if context.method_name in METHODS:
            order.append((".".join(context.module.path), class_name(context.module)))
        return output

    return interceptor


def linen_calls(intermediates: Any) -> Calls:
    """Return the calls in what Linen's ``capture_intermediates`` kept."""
    calls: Calls = defaultdict(list)
    flat = flatten_dict(intermediates)  # type: ignore[no-untyped-call]
    # Of one module, "__call__" comes before "attend".
    for path, outputs in sorted(flat.items(), key=lambda item: item[0][-1]):
        if path[-1] in METHODS:
            calls[".".join(path[:-1])] += outputs
    return dict(calls)


def class_name(thing: object) -> str:
    """Return the name of a thing's class, with the module that defines it."""
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _owners(types: Iterable[type]) -> set[type]:
    """Return the classes that may define the methods of modules of some types."""
    return {
        owner
        for each in types
        for owner in each.__mro__
        if issubclass(owner, nnx.Module)
    }


def _trace() -> Any:
    return jax.extend.core.get_opaque_trace_state(convention="flax")

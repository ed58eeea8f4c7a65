"""Which modules a call of a Linen module makes, those of compact methods among them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
from flax import linen as nn

from jaxclip.convert._targets.tree import Path

_TRANSFORMS = "flax.linen.transforms"
"""Where ``nn.remat`` and the like define classes, which call those that they wrap."""


@dataclass(frozen=True)
class Seen:
    """The modules that have been seen in a call, by their paths."""

    modules: Mapping[Path, nn.Module] = field(default_factory=dict)


def seen_in(call: Callable[..., Any], *args: Any) -> tuple[Any, Seen]:
    """Trace a call, and note the modules in it.

    Args:
        call: A function that calls a Linen module.
        *args: What it is given, of which the shapes and dtypes matter.

    Returns:
        The shapes and dtypes of what it returns, and the modules. They are those that
        were traced: their attributes can be read, and they cannot be called.
    """
    found: dict[Path, nn.Module] = {}

    def note(
        method: Callable[..., Any], inputs: Any, options: Any, context: Any
    ) -> Any:
        module = context.module
        if type(module).__module__ != _TRANSFORMS:
            found.setdefault(module.path, module)
        if isinstance(module, nn.Dropout) and context.method_name == "__call__":
            # It would want a key.
            return inputs[0] if inputs else options["inputs"]
        return method(*inputs, **options)

    with nn.intercept_methods(note):
        made = jax.eval_shape(call, *args)
    return made, Seen(found)


def seen_with(module: nn.Module, variables: Mapping[str, Any], call: Any) -> Seen:
    """Note the modules in a call of a module that has variables.

    Args:
        module: The module.
        variables: Its variables, or their shapes and dtypes.
        call: What it is called with, or a function that calls it.
    """

    def applied(variables: Any, key: jax.Array, arrays: list[Any]) -> Any:
        function = nn.apply(_caller(call, arrays), module, mutable=True)
        return function(variables, rngs={"params": key})

    with jax.enable_x64(True):  # variables may be of float64
        _, seen = seen_in(applied, variables, jax.random.key(0), _arrays(call))
    return seen


def initialized(module: nn.Module, call: Any) -> tuple[Any, Seen]:
    """Return the shapes and dtypes of a module's variables, and the modules in it.

    Args:
        module: The module.
        call: What it is called with, or a function that calls it.
    """

    def init(key: jax.Array, arrays: list[Any]) -> Any:
        return nn.init(_caller(call, arrays), module)(key)

    return seen_in(init, jax.random.key(0), _arrays(call))


def is_call(value: object) -> bool:
    """Say whether a value is a function, or what a module may be called with."""
    return callable(value) or bool(_arrays(value))


def _arrays(call: Any) -> list[Any]:
    """Return the arrays, or the shapes of arrays, that a module is called with."""
    return [] if callable(call) else [*filter(_is_array, _leaves(call))]


def _caller(call: Any, arrays: list[Any]) -> Callable[[nn.Module], Any]:
    """Return a function that calls a module, with these arrays in the others' place."""
    if callable(call):
        function: Callable[[nn.Module], Any] = call
        return function
    given = iter(arrays)
    leaves = [next(given) if _is_array(leaf) else leaf for leaf in _leaves(call)]
    inputs = jax.tree.unflatten(jax.tree.structure(_tuple(call)), leaves)
    return lambda module: module(*inputs)


def _leaves(call: Any) -> list[Any]:
    return jax.tree.leaves(_tuple(call))


def _tuple(call: Any) -> tuple[Any, ...]:
    return call if isinstance(call, tuple) else (call,)


def _is_array(leaf: object) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")

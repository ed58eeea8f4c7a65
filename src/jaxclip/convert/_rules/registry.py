"""Find the rule for a type of Flax module.

A rule is chosen by the type of a module alone, never by the name or the number of
axes of an array: a square kernel looks the same either way round. A type that Flax
defines and that has no rule here is refused.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, overload

from flax import linen as nn
from flax import nnx

from jaxclip.convert._rules import (
    activations,
    attention,
    containers,
    conv,
    dense,
    equinox,
    mirrors,
    norms,
    parametrized,
    recurrent,
)
from jaxclip.convert._rules.layouts import Layout, checked
from jaxclip.convert._rules.links import Links, Output, Rule
from jaxclip.convert._targets.tree import Callee, is_flax

L = TypeVar("L", bound=Links)

RULES: dict[type, Rule] = {
    **dense.RULES,
    **conv.RULES,
    **norms.RULES,
    **recurrent.RULES,
    **attention.RULES,
    **activations.RULES,
    **parametrized.RULES,
    **containers.RULES,
    **mirrors.RULES,
}
"""The rule for each type, and for the types that users derive from it."""

_MODULES = (nnx.Module, nn.Module)


@overload
def register(
    module_type: type,
    links: L,
    *,
    hidden: str | None = None,
    layout: Output = None,
    remedies: Mapping[str, str] | None = None,
) -> L: ...


@overload
def register(
    module_type: type,
    links: None = None,
    *,
    hidden: str | None = None,
    layout: Output = None,
    remedies: Mapping[str, str] | None = None,
) -> Callable[[L], L]: ...


def register(
    module_type: type,
    links: Any = None,
    *,
    hidden: str | None = None,
    layout: Output = None,
    remedies: Mapping[str, str] | None = None,
) -> Any:
    """Say how a type of module corresponds to a torch module.

    The rule holds for the type and for those derived from it, wherever they are in a
    model. A module of your own whose variables bear torch's names and lie as torch's
    do needs no rule. A later rule for a type takes the place of an earlier one.

    Args:
        module_type: A class of modules of NNX, of Linen or of Equinox.
        links: A function that takes a module and its own variables by name (of each
            the ``shape`` and ``dtype`` are known), and yields a ``Link`` for each
            tensor of the torch module. If left out, ``register`` is a decorator of
            that function.
        hidden: An attribute that torch's names leave out: with ``hidden="layers"``
            torch's ``0.weight`` is what Flax calls ``layers.0``.
        layout: How the output lies, for activations: one of the words and forms that
            ``WeightMap.with_layouts`` takes; or a function that takes a module and
            returns one of them, or a module inside it whose output it returns, or
            None. If left out, that is not known of the type.
        remedies: What an error is to say about a tensor, by torch's name for it, that
            the type has nowhere to put, or not in that shape.

    Returns:
        ``links``, or the decorator.

    Raises:
        TypeError: If ``module_type`` is no class of modules, or ``links`` is no
            function.
        ValueError: If ``layout`` is none.

    Example:
        A layer that scales and shifts, where torch keeps both in one tensor:

        >>> import numpy as np
        >>> from jaxclip import convert
        >>> from jaxclip.convert import Link, register
        >>> class Affine(nnx.Module):
        ...     def __init__(self, features):
        ...         self.scale = nnx.Param(np.ones(features, "f"))
        ...         self.shift = nnx.Param(np.zeros(features, "f"))
        >>> @register(Affine, layout="same")
        ... def affine(layer, variables):
        ...     yield Link(
        ...         torch=("weight",),
        ...         flax=("scale", "shift"),
        ...         to_flax=lambda weight: (weight[0], weight[1]),
        ...         to_torch=lambda *both: (np.stack(both),),
        ...     )
        >>> weight = np.array([[2.0, 3.0], [0.0, 1.0]], "f")
        >>> layer = convert.from_torch(Affine(2), {"weight": weight})
        >>> layer.shift[...]
        Array([0., 1.], dtype=float32)
        >>> convert.to_torch(layer)
        {'weight': tensor([[2., 3.],
                [0., 1.]])}

        One whose kernel lies across:

        >>> class Projection(nn.Module):
        ...     @nn.compact
        ...     def __call__(self, x):
        ...         init = nn.initializers.lecun_normal()
        ...         return x @ self.param("kernel", init, (x.shape[-1], 2))
        >>> links = register(
        ...     Projection, lambda layer, _: [convert.transposed("weight", "kernel")]
        ... )
        >>> weight = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], "f")
        >>> given = (Projection(), {"params": {"kernel": np.zeros((3, 2), "f")}})
        >>> module, variables = convert.from_torch(given, {"weight": weight})
        >>> module.apply(variables, np.ones(3, "f"))
        Array([ 6., 15.], dtype=float32)
    """
    is_module = isinstance(module_type, type) and (
        issubclass(module_type, _MODULES) or call_of(module_type) is not None
    )
    if not is_module:
        raise TypeError(
            f"module_type is {module_type!r}; it must be a class derived from "
            "flax.nnx.Module or flax.linen.Module, or one with a __call__ that JAX "
            "knows for a tree, as one derived from equinox.Module is."
        )
    if not (hidden is None or isinstance(hidden, str)):
        raise TypeError(f"hidden is {hidden!r}; it must be the name of an attribute.")
    if not (layout is None or callable(layout)):
        layout = checked(layout, "layout")

    def add(links: L) -> L:
        if not callable(links):
            raise TypeError(
                f"links is {links!r}; it must be a function that takes a module and "
                "its variables and yields a Link for each tensor."
            )
        RULES[module_type] = Rule(links, hidden, layout, remedies=dict(remedies or {}))
        return links

    return add if links is None else add(links)


def find_rule(module_type: type) -> Rule | None:
    """Return the rule of the nearest ancestor that has one or that is Flax's own.

    A class that a user derives from ``nnx.Linear`` is laid out as that is; a class
    that Flax derives from it may not be.
    """
    for ancestor in module_type.__mro__:
        if ancestor in RULES or is_flax(ancestor):
            return RULES.get(ancestor)
    return None


def callee_of(part: object) -> Callee:
    """Say what a part of a tree is that can be called, and is no module of Flax."""
    rule = find_rule(type(part))
    if rule is None:
        return Callee(part, equinox.rule_of(part), equinox.layout_of(part))
    return Callee(part, rule, output_layout(part))


def output_layout(module: object) -> Layout | None:
    """Return how the output of a module lies, if its type says so.

    A class derived from ``nnx.Conv`` is laid out as that is, unless it has a
    ``__call__`` of its own, which may do anything.
    """
    for ancestor in type(module).__mro__:
        rule = RULES.get(ancestor)
        if rule is None or rule.layout is None:
            if is_flax(ancestor):
                return None
            continue
        if not _called_as(type(module), ancestor):
            return None
        if not callable(rule.layout):
            return rule.layout
        said = rule.layout(module)
        if said is None:
            return None
        if isinstance(said, _MODULES):
            return output_layout(said)
        if callable(said):
            return callee_of(said).layout
        return checked(said, f"the layout of {type(module).__qualname__}")
    return None


def _called_as(module_type: type, ancestor: type) -> bool:
    """Say whether a type has the ``__call__`` of an ancestor."""
    return call_of(module_type) is call_of(ancestor) is not None


def call_of(module_type: type) -> object:
    """Return the ``__call__`` of a type's modules, or None if they have none."""
    # That of the metaclass, which makes a module of the type, is another.
    return next(
        (vars(t)["__call__"] for t in module_type.__mro__ if "__call__" in vars(t)),
        None,
    )


def no_rule(module_type: type) -> str:
    """Say that there is no rule for a type, and what to use in its place."""
    hint = recurrent.refusal(module_type) or (
        "Which way round its arrays lie in torch is not known here, and is not guessed."
    )
    return f"{module_type.__module__}.{module_type.__qualname__} has no rule. {hint}"

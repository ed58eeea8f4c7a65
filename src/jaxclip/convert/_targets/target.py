"""What weights go into: the forms in which users hold a Flax model."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
from flax import linen as nn
from flax import nnx
from flax.errors import TraceContextError

from jaxclip.convert._targets.bare_trees import bare_target, is_bare
from jaxclip.convert._targets.linen_calls import (
    Seen,
    initialized,
    is_call,
    seen_with,
)
from jaxclip.convert._targets.linen_models import linen_target
from jaxclip.convert._targets.nnx_models import is_weight, nnx_target
from jaxclip.convert._targets.tree import Path, Target, tree_path


def read_target(target: object) -> Target:
    """Read a model in any of its forms.

    Raises:
        TypeError: If it is none of them.
        ValueError: If it is a function that changes what was made outside of it.
    """
    match target:
        case nnx.Module():
            return nnx_target(target)
        case tuple((nnx.GraphDef() as graphdef, nnx.State() as state)):
            return _split_target(graphdef, state)
        case tuple((nnx.GraphDef(), nnx.State(), nnx.State(), *_)):
            raise TypeError(
                "target is a graphdef and several states. Make one state of them: "
                "(graphdef, nnx.merge_state(params, rest))."
            )
        case tuple((nn.Module() as module, Mapping() as variables)):
            return _pair(module, variables, Seen())
        case tuple((nn.Module() as module, Mapping() as variables, Seen() as seen)):
            return _pair(module, variables, seen)
        case tuple((nn.Module() as module, Mapping() as variables, call)) if is_call(
            call
        ):
            return _pair(module, variables, seen_with(module, variables, call))
        case tuple((nn.Module() as module, call)) if is_call(call):
            return _pair(module, *initialized(module, call))
        case nn.Module():
            given = "a Linen module without its variables"
        case {"params": Mapping()}:
            given = "what a Linen module holds, without the module"
        case nnx.State():
            raise TypeError(
                "target is an nnx.State, which has names and arrays, but not the types "
                "of the modules, which say how the arrays lie. Pass the pair that has "
                "both: (nnx.graphdef(model), state)."
            )
        case _ if is_bare(target):
            return bare_target(target)
        case _ if _is_function(target):
            return _made_target(target)
        case _:
            given = f"a {type(target).__module__}.{type(target).__qualname__}"
    raise TypeError(
        f"target is {given}; it must be an NNX module, a function that makes one, the "
        "pair (graphdef, state) of nnx.split, of a Linen module a tuple (module, "
        "variables), (module, inputs) or (module, variables, inputs), with what its "
        "init returns and what it is called with, or a tree of parameters, as nested "
        "dicts are."
    )


def _is_function(target: object) -> bool:
    # A torch module can be called, too.
    return callable(target) and not hasattr(target, "state_dict")


def _pair(module: nn.Module, variables: Mapping[str, Any], seen: Seen) -> Target:
    inner = linen_target(module, variables, seen)
    return replace(inner, filled=lambda values: (module, inner.filled(values)))


def _split_target(graphdef: Any, state: Any) -> Target:
    try:
        model = nnx.merge(graphdef, state)
    except ValueError as error:
        raise ValueError(
            "target is a pair (graphdef, state) whose parts do not fit together: "
            f"{str(error).rstrip('.')}. The state must hold every variable of the "
            "model, as nnx.state(model) does, or nnx.merge_state(params, rest)."
        ) from None
    inner = nnx_target(model)
    return replace(inner, filled=lambda values: nnx.split(inner.filled(values)))


def _made_target(make: Any) -> Target:
    """Read the model that a function makes, whose weights are never made."""
    try:
        split = jax.eval_shape(lambda: _split(make))
    except TraceContextError:
        raise ValueError(
            "target is a function that changes a variable made outside of it, such as "
            "the nnx.Rngs that it draws from; make that inside, too: "
            "lambda: Model(rngs=nnx.Rngs(0))."
        ) from None
    if split is None:
        return read_target(make())
    graphdef, weights, others = split
    model = nnx.merge(graphdef, weights, others)
    if any(isinstance(part, jax.core.Tracer) for _, part in nnx.iter_graph(model)):
        # Flax takes an array outside a variable for a constant of the module.
        return nnx_target(make())

    def filled(values: Mapping[Path, jax.Array]) -> Any:
        real = jax.tree_util.tree_map_with_path(
            lambda path, _: values[tree_path(path)], weights
        )
        # What is no weight (random streams, masks) does have to be made. The compiler
        # leaves out the weights, which are not returned.
        made = jax.jit(lambda: _split(make)[2])() if jax.tree.leaves(others) else others
        return nnx.merge(graphdef, real, made)

    return replace(nnx_target(model), filled=filled)


def _split(make: Any) -> Any:
    """Split a new NNX module; what is none, but a target, is left alone."""
    model = make()
    if isinstance(model, tuple) or is_bare(model):
        return None
    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"target is a function that returns a {type(model).__qualname__}; it must "
            "return an NNX module."
        )
    return nnx.split(model, lambda path, value: is_weight(value), ...)

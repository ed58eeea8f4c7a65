"""What every module of a model returns, in torch and in both of Flax's APIs."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from flax import linen as nn
from flax import nnx
from flax.traverse_util import flatten_dict

METHODS = ("__call__", "attend")
"""What returns an activation: an embedding is an output layer by its second method."""

Calls = dict[str, list[Any]]
"""The outputs by the path of the module, in the order of the calls."""


def torch_outputs(model: torch.nn.Module, *inputs: torch.Tensor) -> dict[str, Any]:
    """Return what each module returns, by forward hooks, for one call of each."""
    outputs: dict[str, Any] = {}

    def hook(path: str) -> Callable[..., None]:
        def keep(module: object, given: object, output: Any) -> None:
            assert path not in outputs
            outputs[path] = output

        return keep

    handles = [
        module.register_forward_hook(hook(path))
        for path, module in model.named_modules()
    ]
    with torch.no_grad():
        model(*inputs)
    for handle in handles:
        handle.remove()
    return outputs


def nnx_calls(model: nnx.Module, *inputs: Any) -> Calls:
    """Return what each module returns, its methods wrapped meanwhile."""
    paths = {
        id(module): ".".join(map(str, path))
        for path, module in nnx.iter_graph(model)
        if isinstance(module, nnx.Module)
    }
    calls: Calls = defaultdict(list)
    with _wrapped(
        {type(module) for _, module in nnx.iter_modules(model)}, paths, calls
    ):
        model(*inputs)
    return dict(calls)


@contextmanager
def _wrapped(types: set[type], paths: dict[int, str], calls: Calls) -> Iterator[None]:
    def wrap(method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def wrapper(self: object, *args: Any, **options: Any) -> Any:
            output = method(self, *args, **options)
            if id(self) in paths:
                calls[paths[id(self)]].append(output)
            return output

        return wrapper

    kept = [
        (owner, name, vars(owner)[name])
        for owner in {owner for each in types for owner in each.__mro__}
        for name in METHODS
        if issubclass(owner, nnx.Module) and name in vars(owner)
    ]
    for owner, name, method in kept:
        setattr(owner, name, wrap(method))
    try:
        yield
    finally:
        for owner, name, method in kept:
            setattr(owner, name, method)


def linen_calls(
    module: nn.Module, variables: Any, *inputs: Any, **options: Any
) -> Calls:
    """Return what each module returns, as Flax itself captures it."""
    _, captured = module.apply(
        variables,
        *inputs,
        **options,
        capture_intermediates=lambda module, method: method in METHODS,
        mutable=["intermediates"],
    )
    calls: Calls = defaultdict(list)
    flat = flatten_dict(captured["intermediates"])
    for path, outputs in sorted(flat.items(), key=lambda item: item[0][-1]):
        calls[".".join(path[:-1])] += outputs
    return dict(calls)

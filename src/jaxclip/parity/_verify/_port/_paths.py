"""The paths of an NNX model's modules, by the modules themselves."""

from typing import Any

from flax import nnx


class Paths:
    """Under which path Flax lists a module of a model.

    A view of the model (``nnx.view(model, deterministic=True)``) has modules of its
    own, with the same variables: they have the paths of the model's.

    Args:
        model: The model.
    """

    def __init__(self, model: nnx.Module) -> None:
        """List the modules."""
        self._type = type(model)
        self._paths: dict[int, str] = {}
        self._known: list[Any] = []  # so that no id is another's, later
        self._variables = {id(leaf) for leaf in _variables(model)}
        self._add(model)

    def of(self, module: Any) -> str | None:
        """Return the path of a module; None if it is not the model's."""
        path = self._paths.get(id(module))
        if path is None and type(module) is self._type and self._is_view(module):
            self._add(module)
            return self._paths[id(module)]
        return path

    def _is_view(self, model: Any) -> bool:
        own = [*_variables(model)]
        return bool(own) and all(id(leaf) in self._variables for leaf in own)

    def _add(self, model: nnx.Module) -> None:
        self._known.append(model)
        for path, module in nnx.iter_graph(model):
            if isinstance(module, nnx.Module):
                self._paths[id(module)] = ".".join(map(str, path))


def _variables(model: Any) -> Any:
    return (part for _, part in nnx.iter_graph(model) if isinstance(part, nnx.Variable))

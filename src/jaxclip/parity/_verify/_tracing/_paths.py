"""The paths of an NNX model's modules, kept in the modules themselves."""

from collections.abc import Iterator
from contextlib import contextmanager

from flax import nnx

_PATH = "_path_in_verified_model"
"""What names a module also where it is another object: in ``nnx.scan``, in a view."""


@contextmanager
def named(model: nnx.Module) -> Iterator[None]:
    """Let each module of a model know the path under which Flax lists it."""
    modules = [*nnx.iter_modules(model)]
    for path, module in modules:
        setattr(module, _PATH, ".".join(map(str, path)))
    try:
        yield
    finally:
        for _, module in modules:
            delattr(module, _PATH)


def path_of(module: object) -> str | None:
    """Return the path of a module; None if it is not the model's."""
    path: str | None = getattr(module, _PATH, None)
    return path

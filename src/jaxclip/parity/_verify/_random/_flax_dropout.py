"""Flax's own dropout, which keeps what torch's did."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
from flax import linen, nnx
from jax import lax

from jaxclip.parity._verify._random._replay import Replay
from jaxclip.parity._verify._tracing._inside import asked
from jaxclip.parity._verify._tracing._paths import path_of


@contextlib.contextmanager
def replayed_nnx(replay: Replay) -> Iterator[None]:
    """Let the dropouts of an NNX model keep what is replayed; they know their paths."""
    method = nnx.Dropout.__call__

    def call(
        self: nnx.Dropout, inputs: Any, *, deterministic: Any = None, **options: Any
    ) -> Any:
        path = path_of(self)
        if path is not None and replay.has_dropouts:
            dropped = _dropped(self, inputs, deterministic, path, replay)
            if dropped is not None:
                return dropped
        return method(self, inputs, deterministic=deterministic, **options)

    nnx.Dropout.__call__ = call  # type: ignore[method-assign]
    try:
        yield
    finally:
        nnx.Dropout.__call__ = method  # type: ignore[method-assign]


@contextlib.contextmanager
def replayed_linen(replay: Replay) -> Iterator[None]:
    """Let the dropouts of a Linen model keep what is replayed."""

    def intercept(
        method: Callable[..., Any], args: Any, options: Any, context: Any
    ) -> Any:
        module = context.module
        if isinstance(module, linen.Dropout) and context.method_name == "__call__":
            dropped = _called(module, replay, *args, **options)
            if dropped is not None:
                return dropped
        return method(*args, **options)

    with linen.intercept_methods(intercept):
        yield


def _called(
    module: linen.Dropout,
    replay: Replay,
    inputs: Any,
    deterministic: Any = None,
    rng: Any = None,
) -> Any:
    del rng
    return _dropped(module, inputs, deterministic, ".".join(module.path), replay)


def _dropped(
    module: Any, inputs: Any, deterministic: Any, path: str, replay: Replay
) -> Any:
    """Return what a dropout makes of its input; None if it is to do so itself."""
    off = module.deterministic if deterministic is None else deterministic
    if off is None or off or module.rate == 0:
        return None
    shape = [*jnp.shape(inputs)]
    for axis in module.broadcast_dims:
        shape[axis] = 1
    question = replay.question_of_flax(path, (*shape,))
    if question is not None:
        # What it is given is another in each iteration, and for each that is mapped.
        keep = asked(question, jnp.full(shape, jnp.sum(inputs) == jnp.sum(inputs)))
    else:
        keep = replay.of_flax(path, (*shape,))
    if keep is None or module.rate == 1:
        return None
    keep = jnp.broadcast_to(keep, jnp.shape(inputs))
    return lax.select(keep, inputs / (1.0 - module.rate), jnp.zeros_like(inputs))

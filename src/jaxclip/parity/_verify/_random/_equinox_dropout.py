"""Equinox's own dropout, which keeps what torch's did."""

import contextlib
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import jax

from jaxclip.parity._verify._random._replay import Replay
from jaxclip.parity._verify._tracing._equinox import is_dropout
from jaxclip.parity._verify._tracing._inside import Question, asked
from jaxclip.parity._verify._tracing._tree_modules import Around, Known


def replayed_equinox(replay: Replay) -> Around:
    """Return what lets the dropouts of a tree keep what is replayed."""

    def around(module: object, known: Known, method: Callable[[], Any]) -> Any:
        if not is_dropout(module) or not replay.has_dropouts:
            return method()
        with _asking(known):
            return method()

    return around


@contextlib.contextmanager
def _asking(known: Known) -> Iterator[None]:
    """Let ``jax.random.bernoulli``, by which a dropout draws, ask for torch's draw."""
    drawn = jax.random.bernoulli

    @wraps(drawn)
    def bernoulli(*args: Any, **options: Any) -> Any:
        keep = drawn(*args, **options)
        # Its path is known afterwards.
        question = Question("dropout", known.name, keep.shape)
        return asked(question, keep, known.parameter)

    jax.random.bernoulli = bernoulli
    try:
        yield
    finally:
        jax.random.bernoulli = drawn

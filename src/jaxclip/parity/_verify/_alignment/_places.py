"""What the arrays are called that a model and its modules return."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxclip._arrays import to_numpy
from jaxclip.parity._arrays import Array

HIDDEN = "called where nobody can look, as inside of lax.cond"
"""Why a module has no activations that could be compared."""


class Place(NamedTuple):
    """Where an array of activations comes from: ``Call``, without the type."""

    module: str
    call: int
    output: str

    def __str__(self) -> str:
        """Name the module, and the call and the part if there are several."""
        call = f", call {self.call}" if self.call else ""
        part = f", output {self.output}" if self.output else ""
        return f"{self.module}{call}{part}"


def output_name(call: int, place: str) -> str:
    """Name a part of what the model returned, and the call if it is a later one."""
    return (place or "output") + (f", call {call}" if call else "")


def flat(value: Any) -> Iterator[tuple[str, Array]]:
    """Yield the arrays of an output, with their places in it."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(value):
        keys = (jax.tree_util.keystr((key,), simple=True) for key in path)
        yield ".".join(keys), np.asarray(to_numpy(leaf))

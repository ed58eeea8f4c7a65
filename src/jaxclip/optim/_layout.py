"""Which axes of an array are those of torch's, and which arrays are no matrix."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip._core.mesh import varying_axes

OfLeaf = Callable[[str, jax.Array], Any]
"""A function of a leaf's path, such as ``"decoder/kernel"``, and of the array."""


def refuse_complex(caller: str, path: str, array: Any) -> None:
    """Refuse a complex array, as torch's optimizers of matrices do.

    Raises:
        TypeError: It is complex.
    """
    if jnp.iscomplexobj(array):
        raise TypeError(
            f"{caller}: the parameter {path!r} is of {array.dtype}; expected a real "
            "one, as torch does. Give it to another optimizer with optax.partition."
        )


def refuse_shard(caller: str, path: str, array: Any) -> None:
    """Refuse an array whose type says that it is a part of one, in ``shard_map``.

    Raises:
        ValueError: It is.
    """
    if axes := varying_axes(array):
        raise ValueError(
            f"{caller}: the parameter {path!r} varies over the mesh axes "
            f"{sorted(axes)}, so that this is a shard of it; expected the whole, as a "
            "step depends on all of it. Call update outside of shard_map, under jit: "
            "there the compiler sums over shards."
        )


def axis_within(caller: str, name: str, axis: Any, path: str, array: Any) -> int:
    """Return an axis of an array, counted from its start.

    Raises:
        ValueError: It is not one.
    """
    ndim = np.ndim(array)
    if not isinstance(axis, int) or isinstance(axis, bool):
        raise ValueError(
            f"{caller}({name}=...): got {axis!r} for {path!r}; expected an axis, a "
            "Python number. In optax.inject_hyperparams, name it in static_args."
        )
    if not -ndim <= axis < ndim:
        raise ValueError(
            f"{caller}({name}=...): got {axis} for {path!r}, an array of shape "
            f"{np.shape(array)}; expected an axis from {-ndim} to {ndim - 1}."
        )
    return axis % ndim

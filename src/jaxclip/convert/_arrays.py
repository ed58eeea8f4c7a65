"""NumPy arrays as torch and JAX arrays, bit for bit."""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip._arrays import INTEGER_OF_SIZE

if TYPE_CHECKING:
    import torch


def to_tensor(array: np.ndarray) -> "torch.Tensor":
    """Copy a NumPy array into a torch tensor.

    Raises:
        TypeError: If torch has no such dtype.
    """
    import torch

    array = np.array(array, order="C")
    dtype = getattr(torch, array.dtype.name, None)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"torch has no dtype {array.dtype.name}.")
    # torch takes none of the types that ml_dtypes adds to NumPy's own.
    if array.dtype.isbuiltin != 1:
        return torch.from_numpy(array.view(INTEGER_OF_SIZE[array.itemsize])).view(dtype)
    return torch.from_numpy(array)


def to_jax(array: np.ndarray, *, like: Any = None, dtype: Any = None) -> jax.Array:
    """Copy a NumPy array to where ``like`` is.

    Args:
        array: The values.
        like: The array that they replace, or its shape, dtype and sharding.
        dtype: What to cast them to; by default their dtype is kept.
    """
    # float64 stays float64 although the caller may not have enabled it here.
    with jax.enable_x64(True):
        # Copied by NumPy: JAX copies later, when the caller may have changed it.
        fresh = jnp.asarray(np.array(array, dtype=dtype, order="C"))
        if getattr(like, "committed", True) and getattr(like, "sharding", None):
            fresh = jax.device_put(fresh, like.sharding)
    return fresh

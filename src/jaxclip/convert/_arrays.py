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
    values = array if dtype is None else array.astype(dtype, copy=False)
    # An array that is on no device by choice stays free to go to another.
    chosen = getattr(like, "committed", True)
    place = getattr(like, "sharding", None) if chosen else None
    # float64 stays float64 although the caller may not have enabled it here.
    with jax.enable_x64(True):
        # XLA lays out a view, a transposed one say, much faster than NumPy does.
        fresh: jax.Array = jax.device_put(values)
        if _is_shared(fresh, values):
            fresh = jnp.array(fresh)
        if place is not None:
            fresh = jax.device_put(fresh, place)
    # It copies later, when the caller may have changed the values.
    return fresh.block_until_ready()


def _is_shared(array: jax.Array, values: np.ndarray) -> bool:
    """Say whether XLA took the memory as it is, as it may on the CPU."""
    (device,) = array.devices()
    if device.platform != "cpu" or array.nbytes == 0:
        return False
    return bool(array.unsafe_buffer_pointer() == values.ctypes.data)

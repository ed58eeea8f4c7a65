"""Arrays of torch, NumPy and JAX as NumPy arrays, bit for bit."""

import sys
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    import torch

INTEGER_OF_SIZE = {1: "uint8", 2: "int16"}
"""Integer types that carry the bits of the float types that NumPy itself lacks."""


def to_numpy(value: object) -> np.ndarray:
    """Read a torch tensor or an array of any kind; its memory may be shared.

    Raises:
        TypeError: If it is nothing of the kind, or has no dense values; the message
            is the rest of a sentence that starts with its name.
    """
    # Whoever holds a tensor has imported torch; nobody else has to.
    torch = sys.modules.get("torch")
    try:
        if torch is not None and isinstance(value, torch.Tensor):
            return _from_tensor(value)
        if hasattr(value, "__array__"):
            return np.asarray(value)
    except (NotImplementedError, RuntimeError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise TypeError(f"cannot be read as a dense array: {reason}") from None
    raise TypeError(f"is a {type(value).__name__}, not a tensor or an array.")


def _from_tensor(tensor: "torch.Tensor") -> np.ndarray:
    import torch

    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype != "bfloat16" and not dtype.startswith("float8"):
        return tensor.numpy()
    bits = tensor.view(getattr(torch, INTEGER_OF_SIZE[tensor.itemsize])).numpy()
    return bits.view(jnp.dtype(dtype))

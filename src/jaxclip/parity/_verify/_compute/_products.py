"""How products of float32 are computed: in full precision, or in less.

On a GPU, JAX multiplies matrices of float32 in TF32 unless it is told otherwise, with
10 bits of mantissa; on a TPU in bfloat16. torch multiplies them in full, and leaves
cuDNN, which does its convolutions and recurrent layers, to TF32. In so few bits a
correct port would be blamed for the digits that it loses, and against a torch in as few
the noise would hide mistakes; so the port is computed in full where the user asks for
nothing.
"""

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

import jax
import numpy as np

from jaxclip.parity._trace._records import Run

_COARSE = {"gpu": "TF32, of 10 bits", "tpu": "bfloat16, of 7 bits"}
"""What float32 is multiplied in by default, by the platform."""

_FULL = ("highest", "float32", "f32_f32_f32")

_RNN = ("rnn.RNN", "rnn.GRU", "rnn.LSTM")


def _asked() -> str | None:
    """Return the precision that the user asks for; None if none."""
    asked: str | None = jax.config.values["jax_default_matmul_precision"]
    return asked


@contextlib.contextmanager
def full_products() -> Iterator[None]:
    """Multiply float32 in full precision, unless the user asks for another.

    A ``precision=`` that a product or a layer is given holds as it is.
    """
    if _asked() is not None:
        yield
        return
    with jax.default_matmul_precision("highest"):
        yield


def notes(run: Run, computed: Collection[np.dtype[Any]]) -> Iterator[str]:
    """Say on which side products of float32 are less than that.

    Args:
        run: What holds for the recorded run.
        computed: The dtypes in which the port computes.
    """
    if np.dtype(np.float32) in computed:
        yield from _of_port(jax.default_backend())
    if "float32" in run.dtypes:
        yield from _of_jax(run) if run.framework == "jax" else _of_torch(run)


def _of_port(platform: str) -> Iterator[str]:
    if platform not in _COARSE:
        return
    asked, coarse = _asked(), _COARSE[platform]
    if asked is None:
        yield (
            "Products and convolutions of float32 were computed in full precision, as "
            f"torch's products are by default. JAX's default on a {platform.upper()} "
            f"is {coarse}: to train as torch does, call "
            'jax.config.update("jax_default_matmul_precision", "highest").'
        )
    elif asked.lower() not in _FULL:
        yield (
            "Products and convolutions of float32 were computed as "
            f"jax_default_matmul_precision={asked!r} says. If that is in fewer bits "
            'than torch\'s, the port loses digits that torch keeps; "highest" keeps '
            "them."
        )


def _of_jax(run: Run) -> Iterator[str]:
    platform = run.settings.get("device", "").partition(",")[0]
    asked = run.settings.get("matmul_precision", "None")
    if platform in _COARSE and asked.lower() not in _FULL:
        yield (
            "The recorded run may have computed products of float32 in "
            f"{_COARSE[platform]}, as JAX does on a {platform.upper()} with "
            f"jax_default_matmul_precision={asked}; it is then the inaccurate side. "
            'Record it under jax.default_matmul_precision("highest").'
        )


def _of_torch(run: Run) -> Iterator[str]:
    settings = run.settings
    if "cuda" not in settings.get("device", ""):
        return
    products = settings.get("float32_matmul_precision", "highest")
    if products != "highest":
        yield (
            "torch computed products of float32 in TF32 or less (its "
            f"float32_matmul_precision was {products!r}), and is the inaccurate side. "
            'Record it with torch.set_float32_matmul_precision("highest").'
        )
    layers = [
        module.path or "the model"
        for module in run.modules
        if (kind := _kind(module.type)) and kind in settings.get("cudnn_tf32", "")
    ]
    if layers:
        yield (
            f"torch computed {', '.join(layers)} in TF32, cuDNN's default on CUDA, and "
            "is the inaccurate side. Record it with torch.backends.cudnn.allow_tf32 = "
            "False."
        )


def _kind(layer: str) -> str:
    """Return which part of cuDNN computes a layer of torch's; "" if none does."""
    if ".conv." in layer:
        return "conv"
    return "rnn" if layer.endswith(_RNN) else ""

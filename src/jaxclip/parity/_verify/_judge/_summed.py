"""How inexact a gradient is that torch adds up one position after another."""

import math

import numpy as np

from jaxclip.parity._arrays import Array
from jaxclip.parity._trace._records import Run
from jaxclip.parity._trace._step import Activation, Step

_ONE_BY_ONE = "torch.nn.modules.conv.", "torch.nn.modules.normalization."
"""What adds the gradient of a weight up so on a CPU; products of matrices are not."""

_RANDOM, _ALIKE = 0.1, 0.1
"""How many ulps a sum of n terms is off, over the root of n and over n.

Measured of torch 2.13: 0.08 to 0.13 over the root for convolutions of 2e3 to 2e6
positions, and 0.10 for LayerNorm, where terms are random; and up to 0.07 over n for the
bias of a convolution whose terms are equal, as they are behind a mean over positions.
XLA adds parts of it up first, and its own noise says nothing of that.
"""


def grain_of_sum(name: str, gradient: Array, step: Step, run: Run) -> Array | None:
    """Return to what the elements of a gradient are rounded; None if no sum is so long.

    Args:
        name: The name of the parameter.
        gradient: Its gradient as the port computes it in float64.
        step: The recorded step, for how large the outputs of modules are.
        run: What holds for the recorded run.
    """
    param = step.params.get(name)
    if param is None or not param.size or not param.ndim:
        return None
    modules = {each.rpartition(".")[0] for each in (name, *run.tied.get(name, ()))}
    sizes = (
        _size(each)
        for each in step.activations
        if each.module in modules and each.type.startswith(_ONE_BY_ONE)
    )
    terms = sum(sizes) / param.shape[0]
    if not terms:
        return None
    # The terms of a bias are what is behind it, and no products with what is before.
    ulps = _ALIKE * terms if param.ndim == 1 else _RANDOM * math.sqrt(terms)
    # What is in fewer bits is added up in float32.
    exact = np.float64 if param.dtype == np.float64 else np.float32
    grain: Array = ulps * np.finfo(exact).eps * np.abs(gradient)
    return grain


def _size(activation: Activation) -> int:
    held = activation.stored or activation.digest
    return math.prod(held.shape) if held is not None else 0

"""A Linear that is given its images flattened in the other order."""

import math
from collections.abc import Iterable

import numpy as np

from jaxclip.parity._arrays import Array, widened
from jaxclip.parity._sizes import l2
from jaxclip.parity._trace._step import Activation, Step

_LINEAR = "torch.nn.modules.linear.Linear"

_FEW = 1e-3
"""How far the port may be from what the other order gives: it has other inputs."""


@np.errstate(all="ignore")  # it is for the report to speak of what overflows
def flattened_otherwise(step: Step, linear: Activation, port: Array) -> str:
    """Say that the port flattens images with channels last, if that is what differs.

    The images are what a module returned before, or relu of it.

    Args:
        step: The recorded step.
        linear: What one of its modules returned.
        port: What the port's returned.

    Returns:
        What to do, or nothing.
    """
    weight = step.params.get(f"{linear.module}.weight")
    if linear.type != _LINEAR or weight is None or port.ndim != 2:
        return ""
    images = _images_before(step.activations, linear, weight.shape[-1])
    if images is None:
        return ""
    turned = np.moveaxis(widened(images), 1, -1).reshape(len(images), -1)
    bias = step.params.get(f"{linear.module}.bias", np.zeros(()))
    for inputs in (turned, np.maximum(turned, 0)):
        made = inputs @ widened(weight).T + widened(bias)
        if made.shape == port.shape and l2(made - port) <= _FEW * l2(widened(port)):
            shape = ", ".join(map(str, images.shape[1:]))
            return (
                f"the port flattens ({shape}) with its channels last, and has torch's "
                f"weight: say so in flatten=, as {{'fc': ({shape})}} does of 'fc'"
            )
    return ""


def _images_before(
    activations: Iterable[Activation], linear: Activation, size: int
) -> Array | None:
    """Return the last images of some size that were returned before a module."""
    found = None
    for each in activations:
        if each is linear:
            break
        if each.stored is None or len(each.stored.shape) < 3:
            continue
        _, _, *spatial = shape = each.stored.shape
        if math.prod(shape[1:]) == size and math.prod(spatial) > 1:
            found = each
    return None if found is None else found.array

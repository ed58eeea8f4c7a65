"""A batch normalisation whose running variance is Flax's and not torch's."""

import numpy as np

from jaxclip.parity._arrays import Array, widened
from jaxclip.parity._sizes import l2

_FEW = 1e-2
"""How much of a step may be left: the difference has few digits, being small."""

_ENOUGH = 3
"""Of fewer channels, two numbers are always fitted."""


def is_biased(before: Array, torch: Array, port: Array) -> bool:
    """Say whether a running variance is that of torch, but for the bias.

    torch's moves by ``momentum * (n / (n - 1) * variance - before)``, where the
    variance is that of ``n`` elements, and Flax's without the factor. So the step of
    Flax's is ``(n - 1) * (torch - port) - momentum * before``, for one ``n`` and one
    momentum of all channels.

    Args:
        before: The running variance before the step.
        torch: torch's after it.
        port: The port's.

    Example:
        >>> before, variance = np.asarray([1.0, 1, 2]), np.asarray([0.5, 2, 4])
        >>> torch = 0.9 * before + 0.1 * variance * 32 / 31
        >>> is_biased(before, torch, 0.9 * before + 0.1 * variance)
        True
        >>> is_biased(before, torch, 0.8 * before + 0.2 * variance * 32 / 31)
        False
    """
    before, torch, port = map(widened, (before, torch, port))
    if before.size < _ENOUGH or not before.shape == torch.shape == port.shape:
        return False
    step, terms = port - before, np.stack([torch - port, -before], axis=1)
    if not (np.isfinite(step).all() and np.isfinite(terms).all()):
        return False
    fitted, *_ = np.linalg.lstsq(terms, step, rcond=None)
    others, momentum = fitted
    explained = l2(step - terms @ fitted) <= _FEW * l2(step)
    return bool(explained and others > 0.5 and 0 < momentum <= 1 + _FEW)

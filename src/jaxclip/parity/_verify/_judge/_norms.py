"""A total norm in which torch, and not the port, is the inaccurate side."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxclip.parity._sizes import l2
from jaxclip.parity._verify._compute._known import Known
from jaxclip.parity._verify._report._results import StageResult
from jaxclip.parity._verify._report._words import TORCH, Words

Array = np.ndarray[Any, Any]
Grads = Mapping[str, Array | Known]

_ROUNDING = 16.0
"""In ulps: what may be wrong with a norm that nobody calls inaccurate."""

_LOST = 1e-2
"""A norm that is further off is another norm, and not the same one with rounding."""

_BETTER = 100.0
"""How many times nearer than torch the port is."""

_BETTER_OF_ITS_OWN = 3.0
"""The same where the port's norm is that of its own gradients, which are rounded."""


def true_norm(grads: Grads) -> float:
    """Return the L2 norm of all gradients, added up in float64."""
    norms = [
        grad.l2 if isinstance(grad, Known) else l2(grad.astype(np.float64))
        for grad in grads.values()
        if isinstance(grad, Known) or grad.size
    ]
    return l2(np.asarray(norms)) if norms else 0.0


def inaccuracy(recorded: Array, port: Array | None, grads: Grads) -> float:
    """Return how many times the true norm torch's is, if torch is to blame; else 1.

    torch's float32 norm on a CPU is off by 7e-7 at 1e5 elements, by 1e-5 at 1e6 and
    by 4e-4 at 1e7. Whether it is shows in torch's own gradients, without the port.

    Args:
        recorded: The norm that torch took.
        port: The norm that the port took of torch's gradients, in float64; of its own
            where digests of torch's were recorded.
        grads: torch's gradients, or what is known of them.

    Example:
        >>> grads = {"w": np.asarray([3.0, 4.0])}
        >>> round(inaccuracy(np.float32(5.001), np.float64(5.0), grads), 6)
        1.0002
        >>> inaccuracy(np.float32(5.001), np.float64(5.001), grads)
        1.0
    """
    true = true_norm(grads)
    if port is None or not 0 < true < np.inf:
        return 1.0
    of_torch = abs(float(recorded) / true - 1)
    of_port = abs(float(port) / true - 1)
    least = _ROUNDING * float(jnp.finfo(recorded.dtype).eps)
    own = any(isinstance(grad, Known) for grad in grads.values())
    better = _BETTER_OF_ITS_OWN if own else _BETTER
    if least < of_torch < _LOST and of_port * better < of_torch:
        return float(recorded) / true
    return 1.0


def explained(
    result: StageResult,
    recorded: Array,
    port: Array,
    grads: Grads,
    words: Words = TORCH,
) -> StageResult:
    """Let a norm pass in which torch is the inaccurate side, and say so."""
    share = inaccuracy(recorded, port, grads)
    if share == 1.0:
        return result
    note = (
        f"{words.recorded} is the inaccurate side: its norm is "
        f"{abs(share - 1):.2g} of itself "
        "from that of its own gradients, added up in float64; the port's is nearer"
    )
    tensors = tuple(
        dataclasses.replace(tensor, passed=True, detail=note)
        for tensor in result.tensors
    )
    return dataclasses.replace(result, tensors=tensors, notes=(*result.notes, note))

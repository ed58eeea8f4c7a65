"""How arrays changed: by a factor, by a share of the parameters, or otherwise."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxclip.parity._torch._tensors import Array


class Change(NamedTuple):
    """How arrays changed.

    Attributes:
        how: ``"scaled"`` if each became ``factor`` times what it was, ``"decayed"``
            if ``factor`` times its parameter was added to it, else ``"other"``.
        factor: The factor; None for ``"other"``.
    """

    how: str
    factor: float | None


def dot(a: Array, b: Array) -> float:
    """Return the sum of products, as a number."""
    return float(a @ b)


def change(triples: Iterable[tuple[Array, Array, Array]]) -> Change:
    r"""Find out how arrays changed together.

    With :math:`d` the change of all arrays laid end to end, and :math:`u` what they
    were or the parameters, :math:`d = c u` for one :math:`c` if the rest of the
    projection of :math:`d` on :math:`u` is rounding.

    Args:
        triples: ``(before, after, parameter)`` for each array that changed.

    Example:
        >>> before, param = np.float32([1, 2]), np.float32([4, -1])
        >>> change([(before, before / 2, param)])
        Change(how='scaled', factor=0.5)
        >>> change([(before, before + param / 4, param)])
        Change(how='decayed', factor=0.25)
    """
    # Of the changes with themselves, with what was there, and with the parameters.
    dd = db = bb = dp = pp = noise = 0.0
    for before, after, param in triples:
        b, a, p = (x.astype(np.float64).ravel() for x in (before, after, param))
        d = a - b
        dd, db, bb = dd + dot(d, d), db + dot(d, b), bb + dot(b, b)
        dp, pp = dp + dot(d, p), pp + dot(p, p)
        eps = float(jnp.finfo(after.dtype).eps)
        noise += eps**2 * max(dot(a, a), dot(b, b))
    # A change that is mostly rounding says nothing of where it came from.
    if not math.isfinite(dd) or dd <= (_SIGNAL**2) * noise:
        return Change("other", None)
    for how, along, length in (("scaled", db, bb), ("decayed", dp, pp)):
        if length == 0:
            continue
        rest = dd - along**2 / length
        if rest <= noise + (_TOLERANCE**2) * dd:
            return Change(how, along / length + (how == "scaled"))
    return Change("other", None)


_SIGNAL = 8.0
"""So many times its rounding must a change be, for its direction to be known."""

_TOLERANCE = 1e-3
"""So much of a change, by its norm, may point elsewhere: a low-precision copy does."""

"""How far two runs are apart."""

import numpy as np

from jaxclip.demo._history import Array


def relative_difference(a: Array, b: Array) -> Array:
    """Return ``|a - b| / |b|`` for each element, in float64; 0 where both are 0."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(all="ignore"):  # NaN and infinity are for the caller to show
        return np.where(a == b, 0.0, np.abs(a - b) / np.abs(b))


def distance(a: Array, b: Array) -> float:
    """Return ``‖a - b‖ / ‖b‖``, in float64; 0 where both are 0."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(all="ignore"):
        apart = np.linalg.norm(a - b)
        return float(apart / np.linalg.norm(b)) if apart else 0.0

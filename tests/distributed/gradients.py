"""The gradients that two processes clip, in JAX and in torch."""

import numpy as np

MAX_NORM = 1.0

_RNG = np.random.default_rng(20)
GRADS = {
    name: _RNG.standard_normal(shape, np.float32)
    for name, shape in {"w": (16, 5), "v": (3, 8), "b": (7,)}.items()
}

"""How gradients changed is told from their values."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.parity._torch._changes import change

RNG = np.random.default_rng(0)
GRAD, PARAM, NOISE = RNG.standard_normal((3, 1000)).astype("f")


def one(after, dtype="float32", before=GRAD, param=PARAM):
    return change([tuple(x.astype(dtype) for x in (before, after, param))])


@pytest.mark.parametrize("dtype", ["float32", "float16", jnp.bfloat16, "float64"])
def test_a_factor_and_a_decay_are_told_apart(dtype):
    scaled, decayed = one(GRAD * 0.3, dtype), one(GRAD + 0.1 * PARAM, dtype)
    assert (scaled.how, decayed.how) == ("scaled", "decayed")
    assert scaled.factor == pytest.approx(0.3, rel=1e-2)
    assert decayed.factor == pytest.approx(0.1, rel=2e-2)


@pytest.mark.parametrize(
    "after",
    [
        GRAD + 0.1 * NOISE,
        # Decay of a quarter, and a twentieth of something else.
        GRAD + 0.25 * PARAM + 0.0125 * NOISE,
        np.clip(GRAD, -1, 1),
        # The last bits alone, of which every direction could be made.
        np.nextafter(GRAD, np.float32(9)),
        -0.0 * GRAD,
        np.where(GRAD > 2, np.nan, GRAD),
    ],
    ids=["noise", "mixed", "clamped", "rounding", "zeroed", "nan"],
)
def test_other_changes_are_neither(after):
    before = 0.0 * GRAD if not after.any() else GRAD
    assert one(after, before=before).how == "other"


def test_one_factor_must_fit_all_arrays():
    alike = [(GRAD, GRAD * 0.5, PARAM), (NOISE, NOISE * 0.5, PARAM)]
    apart = [(GRAD, GRAD * 0.5, PARAM), (NOISE, NOISE * 0.9, PARAM)]
    assert change(alike) == ("scaled", pytest.approx(0.5))
    assert change(apart).how == "other"

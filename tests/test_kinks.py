"""At a kink torch and JAX choose other derivatives, and the README says which."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.convert.layers.harness import normal
from tests.kinks import KINKS, gradient

DIFFERENT = [kink for kink in KINKS if kink.as_torch]
ALIKE = [kink for kink in KINKS if not kink.as_torch]

# What each gives, so that a release that changes its mind turns this red.
GRADIENTS = {
    "torch.abs(x)": ([0.0], [1.0]),
    "x.clamp(-1, 1)": ([1.0], [0.5]),
    "torch.nn.functional.hardtanh(x)": ([0.0], [1.0]),
    "torch.nn.functional.leaky_relu(x)": ([0.01], [1.0]),
    "torch.linalg.norm(x)": ([0.0, 0.0], [np.nan, np.nan]),
    "torch.nn.functional.normalize(x, dim=0)": ([1e12, 1e12], [np.nan, np.nan]),
    "x.std()": ([0.0, 0.0], [np.nan, np.nan]),
    "x.max(dim=0).values": ([1.0, 0.0], [0.5, 0.5]),
}


@pytest.mark.parametrize(
    "kink", DIFFERENT, ids=lambda kink: f"{kink.torch}@{kink.point}"
)
def test_the_two_differ_and_there_is_a_way_to_have_torchs(kink):
    torchs, jaxs = GRADIENTS[kink.torch]
    np.testing.assert_allclose(kink.gradient("torch"), torchs)
    np.testing.assert_allclose(kink.gradient("jax"), jaxs)
    np.testing.assert_allclose(kink.gradient("as_torch"), torchs)


@pytest.mark.parametrize("kink", ALIKE, ids=lambda kink: f"{kink.torch}@{kink.point}")
def test_the_two_agree(kink):
    np.testing.assert_array_equal(kink.gradient("jax"), kink.gradient("torch"))


@pytest.mark.parametrize(
    ("kink", "side"),
    [*((kink, "jax") for kink in KINKS), *((kink, "as_torch") for kink in DIFFERENT)],
    ids=lambda value: value if isinstance(value, str) else f"{value.jax}@{value.point}",
)
def test_beside_the_kink_all_are_one_function(kink, side):
    theirs, ours = kink.function("torch"), kink.function(side)
    for seed in range(5):
        # On both sides of it; a root has only one.
        offset = np.ravel(normal(*np.shape(kink.point) or (1,), seed=seed))
        x = np.ravel(kink.point) + (abs(offset) if "sqrt" in kink.jax else offset)
        with jax.enable_x64(True):
            value = np.asarray(ours(jnp.asarray(x)))
        np.testing.assert_allclose(value, theirs(torch.tensor(x)).numpy(), rtol=1e-12)
        # torch's hardsigmoid has a sixth of float32 for its slope, in float64 too.
        np.testing.assert_allclose(
            gradient(ours, side, x), gradient(theirs, "torch", x), rtol=5e-8, atol=1e-12
        )

"""What every test shares."""

import gc
from collections.abc import Iterator

import hypothesis
import jax
import pytest
import torch

from tests.trios import BY_NAME, Trio

# On few cores torch's idle threads spin, and take the time of everything else.
torch.set_num_threads(1)

# JAX keeps what it traced, and to look through all of it for cycles takes a while.
gc.set_threshold(50_000, 20, 50)

# The same examples on every run; no deadline, as the first call compiles.
hypothesis.settings.register_profile("jaxclip", derandomize=True, deadline=None)
hypothesis.settings.load_profile("jaxclip")


@pytest.fixture(params=BY_NAME)
def trio(request: pytest.FixtureRequest) -> Trio:
    """Each model three times over: torch's, the NNX one, and the Linen one."""
    return BY_NAME[request.param]


@pytest.fixture
def quick_compilation() -> Iterator[None]:
    """Halve the time to compile; the results are rounded like any others."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)

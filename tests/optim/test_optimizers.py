"""Every optimizer steps as torch's does, in float64 to rounding."""

import jax
import numpy as np
import pytest
import torch

from tests.optim.against_torch import (
    apart,
    error,
    gradients,
    parameters,
    run_ours,
    run_ours_with_absent,
    run_torch,
)
from tests.optim.pairs import PAIRS


@pytest.mark.parametrize("pair", PAIRS)
def test_float64_is_torchs(pair):
    params, grads = parameters(), gradients()
    expected, _ = run_torch(pair, params, grads)
    with jax.enable_x64(True):
        history, _ = run_ours(pair, params, grads)
    for name, distance in apart(history, expected).items():
        assert distance.max() < 1e-12, name


@pytest.mark.parametrize("pair", PAIRS)
def test_float32_is_as_near_to_float64_as_torchs(pair):
    params, grads = parameters(), gradients()
    truth, _ = run_torch(pair, params, grads)
    theirs, _ = run_torch(pair, params, grads, torch.float32)
    ours, _ = run_ours(pair, params, grads, np.float32)
    assert error(ours, truth) <= 2 * error(theirs, truth)


def absent(name, step):
    """Say when a gradient is absent: the bias's at first, the kernel's at times."""
    return (name == "bias" and step < 3) or (name == "kernel" and step % 3 == 1)


@pytest.mark.parametrize("pair", PAIRS)
def test_a_parameter_without_a_gradient_stays_as_it_is(pair):
    params, grads = parameters(), gradients(steps=8)
    expected, _ = run_torch(pair, params, grads, absent=absent)
    with jax.enable_x64(True):
        history, _ = run_ours_with_absent(pair, params, grads, absent)
    for name, distance in apart(history, expected).items():
        assert distance.max() < 1e-12, name

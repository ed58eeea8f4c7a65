"""Every optimizer steps as torch's does, in float64 to rounding."""

import jax
import numpy as np
import pytest
import torch

from jaxclip import optim
from tests.optim.against_torch import (
    apart,
    error,
    gradients,
    parameters,
    run_ours,
    run_ours_with_absent,
    run_torch,
)
from tests.optim.pairs import ALL, LAST, PAIRS, rows


@pytest.mark.parametrize("pair", PAIRS)
def test_float64_is_torchs(pair):
    params, grads = parameters(), gradients()
    expected = run_torch(pair, params, grads)
    with jax.enable_x64(True):
        history = run_ours(pair, params, grads)
    for name, distance in apart(history, expected).items():
        assert distance.max() < 1e-12, name


@pytest.mark.parametrize("pair", PAIRS)
def test_float32_is_as_near_to_float64_as_torchs(pair):
    params, grads = parameters(), gradients()
    truth = run_torch(pair, params, grads)
    theirs = run_torch(pair, params, grads, torch.float32)
    ours = run_ours(pair, params, grads, np.float32)
    assert error(ours, truth) <= 2 * error(theirs, truth)


def absent(name, step):
    """Say when a gradient is absent: the bias's at first, then one or the other's."""
    without = "bias" if step < 3 or step % 2 else "kernel"
    return name == without


@pytest.mark.parametrize(
    "pair",
    # A product shows each factor too many.
    rows(ALL, lambda pair: pair in LAST and pair.ours is optim.nadam),
)
def test_a_parameter_without_a_gradient_stays_as_it_is(pair):
    params, grads = parameters(), gradients(steps=8)
    expected = run_torch(pair, params, grads, absent=absent)
    with jax.enable_x64(True):
        history = run_ours_with_absent(pair, params, grads, absent)
    for name, distance in apart(history, expected).items():
        assert distance.max() < 1e-12, name

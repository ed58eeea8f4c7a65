"""Everything here is in float64, in which equal algorithms are equal."""

import jax
import pytest
import torch


@pytest.fixture(autouse=True)
def float64():
    usual = torch.get_default_dtype()
    # The dtype in which torch keeps the numbers of an optimizer that are no tensors.
    torch.set_default_dtype(torch.float64)
    with jax.enable_x64(True):
        yield
    torch.set_default_dtype(usual)

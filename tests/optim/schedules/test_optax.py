"""Ours is torch's, and Optax differs as it is said to."""

import pytest

from tests.optim.schedules.table import ROWS, shown

# What Optax does otherwise, so that a release that changes it turns this red.
DIFFERENT = {
    "LambdaLR": "10.0%, from count 0",
    "CosineAnnealingLR": "100.0%, from count 201",
    "OneCycleLR": "0.6%, from count 1",
    "ReduceLROnPlateau": "50.0%, from count 5",
}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.torch)
def test_ours_is_torchs(row):
    assert row.distances("jaxclip").max() <= 1e-12


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.optax], ids=lambda row: row.torch
)
def test_optax_differs_as_said(row):
    name = row.torch.partition("(")[0]
    expected = DIFFERENT.get(name, "0")
    if "three_phase" in row.torch:
        expected = "1.3%, from count 1"
    assert shown(row, "optax") == expected

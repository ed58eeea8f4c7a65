"""Ours is torch's, and Optax differs as it is said to."""

import numpy as np
import pytest

from tests.optim.schedules.table import ROWS, distances, shown

# What Optax does otherwise, so that a release that changes it turns this red.
DIFFERENT = {
    "LambdaLR": "10.0%, from count 0",
    "CosineAnnealingLR": "100.0%, from count 201",
    "OneCycleLR": "0.6%, from count 1",
    "ReduceLROnPlateau": "50.0%, from count 5",
}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.torch)
def test_ours_is_torchs(row):
    assert distances(row, "jaxclip").max() <= 1e-12


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.optax], ids=lambda row: row.torch
)
def test_optax_differs_as_said(row):
    name = row.torch.partition("(")[0]
    expected = DIFFERENT.get(name, "0")
    if "three_phase" in row.torch:
        expected = "1.3%, from count 1"
    assert shown(row, "optax") == expected


@pytest.mark.parametrize(
    "row", [row for row in ROWS if "OneCycle" in row.torch], ids=lambda row: row.torch
)
def test_optaxs_one_cycle_is_a_count_late_at_its_peak_and_at_its_end(row):
    ours, theirs = (row.learning_rates(library) for library in ("jaxclip", "optax"))
    assert np.argmax(ours) == np.argmax(theirs) - 1 == 149
    assert ours[499] < theirs[499] == np.sort(theirs)[1]

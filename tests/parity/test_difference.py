"""The small picture of a difference counts every element, and shows where it is."""

import numpy as np
import pytest

from jaxclip.parity._verify._judge._picture import MOST_CELLS
from jaxclip.parity._verify._judge._rules import Rule
from tests.parity.made_reports import picture_of

BY_TENTHS = Rule(rtol=0.0, atol=0.1)


def arrays(shape, seed=0):
    torch = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return torch, torch.copy()


def to_four_digits(number):
    """Round as a picture does, which keeps no more of a number."""
    return float(f"{number:.4g}")


def test_a_wrong_element_is_in_its_cell():
    torch, port = arrays((4, 5))
    port[2, 3] = torch[2, 3] + 2
    found = picture_of(torch, port, BY_TENTHS)
    assert (found.unit, found.shape, found.block) == ("allowed", (4, 5), (1, 1))
    cells = np.array(found.cells)
    assert cells.shape == (4, 5)
    assert cells[2, 3] == 20
    assert np.count_nonzero(cells) == 1
    assert (found.equal, found.infinite, sum(found.counts)) == (19, 0, 1)
    [bin_] = np.flatnonzero(found.counts)
    assert found.exponents[bin_] <= np.log10(20) < found.exponents[bin_ + 1]


@pytest.mark.parametrize(
    ("shape", "rows", "columns", "block"),
    [
        ((), (), (), (1, 1)),
        ((7,), (), (0,), (1, 1)),
        ((1000,), (), (0,), (1, 16)),
        ((8, 6, 16), (0, 1), (2,), (1, 1)),
        ((32, 4, 3, 3), (0,), (1, 2, 3), (1, 1)),
        ((2, 3, 200, 30), (0, 1, 2), (3,), (19, 1)),
        ((3, 5000), (0,), (1,), (1, 79)),
    ],
)
def test_a_tensor_is_folded_near_to_a_square(shape, rows, columns, block):
    torch, port = arrays(shape)
    last = (..., *(-1 for _ in shape))
    port[last] += 1
    found = picture_of(torch, port, BY_TENTHS)
    assert (found.rows, found.columns, found.block) == (rows, columns, block)
    cells = np.array(found.cells)
    assert cells.shape <= (MOST_CELLS, MOST_CELLS)
    assert cells[-1, -1] > 1
    assert np.count_nonzero(cells) == 1


@pytest.mark.parametrize("seed", range(5))
def test_every_element_is_counted_and_every_cell_is_a_maximum(seed):
    rng = np.random.default_rng(seed)
    torch, port = arrays((130, 70), seed)
    port *= 1 + 10.0 ** rng.uniform(-30, 1, torch.shape).astype(np.float32)
    found = picture_of(torch, port, BY_TENTHS)
    apart = np.abs(port.astype(np.float64) - torch) / 0.1
    assert found.equal + found.infinite + sum(found.counts) == torch.size
    assert len(found.counts) == len(found.exponents) - 1 <= 48
    for row, start in enumerate(range(0, 130, 3)):
        for column, left in enumerate(range(0, 70, 2)):
            greatest = apart[start : start + 3, left : left + 2].max()
            assert found.cells[row][column] == to_four_digits(greatest)
    logs = np.log10(apart[apart > 0])
    for at, counted in enumerate(found.counts[1:], 1):
        inside = (logs >= found.exponents[at]) & (logs < found.exponents[at + 1])
        assert counted == np.count_nonzero(inside)


def test_what_is_nowhere_a_number_is_infinite():
    torch, port = arrays((3, 3))
    port[0, 1] = np.nan
    torch[2, 2] = port[2, 2] = np.inf
    found = picture_of(torch, port, BY_TENTHS)
    assert (found.infinite, found.equal, found.counts) == (1, 8, ())
    assert found.cells[0][1] == np.inf


def test_where_nothing_but_equality_is_allowed_it_is_absolute():
    torch = np.arange(6).reshape(2, 3)
    found = picture_of(torch, torch + 5, Rule(rtol=0.0, atol=0.0))
    assert found.unit == "absolute"
    assert {*found.cells[0]} == {5.0}


def test_there_is_none_of_nothing_or_of_other_shapes():
    torch, port = arrays((2, 3))
    assert picture_of(torch, port.T, BY_TENTHS) is None
    assert picture_of(torch[:0], port[:0], BY_TENTHS) is None

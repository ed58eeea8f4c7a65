"""Shards change nothing, for transformations and for optimizers."""

import re
from pathlib import Path

import pytest

from tests.contract.cases import CASES
from tests.contract.optimizers import LONG, QUICK
from tests.processes import run_pytest


def count(cases, optimizers):
    """Count the tests of some rows: one that knows no axis_name sits some out."""
    of_cases = sum(5 if case.shards == "axis_name" else 4 for case in cases)
    without = sum(case.shards is None for case in cases)
    return of_cases - without + 2 * sum(row.shards for row in optimizers)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("not long", count([case for case in CASES if case.quick], QUICK)),
        pytest.param(
            "long",
            count([case for case in CASES if not case.quick], LONG),
            marks=pytest.mark.long,
        ),
    ],
)
def test_shards_change_nothing(rows, expected):
    """Run `sharded` where there are eight devices; it says which rows fail."""
    run = run_pytest(Path(__file__).with_name("sharded.py"), "-m", rows, devices=8)
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(rf"^{expected} passed", run.stdout, re.MULTILINE), run.stdout

"""Shards change nothing, for transformations and for optimizers."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.cases import CASES
from tests.contract.optimizers import LONG, QUICK

ROOT = Path(__file__).parents[2]
# A row that knows no axis_name sits out the tests of it.
OF_CASES = sum(5 if case.shards == "axis_name" else 4 for case in CASES) - sum(
    case.shards is None for case in CASES
)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("not long", OF_CASES + 2 * sum(row.shards for row in QUICK)),
        pytest.param(
            "long", 2 * sum(row.shards for row in LONG), marks=pytest.mark.long
        ),
    ],
)
def test_shards_change_nothing(rows, expected):
    """Run `sharded` where there are eight devices; it says which rows fail."""
    flags = "--xla_force_host_platform_device_count=8"
    file = Path(__file__).with_name("sharded.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file]
    run = subprocess.run(
        [*command, "-m", rows],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(rf"^{expected} passed", run.stdout, re.MULTILINE), run.stdout

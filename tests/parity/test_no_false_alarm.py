"""Correct ports are not blamed: every model, in NNX and Linen, with five optimizers."""

import dataclasses
import itertools
from collections import Counter

import pytest
import torch
from scripts.calibrate_noise import (
    DTYPES,
    KINDS,
    PAGE,
    RESULTS,
    Found,
    Run,
    add,
    measured,
    read,
    render,
    section,
    stages,
)

from jaxclip import optim
from jaxclip.parity import verify
from tests.parity.recordings import OPTIMIZERS, port_of, recorded
from tests.trios import BY_NAME

pytestmark = pytest.mark.usefixtures("quick_compilation")

LONG = pytest.mark.long

WHOLE_STEPS_OF_ROUNDING = {("gpt", "rmsprop"), ("gpt", "nadam")}
"""A unit of GPT's that its GELU shuts off has a gradient of rounding alone, of which
these make whole steps: in 5 and 3 seeds of ten the free run is too far off by that to
tell anything, and says so. So it is in 2 of Adam and AdamW, not tried here."""


def check(run, kinds, steps):
    [rows] = measured([run], kinds, steps)
    assert [row.kind for row in rows] == [*kinds]
    for row in rows:
        assert not row.failures, row
        if (run.model, run.optimizer) not in WHOLE_STEPS_OF_ROUNDING:
            assert row.told, row


# NAdam keeps a number in float32 by which it steps, in a model in float64 too.
@pytest.mark.parametrize(
    ("run", "kind"),
    [
        (Run("my_net", "rmsprop", "float32", 1), "linen"),
        (Run("my_linear", "nadam", "float64", 0), "nnx"),
    ],
    ids=str,
)
def test_a_correct_port_is_not_blamed(run, kind):
    check(run, [kind], steps=4)


# Of the ten seeds, each pair of model and optimizer has another one here; those of
# scripts/calibrate_noise.py are all.
@pytest.mark.long
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("number", "pair"), [*enumerate(itertools.product(BY_NAME, OPTIMIZERS))]
)
def test_no_correct_port_is_blamed_over_twenty_steps(number, pair, dtype):
    check(Run(*pair, dtype, number % 10), KINDS, steps=20)


@pytest.mark.parametrize("name", ["my_linear", pytest.param("gpt", marks=LONG)])
def test_seeds_that_share_what_is_compiled_find_the_same(name):
    first, second = (Run(name, "adam", "float32", seed) for seed in range(2))
    alone = [row for run in (second, first) for row in measured([run], steps=2)]
    assert [*measured([second, first], steps=2)] == alone


def test_the_page_sums_up_the_rows():
    assert section(PAGE.read_text()) == render(read(RESULTS))


def test_no_model_optimizer_dtype_or_seed_is_blamed_and_none_left_out():
    asked = itertools.product(BY_NAME, OPTIMIZERS, DTYPES, range(10))
    wanted = itertools.product(itertools.starmap(Run, asked), KINDS)
    rows = read(RESULTS)
    assert Counter((row.run, row.kind) for row in rows) == Counter(wanted)
    assert not [row for row in rows if row.failures]


def made(**changes):
    run = Run("my_net", "sgd", "float32", 0)
    ratios = dict.fromkeys(stages(), 0.0) | {"loss": 1.5, "free run": 2.0}
    return dataclasses.replace(Found(run, "nnx", 1, 20, "", ratios), **changes)


def test_a_false_alarm_is_counted():
    assert "| sgd | 1 | 0 |" in render([made()])
    assert "| sgd | 2 | 1 |" in render([made(), made(failures="step 0, loss")])
    assert "| loss | 1.5 | 0 |" in render([made()])


def test_rows_are_read_as_they_were_added(tmp_path):
    path = tmp_path / "rows.csv"
    assert read(path) == []
    rows = [made(), made(kind="linen", failures="step 0, loss; free run")]
    for row in rows:
        add(path, [row])
    assert read(path) == rows


def test_rows_with_other_columns_are_refused(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("model,seed\nmy_net,0\n")
    with pytest.raises(ValueError, match=r"rows\.csv: its columns must be model, "):
        read(path)


@pytest.mark.long
def test_a_mistake_is_found_where_torch_keeps_a_number_in_float32(tmp_path):
    trio = BY_NAME["my_linear"]
    path = recorded(
        tmp_path / "run.trace", trio, optimizer="nadam", dtype=torch.float64
    )
    right = port_of(trio, "nnx", "nadam")
    wrong = dataclasses.replace(right, optimizer=optim.nadam(0.01, momentum_decay=0.04))
    verify(path, right).raise_if_different()
    report = verify(path, wrong)
    assert (report.first.step, report.first.stage) == (0, "update"), report
    assert "up to 4" in report.first.detail

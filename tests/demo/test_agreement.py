import dataclasses

import numpy as np
import pytest

from jaxclip.demo._agreement import checkpoints, distance, judge, relative_difference
from tests.demo.runs import history, runs


def verdict(**changed):
    return judge(1.0, **runs(**changed))


def test_runs_that_differ_by_rounding_are_equal():
    agreement = verdict()
    assert agreement.equal
    assert agreement.steps == 20
    assert str(agreement).startswith(
        "equal, up to rounding: over the first 20 steps, 16 of them clipped, the "
        "losses differ by at most 1.6e-05 in float32; in float64 by "
    )
    assert "Beyond" not in str(agreement)


@pytest.mark.parametrize("mistake", [1e-9, 1e-6, 1e-3, 1.0, np.nan])
@pytest.mark.parametrize("side", ["torch64", "jax64"])
def test_a_mistake_shows_in_float64(side, mistake):
    # In float32 none but the largest can be told from rounding.
    agreement = verdict(**{side: history(error=mistake)})
    assert not agreement.equal
    assert "NOT equal" in str(agreement)


def test_a_mistake_of_one_weight_shows():
    wrong = history(error=1e-15)
    wrong.weights[10]["w"][0, 0] += 1e-6
    agreement = verdict(torch64=wrong)
    assert not agreement.equal
    assert "times what rounding accounts for" in str(agreement)


def test_a_wrong_weight_that_only_float32_has_shows():
    # As from a port that is right in float64 and loses digits in float32.
    agreement = verdict(jax32=history("float32", error=2e-4))
    assert not agreement.equal
    assert "candidate loses digits that reference keeps" in str(agreement)


def test_torch_may_be_less_accurate_but_not_by_three_digits():
    assert verdict(torch32=history("float32", error=3e-5)).equal
    agreement = verdict(torch32=history("float32", error=3e-3))
    assert not agreement.equal
    assert "more than noise" in str(agreement)


def test_what_rounding_has_drowned_is_not_compared():
    chaos = history("float32", error=1e-7, growth=3.0)
    agreement = verdict(jax32=chaos, torch64=history(error=1e-15, growth=3.0))
    assert agreement.equal
    assert agreement.steps == 5
    assert "Beyond step 5 nothing can be told" in str(agreement)


@pytest.mark.parametrize("error", [0.5, np.nan])
def test_runs_that_part_at_once_are_not_equal(error):
    agreement = verdict(jax32=history("float32", error=error))
    assert not agreement.equal
    assert "part" in str(agreement)


def test_a_loss_that_is_not_finite_ends_what_is_compared():
    late = runs()["jax32"]
    losses = late.losses.copy()
    losses[12] = np.nan
    agreement = verdict(jax32=dataclasses.replace(late, losses=losses))
    assert agreement.equal
    assert agreement.steps == 10


def test_one_step_is_enough():
    one = {
        name: dataclasses.replace(
            run,
            losses=run.losses[:1],
            grad_norms=run.grad_norms[:1],
            weights={1: run.weights[1]},
        )
        for name, run in runs().items()
    }
    agreement = judge(1.0, **one)
    assert agreement.equal
    assert "over the first step, 1 of them clipped" in str(agreement)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(1, [1]), (3, [1, 3]), (5, [1, 5]), (20, [1, 5, 10, 20]), (99, [1, 5, 10, 20])],
)
def test_checkpoints_end_with_the_last_step_compared(steps, expected):
    assert checkpoints(steps) == expected


def test_differences_are_relative_to_the_second():
    a, b = np.array([1.0, 0.0, 3.0], np.float32), np.array([2.0, 0.0, 3.0], np.float32)
    np.testing.assert_array_equal(relative_difference(a, b), [0.5, 0.0, 0.0])
    assert distance(a, b) == pytest.approx(1 / np.sqrt(13), rel=1e-15)
    assert distance(0 * a, 0 * b) == 0

"""What a schedule does not take: errors that say what to do."""

import jax
import numpy as np
import pytest

from jaxclip.optim import schedules
from tests.optim.schedules.harness import schedule, torch_run

ERRORS = [
    (
        "step_lr(-0.1, 3)",
        ValueError,
        "step_lr(base_lr=-0.1): expected a number from 0 to inf.",
    ),
    (
        "step_lr([0.1, 0.2], 3)",
        TypeError,
        "step_lr(base_lr=[0.1, 0.2]): expected a real number or a scalar array, got "
        "list.",
    ),
    (
        "step_lr(0.1, 0)",
        ValueError,
        "step_lr(step_size=0): expected a whole number of steps, 1 to 1073741823.",
    ),
    (
        "step_lr(0.1, 2.5)",
        ValueError,
        "step_lr(step_size=2.5): expected a whole number of steps, 1 to 1073741823.",
    ),
    (
        "step_lr(0.1, 3, steps_per_epoch=0)",
        ValueError,
        "step_lr(steps_per_epoch=0): expected a whole number of steps, 1 to 107374182",
    ),
    (
        "step_lr(0.1, 3, gamma='a')",
        TypeError,
        "step_lr(gamma='a'): expected a real number or a scalar array, got str.",
    ),
    (
        "multi_step_lr(0.1, [3, -1])",
        ValueError,
        "multi_step_lr(milestones=-1): expected a whole number of steps, 0 to",
    ),
    (
        "constant_lr(0.1, 1.5)",
        ValueError,
        "constant_lr(factor=1.5): expected a number from 0 to 1.",
    ),
    (
        "constant_lr(0.1, total_iters=0)",
        ValueError,
        "constant_lr(total_iters=0): expected a whole number of steps, 1 to",
    ),
    (
        "linear_lr(0.1, 0.0)",
        ValueError,
        "linear_lr(start_factor=0): expected a number above 0, at most 1, as torch",
    ),
    (
        "linear_lr(0.1, 1.1)",
        ValueError,
        "linear_lr(start_factor=1.1): expected a number from 0 to 1.",
    ),
    (
        "linear_lr(0.1, end_factor=-1)",
        ValueError,
        "linear_lr(end_factor=-1): expected a number from 0 to 1.",
    ),
    (
        "polynomial_lr(0.1, 5, -1.0)",
        ValueError,
        "polynomial_lr(power=-1): expected a number from 0 to inf.",
    ),
    (
        "cosine_annealing_lr(0.1, 0)",
        ValueError,
        "cosine_annealing_lr(T_max=0): expected a whole number of steps, 1 to",
    ),
    (
        "cosine_annealing_warm_restarts(0.1, 0)",
        ValueError,
        "cosine_annealing_warm_restarts(T_0=0): expected a whole number of steps, 1",
    ),
    (
        "cosine_annealing_warm_restarts(0.1, 4, 1.5)",
        ValueError,
        "cosine_annealing_warm_restarts(T_mult=1.5): expected a whole number of steps",
    ),
    (
        "cosine_annealing_warm_restarts(0.1, 4, eta_min='a')",
        TypeError,
        "cosine_annealing_warm_restarts(eta_min='a'): expected a real number",
    ),
    (
        "cyclic_lr(0.1, 0.2, mode='square')",
        ValueError,
        "cyclic_lr(mode='square'): expected one of 'triangular', 'triangular2', "
        "'exp_range'.",
    ),
    (
        "cyclic_lr(0.1, 0.2, scale_mode='step')",
        ValueError,
        "cyclic_lr(scale_mode='step'): expected one of 'cycle', 'iterations'.",
    ),
    (
        "cyclic_lr(0.1, 0.2, scale_fn=0.5)",
        TypeError,
        "cyclic_lr(scale_fn=0.5): expected a function, got float.",
    ),
    (
        "cyclic_momentum(step_size_up=0)",
        ValueError,
        "cyclic_momentum(step_size_up=0): expected a whole number of steps, 1 to",
    ),
    (
        "one_cycle_lr(0.1)",
        ValueError,
        "one_cycle_lr(total_steps=None, epochs=None, steps_per_epoch=None): expected "
        "total_steps alone, or epochs and steps_per_epoch.",
    ),
    (
        "one_cycle_lr(0.1, 10, epochs=3, steps_per_epoch=5)",
        ValueError,
        "one_cycle_lr(total_steps=10, epochs=3, steps_per_epoch=5): expected total_st",
    ),
    (
        "one_cycle_lr(0.1, 0)",
        ValueError,
        "one_cycle_lr(total_steps=0): expected a whole number of steps, 1 to",
    ),
    (
        "one_cycle_lr(0.1, epochs=0, steps_per_epoch=5)",
        ValueError,
        "one_cycle_lr(epochs=0): expected a whole number of steps, 1 to",
    ),
    (
        "one_cycle_lr(0.1, 10, pct_start=1.5)",
        ValueError,
        "one_cycle_lr(pct_start=1.5): expected a number from 0 to 1.",
    ),
    (
        "one_cycle_lr(0.1, 10, pct_start=0.1)",
        ValueError,
        "one_cycle_lr(pct_start=0.1): of 10 steps that is one, from count 0 to count "
        "0, and torch divides by the difference. Give the first phase two steps, or "
        "pct_start=0.0.",
    ),
    (
        "one_cycle_lr(0.1, 10, anneal_strategy='step')",
        ValueError,
        "one_cycle_lr(anneal_strategy='step'): expected one of 'cos', 'linear'.",
    ),
    (
        "one_cycle_lr(0.1, 10, div_factor=0)",
        ValueError,
        "one_cycle_lr(div_factor=0): expected a number above 0.",
    ),
    (
        "swa_lr(0.1, 0.2, -1)",
        ValueError,
        "swa_lr(anneal_epochs=-1): expected a whole number of steps, 0 to",
    ),
    (
        "swa_lr(0.1, 0.2, anneal_strategy='step')",
        ValueError,
        "swa_lr(anneal_strategy='step'): expected one of 'cos', 'linear'.",
    ),
    (
        "lambda_lr(0.1, 0.5)",
        TypeError,
        "lambda_lr(lr_lambda=0.5): expected a function, got float.",
    ),
    (
        "multiplicative_lr(0.1, [abs])",
        TypeError,
        "expected a function, got list. torch takes one for each parameter group; make "
        "one schedule for each.",
    ),
    (
        "multiplicative_lr(0.1, abs, total_iters=-1)",
        ValueError,
        "multiplicative_lr(total_iters=-1): expected a whole number of steps, 1 to",
    ),
]


@pytest.mark.parametrize(
    ("expression", "error", "message"), ERRORS, ids=[case[0] for case in ERRORS]
)
def test_the_error_says_what_to_do(expression, error, message):
    with pytest.raises(error) as caught:
        schedule(expression)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "expression",
    [
        "MultiplicativeLR(o, 0.5)",
        "StepLR(o, 0)",
        "ConstantLR(o, 1.5)",
        "ConstantLR(o, -0.5)",
        "ConstantLR(o, 0.0)",
        "LinearLR(o, 0.0)",
        "LinearLR(o, 1.1)",
        "LinearLR(o, end_factor=-1)",
        "PolynomialLR(o, 5, -1.0)",
        "CosineAnnealingLR(o, 0)",
        "CosineAnnealingWarmRestarts(o, 0)",
        "CosineAnnealingWarmRestarts(o, 4, 1.5)",
        "CosineAnnealingWarmRestarts(o, 4, eta_min='a')",
        "CyclicLR(o, 0.1, 0.2, mode='square')",
        "CyclicLR(o, 0.1, 0.2, 0)",
        "OneCycleLR(o, 0.1)",
        "OneCycleLR(o, 0.1, 0)",
        "OneCycleLR(o, 0.1, epochs=0, steps_per_epoch=5)",
        "OneCycleLR(o, 0.1, 10, pct_start=1.5)",
        "OneCycleLR(o, 0.1, 10, pct_start=0.1)",
        "OneCycleLR(o, 0.1, 10, anneal_strategy='step')",
        "SWALR(o, 0.2, -1)",
        "SWALR(o, 0.2, anneal_strategy='step')",
    ],
)
def test_torch_fails_too(expression):
    with pytest.raises((TypeError, ValueError, ZeroDivisionError)):
        torch_run(expression, steps=9)


@pytest.mark.parametrize(
    ("torchs", "kept"),
    [
        ("ConstantLR(o, 0.5, total_iters=0)", 0.05),
        ("LinearLR(o, 0.5, total_iters=0)", 0.05),
        ("PolynomialLR(o, total_iters=0)", 0.1),
    ],
)
def test_what_torch_does_with_no_iterations(torchs, kept):
    np.testing.assert_array_equal(torch_run(torchs, steps=20)[0], [kept] * 21)


def test_only_learning_rates_may_be_traced():
    message = r"exponential_lr\(gamma=\.\.\.\): was traced; expected a number"
    with pytest.raises(TypeError, match=message):
        jax.jit(lambda gamma: schedules.exponential_lr(0.1, gamma)(3))(0.9)
    message = r"step_lr\(step_size=\.\.\.\): was traced; expected an int"
    with pytest.raises(TypeError, match=message):
        jax.jit(lambda size: schedules.step_lr(0.1, size)(3))(7)


def test_whole_floats_are_numbers_of_steps():
    made = schedules.step_lr(0.1, 30.0)
    assert made == schedules.step_lr(0.1, 30)
    assert repr(made) == "step_lr(base_lr=0.1, step_size=30)"


# ---- functions of a user's own -------------------------------------------------------


def test_a_function_that_cannot_be_traced_is_told_of():
    made = schedules.lambda_lr(0.1, lambda t: 0.5 if t < 3 else 1.0)
    message = r"lr_lambda was given a traced integer and raised .*total_iters=\.\.\."
    with pytest.raises(TypeError, match=message):
        jax.jit(made)(2)
    np.testing.assert_allclose(made(np.arange(5)), [0.05] * 3 + [0.1] * 2)


def test_its_own_errors_pass():
    made = schedules.lambda_lr(0.1, lambda t: {}["nothing"])
    for call in (made, jax.jit(made)):
        with pytest.raises(KeyError, match="nothing"):
            call(3)


def test_a_product_needs_to_know_how_long_it_is():
    made = schedules.multiplicative_lr(0.1, lambda t: 0.9)
    message = r"multiplicative_lr: was called with a traced count.*total_iters=\.\.\."
    with pytest.raises(TypeError, match=message):
        jax.jit(made)(2)


@pytest.mark.parametrize("make", ["lambda_lr", "multiplicative_lr"])
def test_past_the_table_the_learning_rate_stays(make):
    made = getattr(schedules, make)(0.1, lambda t: 1 / (1 + t), total_iters=4)
    counts = np.array([3, 4, 5, 900])
    for got in (made(counts), jax.jit(made)(counts)):
        assert got[0] > got[1] == got[2] == got[3]


# ---- past the end of a cycle ---------------------------------------------------------


def test_past_its_end_a_cycle_raises_where_it_can():
    made = schedules.one_cycle_lr(0.1, 10)
    message = r"one_cycle_lr\(total_steps=10\): was called with a count of 11"
    for count in (11, np.arange(12)):
        with pytest.raises(ValueError, match=message):
            made(count)
    with pytest.raises(ValueError, match="Tried to step 11 times"):
        torch_run("OneCycleLR(o, 0.1, 10)", steps=11)
    np.testing.assert_allclose(made(10), torch_run("OneCycleLR(o, 0.1, 10)", 10)[0][10])
    np.testing.assert_allclose(jax.jit(made)(np.array([11, 10**9])), 4e-7, rtol=1e-6)

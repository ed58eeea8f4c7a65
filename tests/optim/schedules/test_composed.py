"""What sequences and chains make of their parts, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxclip.optim import schedules
from tests.optim.schedules.harness import evaluate, make_optimizer, quietly, torch_run

STEP = schedules.step_lr(0.1, 3)
EXPONENTIAL = schedules.exponential_lr(0.1, 0.9)


@pytest.mark.parametrize(
    ("torchs", "error"),
    [
        # torch has no closed form for what is composed.
        (
            "SequentialLR(o, [StepLR(o, 3), ChainedScheduler([StepLR(o, 3)])], [2])",
            NotImplementedError,
        ),
        (
            "SequentialLR(o, [StepLR(o, 3), SequentialLR(o, [StepLR(o, 3)], [])], [2])",
            NotImplementedError,
        ),
    ],
)
def test_torch_cannot_restart_what_is_composed(torchs, error):
    with pytest.raises(error):
        torch_run(torchs, steps=3)


def test_at_the_beginning_torch_takes_the_first_step_of_a_chain_twice():
    alone = torch_run("ChainedScheduler([ExponentialLR(o, 0.9)])", steps=3)[0]
    first = torch_run(
        "SequentialLR(o, [ChainedScheduler([ExponentialLR(o, 0.9)])], [])", steps=3
    )[0]
    np.testing.assert_allclose(alone, 0.1 * 0.9 ** np.arange(4))
    np.testing.assert_allclose(first, 0.1 * 0.9 ** np.arange(1, 5))


@pytest.mark.parametrize(
    "part",
    [
        schedules.chained_scheduler([STEP, EXPONENTIAL]),
        schedules.sequential_lr([STEP, EXPONENTIAL], [2]),
    ],
)
def test_so_a_sequence_refuses_it(part):
    message = f"sequential_lr: got a {part.caller} among the schedules, expected plain"
    with pytest.raises(TypeError, match=message):
        schedules.sequential_lr([STEP, part], [4])


@pytest.mark.parametrize("compose", ["sequential_lr", "chained_scheduler"])
@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ([], ValueError, r"\(schedules=\[\]\): expected at least one schedule"),
        (
            [STEP, schedules.reduce_lr_on_plateau(0.1)],
            TypeError,
            "expected those of jaxclip.optim.schedules. reduce_lr_on_plateau is a",
        ),
        (
            [STEP, optax.constant_schedule(0.1)],
            TypeError,
            r"got <function .*> among the schedules, expected .*optax.join_schedules",
        ),
        (
            [STEP, schedules.step_lr(0.1, 3, steps_per_epoch=5)],
            ValueError,
            r"got step_lr\(.*steps_per_epoch=5\) .*expected steps_per_epoch to be said "
            "once",
        ),
    ],
)
def test_what_cannot_be_composed_is_refused(compose, parts, error, message):
    more = [[2] * (len(parts) - 1)] if compose == "sequential_lr" else []
    with pytest.raises(error, match=f"^{compose}.*{message}"):
        getattr(schedules, compose)(parts, *more)


def test_torch_refuses_a_plateau_too():
    with pytest.raises(ValueError, match="does not support `ReduceLROnPlateau`"):
        quietly(
            lambda: evaluate(
                "ChainedScheduler([ReduceLROnPlateau(o)])", o=make_optimizer()
            )
        )


@pytest.mark.parametrize(
    ("milestones", "message"),
    [
        ([], r"milestones=\[\]\): expected one fewer than the schedules, which are 2"),
        ([3, 4], r"milestones=\[3, 4\]\): expected one fewer than the schedules"),
        ([0], r"milestones=\[0\]\): expected numbers of steps ≥ 1, each larger"),
        ([2.5], r"milestones=2.5\): expected a whole number of steps"),
    ],
)
def test_milestones_are_checked(milestones, message):
    with pytest.raises(ValueError, match=message):
        schedules.sequential_lr([STEP, EXPONENTIAL], milestones)


def test_milestones_are_in_order():
    with pytest.raises(ValueError, match="each larger than the one before"):
        schedules.sequential_lr([STEP, STEP, STEP], [5, 4])


def test_a_chain_has_one_learning_rate():
    parts = [STEP, schedules.exponential_lr(0.2, 0.9)]
    with pytest.raises(ValueError, match=r"the base learning rates 0\.1, 0\.2, expect"):
        schedules.chained_scheduler(parts)
    nested = [STEP, schedules.chained_scheduler([parts[1]])]
    with pytest.raises(ValueError, match=r"0\.1, 0\.2"):
        schedules.chained_scheduler(nested)
    # The lower bound of a cycle is not the optimizer's learning rate.
    schedules.chained_scheduler([STEP, schedules.cyclic_lr(0.01, 0.2)])


def test_the_learning_rates_of_parts_are_known():
    def make(lr):
        return schedules.chained_scheduler([schedules.step_lr(lr, 3)])(0)

    with pytest.raises(TypeError, match="the learning rate of step_lr is traced"):
        jax.jit(make)(0.1)


COSINE = [schedules.cosine_annealing_lr(0.1, 20, 0.01), EXPONENTIAL]


def test_without_a_formula_a_traced_count_needs_a_table():
    chain = schedules.chained_scheduler(COSINE)
    with pytest.raises(TypeError, match=r"chained_scheduler: .*say how many there are"):
        jax.jit(chain)(3)
    tabulated = schedules.chained_scheduler(COSINE, total_iters=30)
    counts = np.arange(31)
    np.testing.assert_allclose(
        jax.jit(tabulated)(counts), chain(counts), rtol=2e-7, atol=1e-9
    )
    # Not traced, it needs none.
    np.testing.assert_array_equal(chain(jnp.array([4, 9])), chain(np.array([4, 9])))


def test_past_the_table_the_learning_rate_stays():
    tabulated = schedules.chained_scheduler(COSINE, total_iters=5)
    for count in (6, np.int64(9), jnp.int32(10**9)):
        np.testing.assert_array_equal(tabulated(count), tabulated(5))


def test_the_order_counts_where_a_part_takes_no_notice():
    decay = schedules.lambda_lr(0.1, lambda t: 1 / (1 + t))
    before = schedules.chained_scheduler([EXPONENTIAL, decay])
    after = schedules.chained_scheduler([decay, EXPONENTIAL])
    np.testing.assert_allclose(before(7), 0.1 / 8, rtol=1e-6)
    np.testing.assert_allclose(after(7), 0.9 * 0.1 / 8, rtol=1e-6)


def test_a_factor_of_0_cannot_be_undone_in_a_table():
    parts = [schedules.constant_lr(0.1, 0.0, 3), COSINE[0]]
    with pytest.raises(ZeroDivisionError):
        schedules.chained_scheduler(parts)(5)
    with pytest.raises(ZeroDivisionError):
        torch_run("ConstantLR(o, 0.0, 3)", steps=5)


def test_a_sequence_gives_a_part_only_its_own_counts():
    sequence = schedules.sequential_lr(
        [schedules.one_cycle_lr(1.0, 10), schedules.polynomial_lr(0.1, 5)], [10]
    )
    np.testing.assert_allclose(sequence(np.array([9, 10, 40])), [4e-6, 0.1, 0.0])
    np.testing.assert_allclose(
        jax.jit(sequence)(jnp.array([9, 10, 40])), [4e-6, 0.1, 0.0], rtol=1e-6
    )


def test_the_optimizers_first_rate_under_a_one_cycle_is_not_its_own_in_torch():
    torchs = torch_run(
        "SequentialLR(o, [LinearLR(o, 0.5, total_iters=3), OneCycleLR(o, 1.0, 20)],"
        " [5])",
        steps=12,
    )[0]
    # torch has given it the OneCycleLR's.
    ours = schedules.sequential_lr(
        [
            schedules.linear_lr(0.04, 0.5, total_iters=3),
            schedules.one_cycle_lr(1.0, 20),
        ],
        [5],
    )
    np.testing.assert_allclose(ours(np.arange(13)), torchs, rtol=1e-6)

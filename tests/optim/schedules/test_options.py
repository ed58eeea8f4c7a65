"""Whatever the options of a schedule, it gives torch's learning rates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.optim.schedules.harness import LR, evaluate, run, schedule

STEPS = 150
COUNTS = np.arange(STEPS + 1)

factors = st.floats(0.01, 1.0)
gammas = st.floats(0.5, 1.05)
lengths = st.integers(1, 200)
rates = st.floats(0.0, 0.5)


def calls(torchs, ours, *arguments, **options):
    """Draw a call of torch's scheduler, of the optimizer o, and ours to match."""

    def written(drawn):
        values, named = drawn
        given = [
            *map(repr, values),
            *(f"{key}={value!r}" for key, value in named.items()),
        ]
        return f"{torchs}{', '.join(given)})", f"{ours}{', '.join(given)})"

    named = st.fixed_dictionaries(options)
    return st.tuples(st.tuples(*arguments), named).map(written)


PARTS = st.one_of(
    calls("StepLR(o, ", "step_lr(0.1, ", st.integers(1, 60), gamma=gammas),
    calls(
        "MultiStepLR(o, ",
        "multi_step_lr(0.1, ",
        st.lists(st.integers(0, 160), max_size=5),
        gamma=gammas,
    ),
    calls("ConstantLR(o, ", "constant_lr(0.1, ", factors, lengths),
    calls("LinearLR(o, ", "linear_lr(0.1, ", factors, st.floats(0.0, 1.0), lengths),
    calls("ExponentialLR(o, ", "exponential_lr(0.1, ", gammas),
    calls("PolynomialLR(o, ", "polynomial_lr(0.1, ", lengths, st.floats(0.0, 4.0)),
    calls("CosineAnnealingLR(o, ", "cosine_annealing_lr(0.1, ", lengths, rates),
    calls(
        "CosineAnnealingWarmRestarts(o, ",
        "cosine_annealing_warm_restarts(0.1, ",
        st.integers(1, 50),
        st.integers(1, 4),
        rates,
    ),
    calls(
        "SWALR(o, ",
        "swa_lr(0.1, ",
        rates,
        st.integers(0, 100),
        st.sampled_from(["cos", "linear"]),
    ),
)
CYCLES = st.one_of(
    calls(
        "CyclicLR(o, ",
        "cyclic_lr(",
        rates,
        rates,
        st.integers(1, 60),
        st.none() | st.integers(0, 60),
        mode=st.sampled_from(["triangular", "triangular2", "exp_range"]),
        gamma=st.floats(0.9, 1.01),
    ),
    calls(
        "OneCycleLR(o, ",
        "one_cycle_lr(",
        rates,
        st.integers(STEPS, 400),
        pct_start=st.floats(0.02, 0.98),
        anneal_strategy=st.sampled_from(["cos", "linear"]),
        div_factor=st.floats(0.5, 100.0),
        final_div_factor=st.floats(0.5, 1e5),
        three_phase=st.booleans(),
    ),
)
SEQUENCES = st.lists(PARTS, min_size=2, max_size=4).flatmap(
    lambda parts: st.sets(
        st.integers(1, STEPS), min_size=len(parts) - 1, max_size=len(parts) - 1
    ).map(
        lambda milestones: tuple(
            f"{call}[{', '.join(listed)}], {sorted(milestones)})"
            for call, listed in zip(
                ("SequentialLR(o, ", "sequential_lr("),
                zip(*parts, strict=True),
                strict=True,
            )
        )
    )
)
CHAINS = st.lists(PARTS, min_size=2, max_size=4).map(
    lambda parts: tuple(
        f"{name}([{', '.join(listed)}]{more})"
        for name, listed, more in zip(
            ("ChainedScheduler", "chained_scheduler"),
            zip(*parts, strict=True),
            ("", f", total_iters={STEPS}"),
            strict=True,
        )
    )
)
FAMILIES = {
    "plain": PARTS,
    "cycles": CYCLES,
    "sequences": SEQUENCES,
    "chains": CHAINS,
}


def check(torchs, ours):
    expected = run(lambda o: evaluate(torchs, o=o), STEPS)[0]
    made = schedule(ours)
    # Of the largest learning rate: torch's recursions lose digits on their way.
    tolerance = 1e-12 * max(LR, np.abs(expected).max())
    with jax.enable_x64(True):
        for counts in (COUNTS, jnp.asarray(COUNTS)):
            np.testing.assert_allclose(
                made(counts), expected, rtol=1e-12, atol=tolerance
            )


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
@settings(max_examples=15)
def test_it_is_torchs(family, data):
    check(*data.draw(FAMILIES[family]))


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
@settings(max_examples=500)
def test_it_is_torchs_at_length(family, data):
    check(*data.draw(FAMILIES[family]))

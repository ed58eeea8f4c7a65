"""Every schedule gives the learning rates of torch's scheduler, on every path."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from jaxclip.optim import schedules
from tests.optim.schedules.cases import CASES, FAR
from tests.optim.schedules.harness import (
    LR,
    NAMES,
    STEPS,
    schedule,
    torch_at,
    torch_run,
)

COUNTS = np.arange(STEPS + 1)

# float32 rounds each operation. A sine squared takes the errors of its argument twice,
# and a power as many times as it is high.
ULPS = 6

rng = np.random.default_rng(0)
FAR_COUNTS = np.unique(
    [*rng.integers(1, 5_000_000, 200), 1, 2, 1_000_002, 1_000_003, 2_999_999, 4_999_999]
)


def compiled(cases, counts):
    """Evaluate all schedules in one compiled program, the counts traced."""
    made = {torchs: schedule(ours) for torchs, ours in cases.items()}
    evaluated = jax.jit(lambda counts: {name: s(counts) for name, s in made.items()})
    return evaluated(jnp.asarray(counts))


@pytest.fixture(scope="module")
def device64():
    with jax.enable_x64(True):
        return compiled(CASES, COUNTS)


@pytest.fixture(scope="module")
def device32():
    return compiled(CASES, COUNTS)


@pytest.fixture(scope="module")
def far32():
    return compiled(FAR, FAR_COUNTS.astype(np.int32))


def assert_torchs(got, expected):
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12 * LR)


def ulps(got, expected):
    """Return how far float32 values are from those of float64, in units of the last."""
    assert got.dtype == np.float32
    return np.abs(got - expected) / np.spacing(np.abs(expected).astype(np.float32))


@pytest.mark.parametrize("case", CASES)
def test_compiled_in_float64_it_is_torchs(case, device64):
    assert_torchs(device64[case], torch_run(case)[0])


@pytest.mark.parametrize("case", CASES)
def test_of_integers_on_the_host_it_is_torchs(case):
    made, expected = schedule(CASES[case]), torch_run(case)[0]
    with jax.enable_x64(True):
        assert_torchs(made(COUNTS), expected)
        for count in (0, 17, STEPS):
            assert_torchs(made(count), expected[count])
    once = made(COUNTS)
    assert once.dtype == jnp.float32
    # Rounded once, of what is within 1e-12.
    np.testing.assert_allclose(once, expected, rtol=6e-8, atol=1e-12 * LR)


@pytest.mark.parametrize("case", CASES)
def test_compiled_in_float32_it_keeps_its_digits(case, device32):
    with jax.enable_x64(True):
        expected = np.asarray(schedule(CASES[case])(COUNTS))
    # Below that float32 has fewer digits.
    normal = np.abs(expected) > np.finfo(np.float32).tiny
    assert np.all(ulps(device32[case], expected)[normal] <= ULPS)
    np.testing.assert_allclose(device32[case][~normal], 0.0, atol=1e-37)


@pytest.mark.parametrize("case", FAR)
def test_so_it_does_after_millions_of_updates(case, far32):
    expected = np.array([torch_at(case, int(count)) for count in FAR_COUNTS])
    # torch's 1 + cos has no digits below that.
    rounding = 1e-15 * LR / np.spacing(np.abs(expected).astype(np.float32))
    # Subnormal numbers have fewer digits.
    normal = np.abs(expected) > np.finfo(np.float32).tiny
    assert normal.sum() > 20
    assert np.all((ulps(far32[case], expected) <= ULPS + rounding)[normal])


def test_the_optax_decay_does_not():
    counts = jnp.int32(1_000_000)
    expected = torch_at("ExponentialLR(o, 0.999999)", 1_000_000)
    theirs = optax.exponential_decay(LR, 1, 0.999999)(counts)
    assert f"{abs(theirs / expected - 1):.1%}" == "1.3%"
    ours = schedules.exponential_lr(LR, 0.999999)(counts)
    assert abs(ours / expected - 1) < 3e-7


@pytest.mark.parametrize("eta_min", [0.0, 0.05])
def test_past_T_max_it_is_torch_that_loses_digits(eta_min):
    case, counts = f"CosineAnnealingLR(o, 450, {eta_min})", np.arange(900)
    closed = np.array([torch_at(case, int(count)) for count in counts])
    recursive = torch_run(case, steps=899)[0]
    with jax.enable_x64(True):
        ours = schedules.cosine_annealing_lr(LR, 450, eta_min)(counts)
    np.testing.assert_allclose(ours, closed, rtol=0, atol=1e-15 * LR)
    drift = np.abs(recursive - closed) / LR
    assert drift[:451].max() < 2e-15
    after = drift[451:].max()
    assert 1e-12 < after < 2e-12 if eta_min else after < 3e-15


MOMENTA = {
    "OneCycleLR(o, 0.4, 500)": "one_cycle_momentum(500)",
    "OneCycleLR(o, 0.4, 500, pct_start=0.4, anneal_strategy='linear',"
    " base_momentum=0.5, max_momentum=0.9, three_phase=True)": (
        "one_cycle_momentum(500, pct_start=0.4, anneal_strategy='linear',"
        " base_momentum=0.5, max_momentum=0.9, three_phase=True)"
    ),
    "CyclicLR(o, 0.01, 0.2, 30)": "cyclic_momentum(step_size_up=30)",
    "CyclicLR(o, 0.01, 0.2, 20, 45, mode='triangular2', base_momentum=0.6)": (
        "cyclic_momentum(0.6, step_size_up=20, step_size_down=45, mode='triangular2')"
    ),
    "CyclicLR(o, 0.01, 0.2, 30, mode='exp_range', gamma=0.99, max_momentum=0.99)": (
        "cyclic_momentum(0.8, 0.99, 30, mode='exp_range', gamma=0.99)"
    ),
}


def test_the_momentum_is_cycled_too():
    with jax.enable_x64(True):
        got = compiled(MOMENTA, COUNTS)
    for case in MOMENTA:
        assert_torchs(got[case], torch_run(case)[1])
    assert not np.array_equal(*[torch_run(case)[1] for case in list(MOMENTA)[:2]])


def test_every_scheduler_of_torch_is_there():
    torchs = set(torch.optim.lr_scheduler.__all__) - {"LRScheduler"}
    used = {name for name in torchs if any(f"{name}(" in case for case in CASES)}
    assert torchs - used == {"ReduceLROnPlateau"}  # in test_plateau
    assert "SWALR" in NAMES


# ---- where it is used ----------------------------------------------------------------


@pytest.mark.parametrize("x64", [False, True])
def test_its_type_is_the_same_on_the_host_and_in_a_scan(x64):
    def scanned():
        made = [schedule(case) for case in CASES.values()]

        def step(lrs, count):
            return [each(count) for each in made], None

        return jax.lax.scan(step, [each(0) for each in made], jnp.arange(9))[0]

    with jax.enable_x64(x64):
        for lr in jax.eval_shape(scanned):
            assert lr.dtype == (jnp.float64 if x64 else jnp.float32)
            assert not lr.weak_type


@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "int16", "int32", "uint32", "int64"]
)
def test_any_integer_will_do(dtype):
    made = schedules.step_lr(0.1, 30, 0.5)
    counts = np.array([0, 29, 90], dtype)
    with jax.enable_x64(dtype == "int64"):
        for each in (counts, jnp.array(counts), [jnp.array(one) for one in counts]):
            got = [made(one) for one in each]
            np.testing.assert_allclose(got, [0.1, 0.1, 0.0125], rtol=1e-6)


@pytest.mark.parametrize("count", [1.0, jnp.float32(3), np.ones(2), True, "7"])
def test_what_is_no_integer_is_refused(count):
    message = "step_lr: was called with a count of .*, expected an int or an array of"
    with pytest.raises(TypeError, match=message):
        schedules.step_lr(0.1, 30)(count)


def test_counts_of_any_shape():
    made = schedules.lambda_lr(0.1, lambda count: 0.5)
    for counts in (np.zeros((2, 3), int), jnp.zeros((2, 3), int)):
        np.testing.assert_allclose(made(counts), np.full((2, 3), 0.05), rtol=1e-7)
    one_cycle = schedules.one_cycle_lr(1.0, 10)
    np.testing.assert_allclose(
        jax.vmap(one_cycle)(jnp.arange(6).reshape(2, 3).ravel()),
        one_cycle(np.arange(6)),
        rtol=1e-6,
    )


@pytest.mark.parametrize(
    "expression",
    [case for case in CASES.values() if not case.startswith("one_cycle")],
)
def test_steps_per_epoch_holds_a_value_for_so_many_updates(expression):
    every = schedule(expression)(np.arange(40))
    each = schedule(f"{expression[:-1]}, steps_per_epoch=3)")(np.arange(120))
    np.testing.assert_array_equal(each, np.repeat(every, 3))


@pytest.mark.parametrize(
    "make",
    [
        lambda lr: schedules.step_lr(lr, 3),
        lambda lr: schedules.lambda_lr(lr, lambda t: 1 / (1 + t)),
        lambda lr: schedules.linear_lr(lr),
        lambda lr: schedules.cosine_annealing_lr(lr, 9),
        lambda lr: schedules.one_cycle_lr(lr, 20),
        lambda lr: schedules.cyclic_lr(lr, 2 * lr, 4),
        lambda lr: schedules.swa_lr(lr, 0.01),
    ],
)
def test_the_learning_rate_may_be_traced(make):
    rates = jnp.array([0.1, 0.3])
    swept = jax.vmap(lambda lr: make(lr)(jnp.int32(4)))(rates)
    np.testing.assert_allclose(swept, [make(lr)(4) for lr in [0.1, 0.3]], rtol=1e-6)
    on_the_host = jax.vmap(lambda lr: make(lr)(4))(rates)
    np.testing.assert_allclose(on_the_host, swept, rtol=1e-6)


def test_an_optimizer_takes_it_and_its_momentum_as_torch_does():
    grads = np.random.default_rng(1).standard_normal((60, 3))
    param = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = torch.optim.SGD([param], lr=1.0, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.4, 61)
    for grad in grads:
        param.grad = torch.tensor(grad)
        optimizer.step()
        scheduler.step()

    with jax.enable_x64(True):
        sgd = optax.inject_hyperparams(optax.sgd)(
            learning_rate=schedules.one_cycle_lr(0.4, 61),
            momentum=schedules.one_cycle_momentum(61),
        )

        def step(carry, grad):
            params, state = carry
            updates, state = sgd.update(grad, state, params)
            return (optax.apply_updates(params, updates), state), None

        start = jnp.zeros(3)
        (params, _), _ = jax.jit(
            lambda grads: jax.lax.scan(step, (start, sgd.init(start)), grads)
        )(jnp.asarray(grads))
    np.testing.assert_allclose(params, param.detach().numpy(), rtol=1e-12)


def test_an_optax_alias_takes_it():
    optimizer = optax.sgd(schedules.multi_step_lr(0.1, [2], steps_per_epoch=2))
    state = optimizer.init(jnp.zeros(1))
    update = jax.jit(optimizer.update)
    steps = []
    for _ in range(6):
        updates, state = update(jnp.ones(1), state)
        steps.append(-float(updates[0]))
    np.testing.assert_allclose(steps, [0.1] * 4 + [0.01] * 2, rtol=1e-6)


# ---- printing ------------------------------------------------------------------------


@pytest.mark.parametrize("expression", [*CASES.values(), *MOMENTA.values()])
def test_it_prints_as_the_call_that_makes_it(expression):
    made = schedule(expression)
    assert repr(made).startswith(made.caller + "(")
    if "lambda t" in expression or "lambda c" in expression:
        return
    again = schedule(repr(made))
    assert again == made
    np.testing.assert_array_equal(again(COUNTS), made(COUNTS))


def test_it_leaves_out_what_is_default():
    made = schedules.step_lr(0.1, 30, steps_per_epoch=500)
    assert repr(made) == "step_lr(base_lr=0.1, step_size=30, steps_per_epoch=500)"
    assert repr(schedules.one_cycle_lr(0.4, epochs=3, steps_per_epoch=5)) == (
        "one_cycle_lr(total_steps=15, max_lr=0.4)"
    )

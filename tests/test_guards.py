"""`skip_nonfinite`, `skip_spikes`, and the policy for updates that are not finite."""

import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxclip import clip_by_global_norm, clip_by_value, clip_metrics
from jaxclip._clip_grad import clip_leaves_by_global_norm, clip_leaves_by_value
from jaxclip._core.leaves import split_leaves
from jaxclip._core.mesh import check_axis_name
from jaxclip._core.nonfinite import check_nonfinite, settle_nonfinite
from jaxclip._guards import skip_nonfinite
from jaxclip._spikes import skip_spikes
from jaxclip.parity import assert_trees_close, assert_trees_equal
from tests.processes import run_pytest

INF, NAN = math.inf, math.nan
PARAMS = {"w": np.float32([[1.0, -2.0], [0.5, 3.0]]), "b": np.float32([1.0])}
GUARDS = {
    "skip_nonfinite": skip_nonfinite,
    "skip_spikes": lambda inner, **options: skip_spikes(inner, watch="norm", **options),
    "both": lambda inner, **options: skip_nonfinite(
        skip_spikes(inner, watch="norm", **options), **options
    ),
}
# Other fusions round otherwise: the divisions of Adam, within two ulps.
ROUNDING = {"rtol": 3e-7, "atol": 0.0}
needs_devices = pytest.mark.skipif(
    jax.device_count() < 4, reason="run by test_shards_decide_alike"
)


@pytest.fixture(params=["skip_nonfinite", "skip_spikes"])
def guard(request):
    return GUARDS[request.param]


def gradients(step, scale=1.0):
    """Return the gradients of a step, of norms about 2."""
    rng = np.random.default_rng(step)
    return {
        "w": np.float32(scale) * rng.standard_normal((2, 2)).astype(np.float32),
        "b": np.float32(scale) * rng.standard_normal(1).astype(np.float32),
    }


def bad(value, step=0):
    grads = gradients(step)
    grads["w"][1, 0] = value
    return grads


def run(optimizer, steps, params=PARAMS, **extra_args):
    """Return the updates of each step, and the last state."""
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    every = []
    for grads in steps:
        updates, state = update(grads, state, params, **extra_args)
        every.append(updates)
    return every, state


def skipped_by_one_of(state, number):
    found = optax.tree.get_all_with_path(state, "skipped_count")
    return number in [int(count) for _, count in found]


def counts(state):
    return [int(state.count), int(state.skipped_count), int(state.consecutive)]


# ---- skip_nonfinite


def test_a_bad_step_is_as_if_it_had_not_been(guard):
    good = [gradients(step) for step in range(4)]
    schedule = optax.linear_schedule(1.0, 0.1, 3)
    inner = optax.chain(clip_by_global_norm(1.0), optax.adamw(schedule))
    expected, inner_state = run(inner, good)
    optimizer = guard(inner)
    for value in (NAN, INF, -INF):
        got, state = run(optimizer, [*good[:2], bad(value), bad(value), *good[2:]])
        assert_trees_close([*got[:2], *got[4:]], expected, **ROUNDING)
        assert_trees_equal(got[2:4], [jax.tree.map(np.zeros_like, PARAMS)] * 2)
        assert skipped_by_one_of(state, 2)
        innermost = getattr(state.inner_state, "inner_state", state.inner_state)
        assert_trees_close(innermost, inner_state, **ROUNDING)
        assert clip_metrics(state).count == 4


def test_counts():
    seen = []
    optimizer = skip_nonfinite(optax.sgd(1.0))
    state = optimizer.init(PARAMS)
    assert counts(state) == [0, 0, 0]
    for grads in [gradients(0), bad(NAN), bad(INF), gradients(1), bad(NAN)]:
        _, state = optimizer.update(grads, state)
        seen.append(counts(state))
    assert seen == [[1, 0, 0], [2, 1, 1], [3, 2, 2], [4, 2, 0], [5, 3, 1]]


def test_equals_apply_if_finite_where_that_does_not_give_up():
    rng = np.random.default_rng(0)
    steps = [
        bad(rng.choice([NAN, INF]), step) if rng.random() < 0.3 else gradients(step)
        for step in range(100)
    ]
    inner = optax.adam(1e-2)
    expected, theirs = run(optax.apply_if_finite(inner, 100), steps)
    got, ours = run(skip_nonfinite(inner), steps)
    assert_trees_close(got, expected, **ROUNDING)
    assert_trees_close(ours.inner_state, theirs.inner_state, **ROUNDING)
    assert ours.skipped_count == theirs.total_notfinite > 20
    assert ours.consecutive == theirs.notfinite_count


def test_finite_elements_of_any_size_are_a_step():
    direction = jax.tree.map(lambda p: np.full_like(p, -(5**-0.5)), PARAMS)
    ours = optax.chain(clip_by_global_norm(1.0, eps=0.0), optax.sgd(1.0))
    optimizer = skip_nonfinite(ours)
    for size in (1e-30, 1.0, 3e38, 4e19):
        grads = jax.tree.map(lambda p, size=size: np.full_like(p, size), PARAMS)
        (updates,), state = run(optimizer, [grads])
        assert state.skipped_count == 0
        if size >= 1.0:
            assert_trees_close(updates, direction, rtol=1e-6, atol=0.0)

    # Optax's guard sees finite elements, its clip an infinite norm: no step is made,
    # and nothing says so.
    theirs = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0))
    (updates,), state = run(optax.apply_if_finite(theirs, 5), [grads])
    assert_trees_equal(updates, jax.tree.map(lambda p: -np.zeros_like(p), PARAMS))
    assert state.total_notfinite == 0


def test_one_step_too_many_raises_and_names_the_leaves():
    optimizer = skip_nonfinite(optax.sgd(1.0), max_consecutive=2)
    state = optimizer.init(PARAMS)
    for grads in [bad(NAN)] * 2 + [gradients(0)] + [bad(NAN)] * 2:
        _, state = optimizer.update(grads, state)
    report = (
        "skip_nonfinite: more than max_consecutive steps in a row: gradients are not "
        "finite, in 1 of 2 leaves:\n  ['w']: 0 NaN, 1 infinite"
    )
    with pytest.raises(RuntimeError, match=re.escape(report)):
        optimizer.update(bad(INF), state)
    update = jax.jit(optimizer.update)
    with pytest.raises(jax.errors.JaxRuntimeError, match=re.escape(report)):
        jax.block_until_ready(update(bad(INF), state))
    # A good step is a good step, and begins a new row.
    _, state = update(gradients(0), state)
    assert counts(jax.block_until_ready(update(bad(NAN), state))[1]) == [7, 5, 1]


def test_apply_if_finite_gives_up_and_stays_given_up():
    optimizer = optax.apply_if_finite(optax.sgd(1.0), 2)
    got, state = run(optimizer, [bad(NAN)] * 6)
    let_in = [bool(np.isnan(updates["w"]).any()) for updates in got]
    assert let_in == [False, False, True, True, True, True]
    assert state.notfinite_count == 6


@pytest.mark.parametrize("value", [-1, 1.5, NAN, "two", (1, 2)])
def test_max_consecutive_must_be_a_number_of_steps(value):
    with pytest.raises((ValueError, TypeError), match=r"skip_nonfinite\(max_consec"):
        skip_nonfinite(optax.sgd(1.0), max_consecutive=value)


# ---- skip_spikes


def spikes_oracle(values, window, sigmas, least):
    """Return which steps OLMo-core's rule skips: one column of values for each x."""
    skipped, history = [], []
    for row in np.asarray(values, np.float64):
        past = np.array(history[-window:])
        spike = False
        if len(past) >= least:
            mean, std = past.mean(axis=0), past.std(axis=0, ddof=1)
            spike = bool(np.any(row - mean > sigmas * std))
        skipped.append(spike)
        history.append(row)
    return skipped


def series(steps, seed):
    """Return losses and gradient norms with spikes, drops and a lasting change."""
    rng = np.random.default_rng(seed)
    losses = 3.0 * np.exp(-np.arange(steps) / 200) + 0.05 * rng.standard_normal(steps)
    norms = np.exp(0.2 * rng.standard_normal(steps))
    losses[rng.integers(0, steps, 12)] += rng.uniform(0.1, 2.0, 12)
    norms[rng.integers(0, steps, 12)] *= rng.uniform(1.5, 20.0, 12)
    losses[3 * steps // 5] -= 2.0
    norms[4 * steps // 5 :] += 3.0
    return np.float32(losses), np.float32(norms)


def scan(optimizer):
    """Return what runs all steps at once: the last state, all updates and states."""
    params = np.ones(1, np.float32)

    def step(state, x):
        loss, norm = x
        updates, state = optimizer.update(norm[None], state, params, value=loss)
        return state, (updates, state)

    @jax.jit
    def steps(losses, norms):
        return jax.lax.scan(step, optimizer.init(params), (losses, norms))

    return steps


@pytest.mark.parametrize(
    ("window", "watch"), [(128, "both"), (40, "loss"), (5, "norm")]
)
def test_skips_what_the_published_rule_skips(window, watch):
    losses, norms = series(500, seed=window)
    columns = {"both": [losses, norms], "loss": [losses], "norm": [norms]}[watch]
    least = min(max(20, window // 2) - 1, window)
    sigmas = 6.0 if window > 5 else 4.0
    expected = spikes_oracle(np.stack(columns, 1), window, sigmas, least)
    optimizer = skip_spikes(optax.sgd(1.0), window=window, sigmas=sigmas, watch=watch)
    state, (updates, states) = scan(optimizer)(losses, norms)
    skipped = np.diff(states.skipped_count, prepend=0).astype(bool)
    assert skipped.tolist() == expected
    assert 3 < sum(expected) < 60
    np.testing.assert_array_equal(updates[:, 0], np.where(skipped, 0.0, -norms))
    assert state.count == 500
    assert state.nonfinite_count == 0
    assert state.known == window
    for name, values in (("losses", losses), ("norms", norms)):
        watched = watch == "both" or name.startswith(watch)
        held = values[-window:] if watched else np.zeros(window)
        np.testing.assert_allclose(getattr(state, name), held, rtol=1e-6)


def test_spikes_enter_the_history_so_that_a_change_becomes_normal():
    norms = np.concatenate([np.float32([1.0, 1.1] * 32), np.full(100, 9.0, np.float32)])
    _, (_, states) = scan(skip_spikes(optax.sgd(1.0), watch="norm"))(norms, norms)
    skipped = np.diff(states.skipped_count, prepend=0)
    assert skipped[64] == 1
    assert skipped[70:].sum() == 0


def test_a_value_that_is_not_finite_enters_no_history():
    losses, norms = series(300, seed=1)
    run_all = scan(skip_spikes(optax.adam(1.0)))
    expected, (expected_updates, _) = run_all(losses, norms)
    for value in (NAN, INF, -INF):
        for at in (3, 200):
            for column in (0, 1):
                values = np.insert(np.stack([losses, norms]), at, 1.0, axis=1)
                values[column, at] = value
                state, (updates, _) = run_all(*values)
                assert updates[at] == 0.0
                assert_trees_equal(np.delete(updates, at, axis=0), expected_updates)
                assert state.skipped_count == expected.skipped_count + 1
                assert state.nonfinite_count == 1
                for name in ("known", "losses", "norms", "inner_state"):
                    assert_trees_equal(getattr(state, name), getattr(expected, name))


def olmo_skips(losses, window=128, sigmas=6):
    """Return what the rule does as it is written there, NaN and all, with torch."""
    torch = pytest.importorskip("torch")
    skipped, kept = [], []
    for loss in losses:
        kept = [*kept, torch.tensor(loss)][-(window + 1) :]
        if len(kept) < max(20, window // 2):
            skipped.append(False)
            continue
        std, mean = torch.std_mean(torch.stack(kept[:-1]))
        skipped.append(not bool(kept[-1] - mean <= sigmas * std))
    return skipped


def test_one_nan_stops_the_published_code_for_a_whole_window():
    losses, norms = series(400, seed=2)
    optimizer = skip_spikes(optax.sgd(1.0), watch="loss")
    _, (_, states) = scan(optimizer)(losses, norms)
    ours = np.diff(states.skipped_count, prepend=0).astype(bool)
    assert ours.tolist() == olmo_skips(losses)
    losses[150] = NAN
    theirs = olmo_skips(losses)
    assert all(theirs[150:279])
    assert not all(theirs[279:])
    _, (_, states) = scan(optimizer)(losses, norms)
    assert np.diff(states.skipped_count, prepend=0)[150:279].sum() < 10
    # And in the first steps it trains on the NaN.
    assert not olmo_skips([NAN] * 10)[0]


def test_the_unit_changes_nothing():
    losses, norms = series(300, seed=3)
    run_all = scan(skip_spikes(optax.sgd(1.0)))
    _, (_, expected) = run_all(losses, norms)
    assert expected.skipped_count[-1] > 3
    for unit in (1e-30, 1e30):
        values = (np.float32(x * np.float64(unit)) for x in (losses, norms))
        _, (_, states) = run_all(*values)
        assert_trees_equal(states.skipped_count, expected.skipped_count)


def test_a_norm_beyond_its_dtype_is_a_spike_and_leaves_the_history_finite():
    optimizer = skip_spikes(optax.sgd(1.0), watch="norm")
    params = np.ones(4, np.float32)
    steps = [params * (1 + step % 3) for step in range(70)]
    got, state = run(optimizer, [*steps, np.full(4, 3e38, np.float32)], params)
    assert (counts(state), state.nonfinite_count) == ([71, 1, 1], 0)
    np.testing.assert_array_equal(got[-1], np.zeros(4))
    assert np.isfinite(state.norms).all()


def test_values_that_are_all_equal_are_no_spikes():
    # A mean that is rounded differs from 0.1, and the deviation is 0.
    values = np.full(200, 0.1, np.float32)
    state, _ = scan(skip_spikes(optax.sgd(1.0)))(values, values)
    assert state.skipped_count == 0


def test_with_a_short_window_the_published_code_skips_nothing():
    losses = np.float32([1.0, 1.1] * 20 + [100.0])
    optimizer = skip_spikes(optax.sgd(1.0), window=10, watch="loss")
    state, _ = scan(optimizer)(losses, losses)
    assert state.consecutive == 1
    assert not any(olmo_skips(losses, window=10))


@pytest.mark.parametrize(
    ("options", "least"),
    [({}, 63), ({"window": 30}, 19), ({"window": 8}, 8), ({"min_history": 2}, 2)],
)
def test_min_history_is_when_skipping_begins(options, least):
    run_all = scan(skip_spikes(optax.sgd(1.0), watch="loss", **options))
    losses = np.float32([1.0, 1.1] * 40)
    for at in (least - 1, least):
        spiking = losses.copy()
        spiking[at] = 100.0
        _, (_, states) = run_all(spiking, losses)
        assert states.skipped_count[at] == (at == least)


def test_the_loss_comes_as_value_or_as_loss():
    optimizer = skip_spikes(optax.sgd(1.0))
    state = optimizer.init(PARAMS)
    results = [
        optimizer.update(gradients(0), state, PARAMS, **{name: jnp.float32(2.5)})
        for name in ("value", "loss")
    ]
    assert_trees_equal(*results)
    assert results[0][1].losses[-1] == 2.5
    with pytest.raises(TypeError, match=r"got no loss; expected update\(grads, state"):
        optimizer.update(gradients(0), state, PARAMS)
    with pytest.raises(TypeError, match=r"got an array of shape \(2,\)"):
        optimizer.update(gradients(0), state, PARAMS, value=jnp.zeros(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 1}, r"window=1\): expected a whole number of steps, 2 or more"),
        ({"window": 8.5}, r"window=8\.5\): expected a whole"),
        ({"sigmas": -1.0}, r"sigmas=-1\.0\): expected a number ≥ 0"),
        ({"sigmas": NAN}, r"sigmas=nan\): expected a number ≥ 0"),
        ({"min_history": 1}, r"min_history=1\): expected a whole .* 2 to 128"),
        ({"min_history": 129}, r"min_history=129\): expected a whole .* 2 to 128"),
        ({"watch": "all"}, r"watch='all'\): expected 'both', 'loss' or 'norm'"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        skip_spikes(optax.sgd(1.0), **options)


# ---- What both keep


def test_extra_arguments_reach_the_inner_optimizer(guard):
    inner = optax.chain(
        optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=1, factor=0.5)
    )
    steps = [gradients(step) for step in range(5)]
    expected, _ = run(inner, steps, value=np.float32(1.0))
    got, state = run(guard(inner), steps, value=np.float32(1.0))
    assert_trees_close(got, expected, **ROUNDING)
    assert optax.tree.get(state, "scale") < 1.0


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: optax.chain(clip_by_value(1e6), inner, optax.scale(2.0)),
        lambda inner: optax.masked(inner, {"w": True, "b": False}),
    ],
    ids=["chain", "masked"],
)
def test_in_chain_and_masked(wrap):
    inner, guard = optax.sgd(0.1, momentum=0.5), GUARDS["both"]
    steps = [gradients(0), bad(NAN), gradients(1)]
    expected, _ = run(wrap(inner), [steps[0], steps[2]])
    got, state = run(wrap(guard(inner)), steps)
    assert_trees_close([got[0], got[2]], expected, **ROUNDING)
    np.testing.assert_array_equal(got[1]["w"], np.zeros((2, 2)))
    assert skipped_by_one_of(state, 1)


def test_around_multi_steps_one_micro_batch_is_left_out():
    def in_twos(inner):
        return optax.MultiSteps(inner, 2).gradient_transformation()

    inner, guard = optax.sgd(0.1), GUARDS["both"]
    steps = [gradients(0), bad(NAN), gradients(1), gradients(2), gradients(3)]
    expected, _ = run(in_twos(inner), [steps[0], *steps[2:]])
    got, _ = run(guard(in_twos(inner)), steps)
    assert_trees_close([got[0], *got[2:]], expected, **ROUNDING)
    # Inside it sees the means alone, and MultiSteps keeps a NaN in them for ever.
    got, _ = run(in_twos(guard(inner)), steps)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(got))


def test_with_injected_hyperparameters(guard):
    steps = [gradients(0), bad(NAN), gradients(1)]
    schedule = optax.linear_schedule(1.0, 0.0, 4)
    inner = optax.inject_hyperparams(optax.sgd)(schedule)
    got, _ = run(guard(inner), steps)
    assert_trees_close(got[2], jax.tree.map(lambda g: -0.75 * g, steps[2]), **ROUNDING)


def test_their_own_hyperparameters_can_be_injected():
    injected = optax.inject_hyperparams(skip_spikes, static_args=("window",))
    optimizer = injected(optax.sgd(1.0), window=20, sigmas=6.0, min_history=2)
    losses, norms = series(100, seed=4)
    state, _ = scan(optimizer)(losses, norms)
    plain = skip_spikes(optax.sgd(1.0), window=20, min_history=2)
    expected, _ = scan(plain)(losses, norms)
    assert_trees_equal(state.inner_state, expected)
    assert expected.skipped_count > 0

    traced = optax.inject_hyperparams(skip_spikes)(optax.sgd(1.0), window=20)
    with pytest.raises(ValueError, match=r"static_args=\('window',\)"):
        jax.jit(traced.init)(PARAMS)

    stops = optax.inject_hyperparams(skip_nonfinite)(optax.sgd(1.0), max_consecutive=1)
    _, state = run(stops, [bad(NAN)])
    with pytest.raises(jax.errors.JaxRuntimeError, match="max_consecutive steps in a"):
        jax.block_until_ready(jax.jit(stops.update)(bad(NAN), state))


@pytest.mark.parametrize("dtype", ["bfloat16", "float64", "complex64"])
def test_structure_shapes_and_dtypes_are_fixed(dtype):
    with jax.enable_x64(dtype == "float64"):
        params = {"a": jnp.ones((2, 3), dtype), "n": None, "e": jnp.ones((0,), dtype)}
        params["m"] = optax.MaskedNode()
        optimizer = GUARDS["both"](optax.chain(optax.scale(0.5), optax.trace(0.9)))
        state = optimizer.init(params)
        for grads in (params, jax.tree.map(lambda p: p * NAN, params)):
            updates, after = jax.jit(optimizer.update)(grads, state)
            assert types(after) == types(state)
            assert types(updates) == types(params)
        assert not np.any(updates["a"])


def types(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree)


def test_jit_is_eager(guard):
    optimizer = guard(optax.sgd(1.0, momentum=0.5))
    state = optimizer.init(PARAMS)
    for grads in (gradients(0), bad(NAN), gradients(1)):
        with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
            eager = optimizer.update(grads, state)
        jitted = jax.jit(optimizer.update)(grads, state)
        assert_trees_close(jitted, eager, **ROUNDING)
        state = eager[1]


def test_in_vmap_each_run_decides_for_itself(guard):
    optimizer = guard(optax.sgd(0.1, momentum=0.5))
    runs = [gradients(0), bad(NAN), gradients(1), bad(INF)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *runs)
    states = jax.vmap(lambda _: optimizer.init(PARAMS))(np.arange(4))
    updates, states = jax.jit(jax.vmap(optimizer.update))(stacked, states)
    one = jax.jit(optimizer.update)
    for index, grads in enumerate(runs):
        expected = one(grads, optimizer.init(PARAMS))
        got = jax.tree.map(lambda leaf, i=index: leaf[i], (updates, states))
        assert_trees_close(got, expected, **ROUNDING)


def test_states_can_be_donated_and_hold_no_nan(guard):
    optimizer = guard(optax.adam(0.1))
    state = jax.tree.map(jnp.asarray, optimizer.init(PARAMS))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    jax.block_until_ready(
        jax.jit(optimizer.update, donate_argnums=1)(gradients(0), state)
    )


def test_float0_leaves_and_empty_trees(guard):
    optimizer = guard(optax.identity())
    params = {"i": 3, "w": np.ones(2, np.float32)}
    grads = {"i": np.zeros((), jax.dtypes.float0), "w": np.float32([1.0, 2.0])}
    updates, state = optimizer.update(grads, optimizer.init(params))
    np.testing.assert_array_equal(updates["w"], grads["w"])
    assert updates["i"].dtype == jax.dtypes.float0
    grads["w"][0] = NAN
    np.testing.assert_array_equal(optimizer.update(grads, state)[0]["w"], np.zeros(2))
    updates, state = optimizer.update({}, optimizer.init({}))
    assert (updates, int(state.count), int(state.skipped_count)) == ({}, 1, 0)
    with pytest.raises(TypeError, match=r"the leaf \['w'\] is of type int32"):
        optimizer.update({"w": np.int32([1])}, optimizer.init({"w": np.int32([1])}))


# ---- Over devices

SPECS = {"w": P("x", "y"), "v": P(None, "y"), "b": P()}


def sharded_gradients(value, place):
    grads = {
        "w": np.float32([[3.0, 0.0], [0.5, -0.25]]),
        "v": np.float32([[2.0, -1.0]]),
        "b": np.float32([1.0, -0.5, 0.25]),
    }
    grads[place].flat[-1] = value
    return grads


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh(
        (2, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2
    )


def sharded_inner(axis_name=None):
    return optax.chain(
        clip_by_global_norm(1.0, axis_name=axis_name), optax.sgd(0.1, momentum=0.5)
    )


def in_shard_map(guard, mesh, specs, axis_name=None):
    """Return what updates once, each leaf and its moments laid out by its spec."""
    optimizer = guard(sharded_inner(axis_name), axis_name=axis_name)
    grads = sharded_gradients(1.0, "w")
    states = jax.tree_util.tree_map_with_path(
        lambda path, _: specs.get(getattr(path[-1], "key", None), P()),
        optimizer.init(grads),
    )
    update = jax.jit(
        jax.shard_map(
            optimizer.update,
            mesh=mesh,
            in_specs=(specs, states),
            out_specs=(specs, states),
            check_vma=axis_name is None,
        )
    )
    return lambda grads: update(grads, optimizer.init(grads))


def assert_alike(got, expected):
    """Compare values, and what each device holds of them."""
    assert_trees_close(got, expected, rtol=1e-6, atol=0.0)
    for leaf in jax.tree.leaves(got):
        parts = {}
        for shard in leaf.addressable_shards:
            data = np.asarray(shard.data)
            np.testing.assert_array_equal(
                data, parts.setdefault(str(shard.index), data)
            )


CASES = [(1.0, "w"), (NAN, "w"), (INF, "v"), (NAN, "b")]


@needs_devices
def test_sharded(guard, mesh):
    optimizer = guard(sharded_inner())
    one = jax.jit(lambda grads: optimizer.update(grads, optimizer.init(grads)))
    typed = in_shard_map(guard, mesh, SPECS)
    shardings = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
    for case in CASES:
        grads = sharded_gradients(*case)
        expected = one(grads)
        assert_alike(typed(grads), expected)
        assert_alike(one(jax.device_put(grads, shardings)), expected)


@needs_devices
def test_sharded_without_types(guard, mesh):
    optimizer = guard(sharded_inner())
    by_device = dict.fromkeys(SPECS, P(("x", "y")))
    named = in_shard_map(guard, mesh, by_device, axis_name=("x", "y"))
    for case in CASES:
        # One device has the bad element.
        parts = [sharded_gradients(1.0, "w")] * 3 + [sharded_gradients(*case)]
        grads = jax.tree.map(lambda *leaves: np.stack(leaves), *parts)
        assert_alike(named(grads), optimizer.update(grads, optimizer.init(grads)))


@needs_devices
@pytest.mark.parametrize("check_vma", [True, False])
def test_sharded_losses_are_averaged(mesh, check_vma):
    optimizer = skip_spikes(
        optax.sgd(1.0), min_history=2, axis_name=None if check_vma else ("x", "y")
    )
    grads = np.ones(2, np.float32)

    def step(state, loss):
        updates, state = optimizer.update(grads, state, value=loss[0])
        return state, updates.sum()

    steps = jax.jit(
        jax.shard_map(
            lambda losses: jax.lax.scan(step, optimizer.init(grads), losses),
            mesh=mesh,
            in_specs=P(None, ("x", "y")),
            out_specs=P(),
            check_vma=check_vma,
        )
    )
    losses = np.float32([[1, 2, 3, 4], [1.5, 2, 3, 4], [1, 2, 3, 3.5], [1, 2, 3, 4]])
    for last in (4.0, 99.0, NAN):
        losses[-1, -1] = last
        state, updates = steps(losses)
        assert (updates[-1] == 0.0) == (last != 4.0)
        assert state.nonfinite_count == np.isnan(last)
        for shard in state.losses.addressable_shards:
            # The mean of the last step but one; a NaN did not push it on.
            assert shard.data[-1 if np.isnan(last) else -2] == losses[2].mean()


@needs_devices
@pytest.mark.parametrize("check_vma", [True, False])
def test_sharded_too_many_in_a_row_raise(mesh, check_vma):
    optimizer = skip_nonfinite(
        optax.sgd(1.0), max_consecutive=0, axis_name=None if check_vma else ("x", "y")
    )
    grads = np.float32([1.0, NAN, 1.0, 1.0])
    update = jax.jit(
        jax.shard_map(
            optimizer.update,
            mesh=mesh,
            in_specs=(P(("x", "y")), P()),
            out_specs=(P(("x", "y")), P()),
            check_vma=check_vma,
        )
    )
    jax.block_until_ready(update(np.ones(4, np.float32), optimizer.init(grads)))
    with pytest.raises(jax.errors.JaxRuntimeError, match="1 NaN, 0 infinite"):
        jax.block_until_ready(update(grads, optimizer.init(grads)))


@needs_devices
def test_sharded_apply_if_finite_is_of_two_minds(mesh):
    optimizer = optax.apply_if_finite(optax.identity(), 5)
    grads = np.float32([1.0, NAN, 1.0, 1.0])
    update = jax.shard_map(
        lambda g: optimizer.update(g, optimizer.init(g))[0],
        mesh=mesh,
        in_specs=P(("x", "y")),
        out_specs=P(("x", "y")),
        check_vma=False,
    )
    np.testing.assert_array_equal(jax.jit(update)(grads), [1.0, 0.0, 1.0, 1.0])


@pytest.mark.skipif(jax.device_count() >= 4, reason="the tests ran in this process")
def test_shards_decide_alike():
    """Run the tests of shards where there are four devices."""
    run = run_pytest(Path(__file__), "-k", "test_sharded", devices=4)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "9 passed" in run.stdout


# ---- The policy for clips


@pytest.mark.parametrize("clip", ["norm", "value"])
@pytest.mark.parametrize(("jitted", "value"), [(False, NAN), (True, INF)])
def test_policies(clip, jitted, value):
    def clipped(updates, nonfinite):
        leaves, rebuild = split_leaves(updates, "clip")
        if clip == "norm":
            made = clip_leaves_by_global_norm(
                leaves, 1.0, norm_type=2.0, eps=0.0, axis_names=check_axis_name(None)
            )
        else:
            made = clip_leaves_by_value(leaves, 1.0, axis_names=check_axis_name(None))
        return rebuild(
            settle_nonfinite(
                updates, made.leaves, made.finite, nonfinite=nonfinite, caller="clip"
            )
        )

    function = jax.jit(clipped, static_argnums=1) if jitted else clipped
    good, broken = {**gradients(0), "n": None}, {**bad(value), "n": None}
    for policy in ("zero", "raise"):
        assert_trees_equal(function(good, policy), function(good, "propagate"))
    if clip == "norm" or np.isnan(value):
        assert np.isnan(function(broken, "propagate")["w"]).any()
    zeroed = function(broken, "zero")
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(zeroed))
    error = jax.errors.JaxRuntimeError if jitted else RuntimeError
    with pytest.raises(error, match=r"clip: gradients are not finite, in 1 of 2 lea"):
        jax.block_until_ready(function(broken, "raise"))


def test_policies_are_three():
    assert check_nonfinite("clip", "zero") == "zero"
    with pytest.raises(ValueError, match=r"clip\(nonfinite='skip'\): expected 'propa"):
        check_nonfinite("clip", "skip")

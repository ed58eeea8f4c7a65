import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxclip import clip_metrics
from jaxclip._methods.per_example import clip_per_example_grads, per_example_clip
from jaxclip.parity import assert_trees_close, assert_trees_equal

SHAPES = {"w": (3, 2), "b": (4,), "s": ()}
BATCH = 6
MODES = [None, "uniform", "scaled"]


def draw(seed, batch=BATCH):
    """Return a gradient for each of a batch of examples, one of them a spike."""
    generator = np.random.default_rng(seed)
    sizes = 0.4 * generator.lognormal(size=batch)
    sizes[-1] *= 1e4
    return {
        name: np.float32(
            generator.normal(size=(batch, *shape))
            * sizes.reshape(-1, *[1] * len(shape))
        )
        for name, shape in SHAPES.items()
    }


def oracle(grads, max_norm, per_layer):
    """Return the sum, and each example's norm and least factor: one by one."""
    total = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    sizes = {name: int(np.prod(shape)) for name, shape in SHAPES.items()}
    norms, coefs = [], []
    for i in range(BATCH):
        example = {name: np.float64(leaf[i]) for name, leaf in grads.items()}
        by_leaf = {name: np.sqrt(np.sum(leaf**2)) for name, leaf in example.items()}
        norm = np.sqrt(sum(each**2 for each in by_leaf.values()))
        norms.append(norm)
        if not np.isfinite(norm):
            coefs.append(0.0)
            continue
        factors = {}
        for name in example:
            if per_layer is None:
                factors[name] = min(1.0, max_norm / norm)
                continue
            share = 1 / len(SHAPES)
            if per_layer == "scaled":
                share = sizes[name] / sum(sizes.values())
            factors[name] = min(1.0, max_norm * np.sqrt(share) / by_leaf[name])
        coefs.append(min(factors.values()))
        for name in example:
            total[name] += example[name] * factors[name]
    return total, np.array(norms), np.array(coefs)


def assert_close(got, expected, rtol=1e-6):
    assert got.keys() == expected.keys()
    for name in got:
        # Terms of a sum may cancel, but none is larger than 1.
        np.testing.assert_allclose(
            got[name], expected[name], rtol=rtol, atol=rtol, err_msg=name
        )


def summed(grads, per_layer):
    return clip_per_example_grads(grads, 1.0, per_layer=per_layer, reduction="sum")


@pytest.mark.parametrize("per_layer", MODES)
def test_it_is_the_formula_over_200_steps(per_layer):
    clip = per_example_clip(1.0, per_layer=per_layer, reduction="sum")
    state = clip.init(draw(0))
    scaled = 0
    for seed in range(200):
        grads = draw(seed)
        expected, norms, coefs = oracle(grads, 1.0, per_layer)
        updates, state = clip.update(grads, state)
        assert_close(updates, expected)
        total, report = summed(grads, per_layer)
        assert_close(total, updates)
        np.testing.assert_allclose(report.norms, norms, rtol=1e-6)
        np.testing.assert_allclose(report.clip_coefs, coefs, rtol=1e-6)
        assert report.clipped == state.clipped_examples == np.sum(coefs < 1)
        assert report.dropped == state.dropped_examples == 0
        np.testing.assert_allclose(state.clip.total_norm, norms.max(), rtol=1e-6)
        np.testing.assert_allclose(state.clip.clip_coef, coefs.min(), rtol=1e-6)
        assert state.clip.clipped_norm <= 1.0 + 1e-6
        scaled += np.sum(coefs < 1)
    assert 200 < scaled < 200 * BATCH


def test_it_is_optax_s_where_all_is_finite_over_200_steps():
    theirs = {
        None: jax.jit(optax.per_example_global_norm_clip),
        "uniform": jax.jit(optax.per_example_layer_norm_clip),
        "scaled": jax.jit(
            lambda g, c: optax.per_example_layer_norm_clip(g, c, uniform=False)
        ),
    }
    for seed in range(200):
        grads = draw(1000 + seed)
        leaves = jax.tree.leaves(grads)
        for mode in MODES:
            got, report = summed(leaves, mode)
            expected, count = theirs[mode](leaves, 1.0)
            assert_close(dict(enumerate(got)), dict(enumerate(expected)))
            if mode is None:
                assert report.clipped == count


@pytest.mark.parametrize("per_layer", MODES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_example_that_is_not_finite_is_dropped_from_every_leaf(bad, per_layer):
    grads = draw(1)
    grads["b"][2, 1] = bad
    clip = per_example_clip(1.0, per_layer=per_layer, reduction="sum")
    updates, state = clip.update(grads, clip.init(grads))
    expected, _, coefs = oracle(grads, 1.0, per_layer)
    assert_close(updates, expected)
    assert (state.dropped_examples, state.clip.nonfinite_count) == (1, 1)
    assert state.clipped_examples == np.sum((coefs > 0) & (coefs < 1))
    assert all(np.isfinite(leaf) for leaf in jax.tree.leaves(state))
    # The next step is like any other.
    after = clip.update(draw(2), state)
    fresh = clip.update(draw(2), clip.init(grads))
    assert_trees_equal(after[0], fresh[0])
    assert_trees_equal(after[1].clip.total_norm, fresh[1].clip.total_norm)


def test_optax_lets_such_an_example_through():
    grads = [np.float32([[np.nan, 1.0], [3.0, 4.0]])]
    total, _ = optax.per_example_global_norm_clip(grads, 1.0)
    assert np.isnan(total[0]).any()
    total, report = clip_per_example_grads(grads, 1.0, reduction="sum")
    np.testing.assert_allclose(total[0], [0.6, 0.8], rtol=1e-6)
    assert (report.dropped, report.clipped) == (1, 1)
    assert np.isnan(report.norms[0])


def test_a_dropped_example_counts_in_the_mean():
    grads = np.float32([[np.nan], [0.5], [0.25], [0.0]])
    mean, report = clip_per_example_grads(grads, 1.0)
    np.testing.assert_allclose(mean, [0.1875], rtol=1e-6)
    np.testing.assert_array_equal(report.clip_coefs, [0.0, 1.0, 1.0, 1.0])


def test_when_all_are_dropped_nothing_is_left():
    mean, report = clip_per_example_grads(np.full((3, 2), np.nan, np.float32), 1.0)
    np.testing.assert_array_equal(mean, [0.0, 0.0])
    assert report.dropped == 3


@pytest.mark.parametrize("per_layer", MODES)
@pytest.mark.parametrize("size", [1e-30, 4e19, 3e38])
def test_gradients_of_any_magnitude_keep_their_direction(size, per_layer):
    grads = {"a": np.float32([[size, 0.0], [0.0, -size]]), "b": np.zeros((2, 2), "f4")}
    limit = 1e-32 if size < 1 else 1.0
    total, report = clip_per_example_grads(
        grads, limit, per_layer=per_layer, reduction="sum"
    )
    share = np.float32(limit / (1.0 if per_layer is None else np.sqrt(2)))
    np.testing.assert_allclose(total["a"], [share, -share], rtol=1e-6)
    np.testing.assert_allclose(report.norms, [size, size], rtol=1e-6)
    assert (report.clipped, report.dropped) == (2, 0)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    grads = jnp.ones((1000, 1), dtype)
    total, _ = clip_per_example_grads(grads, 1.0, reduction="sum")
    assert total.dtype == dtype
    assert total[0] == 1000.0
    grads = jnp.full((4, 1000), 300.0, dtype)
    mean, report = clip_per_example_grads(grads, 1.0)
    np.testing.assert_allclose(
        np.float32(mean), 1000**-0.5, rtol=float(jnp.finfo(dtype).eps)
    )
    np.testing.assert_allclose(report.norms, 300 * 1000**0.5, rtol=1e-6)


def test_complex_gradients():
    grads = np.complex64([[3 + 4j], [0.5j]])
    total, report = clip_per_example_grads(grads, 1.0, reduction="sum")
    np.testing.assert_allclose(total, [0.6 + 1.3j], rtol=1e-6)
    np.testing.assert_allclose(report.norms, [5.0, 0.5], rtol=1e-6)


def test_leaves_that_hold_nothing_are_no_layers():
    grads = {
        "w": np.float32([[3.0], [0.5]]),
        "none": None,
        "empty": np.zeros((2, 0), np.float32),
    }
    total, _ = clip_per_example_grads(grads, 1.0, per_layer="uniform", reduction="sum")
    np.testing.assert_allclose(total.pop("w"), [1.5], rtol=1e-6)
    assert total.pop("empty").shape == (0,)
    assert total == {"none": None}


@pytest.mark.parametrize("per_layer", MODES)
def test_no_leaves_and_no_examples(per_layer):
    total, report = clip_per_example_grads({}, 1.0, per_layer=per_layer)
    assert (total, report.norms.shape) == ({}, (0,))
    total, report = clip_per_example_grads(np.zeros((0, 2), "f4"), 1.0)
    np.testing.assert_array_equal(total, [0.0, 0.0])
    assert (report.clipped, report.dropped) == (0, 0)


def test_zero_gradients_and_a_threshold_of_0():
    with jax.debug_nans(True):
        zeros = jax.tree.map(np.zeros_like, draw(0))
        for max_norm in (0.0, 1.0):
            mean, report = clip_per_example_grads(zeros, max_norm)
            assert not any(leaf.any() for leaf in jax.tree.leaves(mean))
            assert (report.clipped, report.dropped) == (0, 0)
        mean, report = clip_per_example_grads(draw(0), 0.0)
        assert not any(leaf.any() for leaf in jax.tree.leaves(mean))
        assert report.clipped == BATCH


def test_in_a_chain_and_a_scan_with_a_schedule():
    schedule = optax.linear_schedule(1.0, 0.0, 2)
    optimizer = optax.chain(per_example_clip(schedule), optax.sgd(1.0))
    params = {name: jnp.zeros(shape) for name, shape in SHAPES.items()}

    def train(state, grads):
        updates, state = optimizer.update(grads, state, params)
        return state, (updates, clip_metrics(state).clipped_norm)

    batches = [draw(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
    state, (updates, norms) = jax.lax.scan(train, optimizer.init(params), stacked)
    np.testing.assert_allclose(norms, [1.0, 0.5, 0.0], rtol=1e-6)
    assert clip_metrics(state).count == 3
    expected, _, _ = oracle(batches[1], 0.5, None)
    second = jax.tree.map(lambda x: -x[1] * BATCH, updates)
    assert_close(second, expected)


def test_a_batch_over_shards():
    # vmap names axes as a mesh does.
    grads = draw(3)
    grads["b"][1, 0] = np.nan
    clip = per_example_clip(1.0, axis_name="x")
    expected, expected_state = per_example_clip(1.0).update(grads, clip.init(grads))
    shards = jax.tree.map(lambda x: x.reshape(3, 2, *x.shape[1:]), grads)

    def shard(grads):
        return clip.update(grads, clip.init(grads))

    got, state = jax.vmap(shard, axis_name="x", out_axes=None)(shards)
    assert_trees_close(got, expected, rtol=1e-6, atol=1e-7)
    assert_trees_close(state, expected_state, rtol=1e-6, atol=0.0)


def test_in_shard_map_the_axes_of_the_batch_are_named():
    # Types are tracked on a mesh of one device too.
    grads = draw(4)
    axes = (AxisType.Auto, AxisType.Auto)
    mesh = jax.make_mesh((1, 1), ("data", "model"), axis_types=axes)
    specs = {"w": P("data", None, "model"), "b": P("data"), "s": P("data")}
    sums = {"w": P(None, "model"), "b": P(), "s": P()}
    for mode in MODES:
        clip = per_example_clip(1.0, per_layer=mode, axis_name="data")
        state = clip.init(grads)
        update = jax.shard_map(
            clip.update,
            mesh=mesh,
            in_specs=(specs, P()),
            out_specs=(sums, P()),
        )
        expected = per_example_clip(1.0, per_layer=mode).update(grads, state)
        got = jax.jit(update)(grads, state)
        assert_trees_close(got, expected, rtol=1e-6, atol=1e-7)

    update = jax.shard_map(
        lambda grads: clip_per_example_grads(grads, 1.0)[0],
        mesh=mesh,
        in_specs=(specs,),
        out_specs=sums,
    )
    with pytest.raises(
        ValueError, match=r"is sharded over the mesh axes \['data'\]. Na"
    ):
        update(grads)


def test_arguments_are_checked():
    grads = {"a": jnp.ones((2, 1)), "b": jnp.ones((3, 1))}
    message = (
        r"the leaf \['b'\] has the shape \(3, 1\), and \['a'\] has \(2, 1\); expec"
    )
    with pytest.raises(ValueError, match=message):
        clip_per_example_grads(grads, 1.0)
    with pytest.raises(ValueError, match="expected the batch for first axis"):
        clip_per_example_grads(jnp.ones(()), 1.0)
    with pytest.raises(
        ValueError, match=r"per_example_clip\(per_layer='all'\): expecte"
    ):
        per_example_clip(1.0, per_layer="all")
    with pytest.raises(
        ValueError, match=r"\(reduction='max'\): expected 'mean' or 'su"
    ):
        clip_per_example_grads(grads, 1.0, reduction="max")
    with pytest.raises(ValueError, match=r"clip_per_example_grads\(max_norm=-1.0\)"):
        clip_per_example_grads(grads, -1.0)

"""AGC against its formula, and against timm's, Optax's and pytorch_optimizer's.

The ranks of leaves are those of Flax: Dense, Conv1D, Conv2D and Conv3D kernels, the
output's axis last. torch's have it first.
"""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxclip import clip_metrics
from jaxclip._core.paths import by_path
from jaxclip._methods.agc import adaptive_grad_clip
from jaxclip.parity import assert_trees_close, assert_trees_equal

SHAPES = {
    "scalar": (),
    "bias": (4,),
    "dense": (3, 4),
    "conv1d": (2, 3, 4),
    "conv2d": (2, 2, 3, 4),
    "conv3d": (2, 1, 2, 3, 4),
}
CLIPPING, EPS = 0.01, 1e-3


def draw(seed, size=1.0):
    generator = np.random.default_rng(seed)
    return {
        name: np.asarray(size * generator.normal(size=shape), np.float32)
        for name, shape in SHAPES.items()
    }


PARAMS = draw(0) | {"bias": np.zeros(4, np.float32)}


def few(tree):
    """Leave out what only takes time to compile where no rank is looked at."""
    return {name: tree[name] for name in ("bias", "dense")}


FEW = few(PARAMS)


def steps(count):
    """Return gradients around the threshold, with a spike every tenth step."""
    for index in range(count):
        yield draw(index + 1, 3e-2 * (1e4 if index % 10 == 9 else 1.0))


def to_torch_layout(tree):
    return {
        name: np.array(np.moveaxis(x, -1, 0), order="C") if x.ndim else x
        for name, x in tree.items()
    }


def oracle(grads, params, clipping=CLIPPING, eps=EPS):
    """Return clipped gradients, and the largest ratio of any unit, unit by unit."""
    clipped, largest = {}, 0.0
    for name in grads:
        g, w = np.float64(grads[name]), np.float64(params[name])
        rows = (g.reshape(1, -1), w.reshape(1, -1))
        if g.ndim > 1:  # a row for each output
            rows = [np.moveaxis(x, -1, 0).reshape(x.shape[-1], -1) for x in (g, w)]
        units = []
        for g_unit, w_unit in zip(*rows, strict=True):
            bound = clipping * max(np.sqrt(np.sum(w_unit**2)), eps)
            length = np.sqrt(np.sum(g_unit**2))
            units.append(g_unit * bound / length if length > bound else g_unit)
            largest = max(largest, length / (bound / clipping))
        out = np.stack(units)
        if g.ndim > 1:
            out = np.moveaxis(out.reshape(g.shape[-1], *g.shape[:-1]), 0, -1)
        clipped[name] = out.reshape(g.shape)
    return clipped, largest


def step(clip, grads, params=PARAMS):
    return clip.update(grads, clip.init(params), params)


def assert_close(got, expected, rtol=1e-6):
    assert got.keys() == expected.keys()
    for name in got:
        np.testing.assert_allclose(
            got[name], expected[name], rtol=rtol, atol=0.0, err_msg=name
        )


def test_it_is_the_paper_s_formula_over_200_steps():
    clip = adaptive_grad_clip()
    state = clip.init(PARAMS)
    for grads in steps(200):
        updates, state = clip.update(grads, state, PARAMS)
        expected, largest = oracle(grads, PARAMS)
        assert_close(updates, expected)
        np.testing.assert_allclose(state.total_norm, largest, rtol=1e-6)
        np.testing.assert_allclose(
            state.clipped_norm, min(largest, CLIPPING), rtol=1e-6
        )
        np.testing.assert_allclose(
            state.clip_coef, min(1.0, CLIPPING / largest), rtol=1e-6
        )
    assert clip_metrics(state).clipped_count == 200


def test_below_the_threshold_nothing_changes():
    grads = jax.tree.map(lambda x: x * np.float32(1e-7), few(draw(3)))
    updates, state = step(adaptive_grad_clip(), grads, FEW)
    assert_trees_equal(updates, grads)
    assert clip_metrics(state).clipped_count == 0


# ---- against code of others ----------------------------------------------------------


def timm_clip():
    spec = importlib.util.find_spec("timm")
    if spec is None or spec.origin is None:
        pytest.skip("timm is not installed")
    # The package itself wants torchvision; this one file does not.
    file = Path(spec.origin).parent / "utils" / "agc.py"
    spec = importlib.util.spec_from_file_location("timm_agc", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def clip(grad, param):
        parameter = torch.nn.Parameter(torch.from_numpy(param))
        parameter.grad = torch.from_numpy(grad).clone()
        module.adaptive_clip_grad([parameter], CLIPPING, EPS)
        return parameter.grad.numpy()

    return clip


def pytorch_optimizer_clip():
    module = pytest.importorskip("pytorch_optimizer.optimizer.agc")

    def clip(grad, param):
        grad, param = torch.from_numpy(grad), torch.from_numpy(param)
        return module.agc(param, grad, EPS, CLIPPING).numpy()

    return clip


@pytest.mark.parametrize(
    ("make", "without"),
    [(timm_clip, ()), (pytorch_optimizer_clip, ("conv1d",))],
    ids=["timm", "pytorch_optimizer"],
)
def test_in_torch_s_layout_it_is_what_torch_users_have_over_200_steps(make, without):
    peer, params = make(), to_torch_layout(PARAMS)
    clip = adaptive_grad_clip(CLIPPING, axis="torch")
    state = clip.init(params)
    for grads in map(to_torch_layout, steps(200)):
        updates, state = clip.update(grads, state, params)
        for name in grads.keys() - set(without):
            expected = peer(grads[name], params[name])
            np.testing.assert_allclose(updates[name], expected, rtol=1e-6)


def test_in_flax_s_layout_it_is_optax_s_but_for_rank_3_over_200_steps():
    clip, peer = adaptive_grad_clip(CLIPPING), optax.adaptive_grad_clip(CLIPPING)
    peer_update = jax.jit(peer.update)
    state, peer_state = clip.init(PARAMS), peer.init(PARAMS)
    for grads in steps(200):
        updates, state = clip.update(grads, state, PARAMS)
        expected, peer_state = peer_update(grads, peer_state, PARAMS)
        del updates["conv1d"], expected["conv1d"]
        assert_close(updates, expected)


def test_rank_3_is_one_rule_in_both_layouts_where_three_libraries_have_three():
    grads = draw(10)
    kernel, weight = grads["conv1d"], PARAMS["conv1d"]
    expected = oracle({"w": kernel}, {"w": weight})[0]["w"]

    def clip(axis, grad, param):
        return step(adaptive_grad_clip(CLIPPING, axis=axis), grad, param)[0]

    def torch_layout(x):
        return np.ascontiguousarray(np.moveaxis(x, -1, 0).swapaxes(1, 2))

    def flax_layout(x):
        return np.moveaxis(np.swapaxes(x, 1, 2), 0, -1)

    kernel_torch, weight_torch = torch_layout(kernel), torch_layout(weight)
    np.testing.assert_allclose(clip("flax", kernel, weight), expected, rtol=1e-6)
    got = flax_layout(clip("torch", kernel_torch, weight_torch))
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    # timm's units are the outputs, as the paper's are.
    got = flax_layout(timm_clip()(kernel_torch, weight_torch))
    np.testing.assert_allclose(got, expected, rtol=1e-6)

    def difference(got):
        return np.max(np.abs(got - expected) / np.abs(expected))

    got, _ = step(optax.adaptive_grad_clip(CLIPPING), kernel, weight)
    assert difference(got) > 0.1
    assert_trees_close(clip(0, kernel, weight), got, rtol=1e-6, atol=0.0)
    got = pytorch_optimizer_clip()(kernel_torch, weight_torch)
    assert difference(flax_layout(got)) > 0.1
    np.testing.assert_allclose(clip(1, kernel_torch, weight_torch), got, rtol=1e-6)


def test_a_kernel_of_one_input_has_units_where_optax_sees_a_vector():
    grad, param = np.float32([[1.0, 0.001]]), np.float32([[1.0, 1.0]])
    updates, _ = step(adaptive_grad_clip(0.1), grad, param)
    np.testing.assert_allclose(updates, [[0.1, 0.001]], rtol=1e-6)
    updates, _ = step(optax.adaptive_grad_clip(0.1), grad, param)
    assert updates[0, 0] > 0.14


def test_norms_below_1e_6_are_not_taken_for_1e_6():
    grad, param = np.float32([1e-7]), np.float32([0.0])
    updates, _ = step(adaptive_grad_clip(0.01, eps=1e-6), grad, param)
    np.testing.assert_allclose(updates, [1e-8], rtol=1e-6)
    updates, _ = step(optax.adaptive_grad_clip(0.01, eps=1e-6), grad, param)
    np.testing.assert_allclose(updates, [1e-9], rtol=1e-6)


# ---- axis, where ---------------------------------------------------------------------


def test_axis_may_be_a_function_of_path_and_shape():
    params = {"query": {"kernel": draw(1)["conv1d"]}, "mlp": draw(2)["conv1d"]}
    grads = {"query": {"kernel": draw(3)["conv1d"]}, "mlp": draw(4)["conv1d"]}
    seen = []

    def axis(path, shape):
        seen.append((path, shape))
        return 0 if "query" in path else "flax"

    updates, _ = step(adaptive_grad_clip(axis=axis), grads, params)
    assert seen == [("mlp", (2, 3, 4)), ("query/kernel", (2, 3, 4))]
    for axis, part in ((0, "query"), ("flax", "mlp")):
        expected, _ = step(adaptive_grad_clip(axis=axis), grads[part], params[part])
        assert_trees_close(updates[part], expected, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("axis", [(0, 1), (-2, 0), [1, 0]])
def test_several_axes(axis):
    grads, params = ({"conv1d": draw(seed)["conv1d"]} for seed in (5, 6))
    updates, _ = step(adaptive_grad_clip(axis=axis), grads, params)
    assert_close(updates, oracle(grads, params)[0])


def test_without_any_axis_each_element_is_a_unit():
    grad, param = np.float32([[3.0, 0.01]]), np.float32([[1.0, 1.0]])
    updates, _ = step(adaptive_grad_clip(0.1, axis=()), grad, param)
    np.testing.assert_allclose(updates, [[0.1, 0.01]], rtol=1e-6)


@pytest.mark.parametrize("axis", ["keras", 1.5, None])
def test_an_axis_of_another_kind_is_refused(axis):
    message = r"adaptive_grad_clip\(axis=.*\): expected 'flax', 'torch', an integer, s"
    with pytest.raises(ValueError, match=message):
        step(adaptive_grad_clip(axis=axis), draw(1))


def test_an_axis_that_a_leaf_has_not_names_the_leaf():
    with pytest.raises(
        ValueError, match="the leaf 'bias' of shape \\(4,\\) has no suc"
    ):
        step(adaptive_grad_clip(axis=1), draw(1))


def test_where_leaves_out_heads_and_biases():
    where = by_path(lambda path: path != "bias")
    grads = few(draw(1)) | {"bias": np.full(4, np.nan, np.float32)}
    updates, state = step(adaptive_grad_clip(where=where), grads, FEW)
    expected, _ = oracle(few(draw(1)), FEW)
    assert_close(updates, grads | {"dense": expected["dense"]})
    # What is left out is not measured either.
    assert clip_metrics(state).nonfinite_count == 0


# ---- numbers -------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1e-30, 300.0, 4e19, 2e38])
def test_gradients_of_any_magnitude_keep_their_direction(size):
    signs = np.float32([[1.0, 0.0], [-1.0, 0.5]])
    # Weights small enough for gradients of 1e-30 to be clipped.
    weight = np.float32([[3.0, 1.0], [4.0, 1.0]]) * np.float32(min(1.0, size))
    grad = np.float32(size) * signs
    clip = adaptive_grad_clip(0.01, eps=0.0)
    updates, state = jax.jit(clip.update)(grad, clip.init(weight), weight)
    expected, _ = oracle({"w": grad}, {"w": weight}, eps=0.0)
    np.testing.assert_allclose(updates, expected["w"], rtol=1e-6)
    assert (state.nonfinite_count, state.clipped_count) == (0, 1)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    grad, weight = jnp.full((500, 2), 300.0, dtype), jnp.full((500, 2), 2.0, dtype)
    clip = adaptive_grad_clip(0.01)
    updates, state = clip.update(grad, clip.init(weight), weight)
    assert updates.dtype == dtype
    assert state.total_norm.dtype == jnp.float32
    np.testing.assert_allclose(
        np.float32(updates), 0.02, rtol=float(jnp.finfo(dtype).eps)
    )
    np.testing.assert_allclose(state.total_norm, 150.0, rtol=1e-6)


def test_zero_gradients_and_zero_weights():
    zeros = jax.tree.map(np.zeros_like, FEW)
    with jax.debug_nans(True), jax.debug_infs(True):
        updates, state = step(adaptive_grad_clip(), zeros, zeros)
        assert_trees_equal(updates, zeros)
        assert (state.total_norm, state.clip_coef) == (0.0, 1.0)
        # Without eps, what is 0 stays there.
        updates, state = step(adaptive_grad_clip(eps=0.0), zeros, zeros)
        assert (state.total_norm, state.clip_coef) == (0.0, 1.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_unit_that_is_not_finite_leaves_the_others_and_the_next_step_alone(bad):
    clip = adaptive_grad_clip()
    grads = few(draw(1))
    grads["dense"][0, 1] = bad
    updates, state = step(clip, grads, FEW)
    assert np.isnan(updates["dense"][0, 1])
    others = [0, 2, 3]
    expected = oracle(draw(1), PARAMS)[0]["dense"][:, others]
    np.testing.assert_allclose(updates["dense"][:, others], expected, rtol=1e-6)
    assert state.nonfinite_count == 1
    _, state = clip.update(few(draw(2)), state, FEW)
    _, fresh = step(clip, few(draw(2)), FEW)
    for name in ("total_norm", "clipped_norm", "clip_coef"):
        assert_trees_equal(getattr(state, name), getattr(fresh, name))


def test_the_derivative_is_finite_at_zero():
    @jax.jit
    def loss(grad, weight):
        return jnp.sum(step(clip, grad, weight)[0])

    clip = adaptive_grad_clip()
    zeros = np.zeros((3, 4), np.float32)
    for grad in (zeros, draw(1)["dense"]):
        for slope in jax.grad(loss, argnums=(0, 1))(grad, zeros):
            assert np.isfinite(slope).all()


# ---- arguments -----------------------------------------------------------------------


def test_a_schedule():
    clip = adaptive_grad_clip(optax.linear_schedule(0.1, 0.0, 2))
    state = clip.init(FEW)
    for expected in (0.1, 0.05, 0.0):
        _, state = jax.jit(clip.update)(few(draw(1)), state, FEW)
        np.testing.assert_allclose(state.clipped_norm, expected, rtol=1e-6)


def test_parameters_are_needed_and_match():
    clip, grads = adaptive_grad_clip(), few(draw(1))
    with pytest.raises(
        ValueError, match="adaptive_grad_clip: expected the parameters, "
    ):
        clip.update(grads, clip.init(FEW))
    wrong = FEW | {"dense": np.ones((4, 3), np.float32)}
    with pytest.raises(
        ValueError, match=r"'dense' has the shape \(4, 3\), and its upd"
    ):
        clip.update(grads, clip.init(FEW), wrong)
    with pytest.raises(
        ValueError, match="expected parameters of the structure of the "
    ):
        clip.update(grads, clip.init(FEW), {"dense": FEW["dense"]})


def test_arguments_out_of_range():
    with pytest.raises(ValueError, match=r"adaptive_grad_clip\(clipping=-0.1\)"):
        adaptive_grad_clip(-0.1)
    with pytest.raises(ValueError, match=r"adaptive_grad_clip\(eps=-1.0\)"):
        adaptive_grad_clip(eps=-1.0)


def test_leaves_that_hold_nothing():
    params = FEW | {"unused": np.ones(3), "empty": np.ones((0, 2), np.float32)}
    grads = few(draw(1)) | {"unused": None, "empty": np.ones((0, 2), np.float32)}
    updates, state = step(adaptive_grad_clip(), grads, params)
    assert updates.pop("unused") is None
    assert updates.pop("empty").shape == (0, 2)
    assert_close(updates, oracle(few(draw(1)), FEW)[0])
    assert state.nonfinite_count == 0


@pytest.mark.parametrize("tree", [{}, None, {"a": None}], ids=str)
def test_an_empty_tree_needs_no_parameters(tree):
    clip = adaptive_grad_clip()
    updates, state = clip.update(tree, clip.init(tree))
    assert updates == tree
    assert (state.count, state.clipped_count) == (1, 0)


def test_in_optax_masked_and_inject_hyperparams():
    expected, _ = step(adaptive_grad_clip(), few(draw(1)), FEW)
    make = optax.inject_hyperparams(adaptive_grad_clip)
    mask = {"dense": True, "bias": False}
    clip = optax.masked(make(0.01), mask)
    updates, _ = jax.jit(clip.update)(few(draw(1)), clip.init(FEW), FEW)
    assert_close(updates, expected | {"bias": draw(1)["bias"]})


def test_shards_named_by_specs():
    # vmap names axes as a mesh does; here each shard holds a row of the units, and
    # each is measured over both.
    params, grads = {"w": draw(1)["dense"][:2]}, {"w": draw(2)["dense"][:2]}
    spec = P("x")
    clip = adaptive_grad_clip(specs={"w": spec})
    expected, expected_state = step(adaptive_grad_clip(), grads, params)

    def shard(grads, params):
        return clip.update(grads, clip.init(params), params)

    def halves(tree):
        return {"w": tree["w"].reshape(2, 1, 4)}

    updates, state = jax.vmap(shard, axis_name="x")(halves(grads), halves(params))
    np.testing.assert_allclose(updates["w"][:, 0], expected["w"], rtol=1e-6)
    for name in ("total_norm", "clipped_norm", "clip_coef"):
        np.testing.assert_allclose(
            getattr(state, name), [getattr(expected_state, name)] * 2, rtol=1e-6
        )


def test_in_shard_map_specs_are_needed_and_the_state_is_replicated():
    # Types are tracked on a mesh of one device too.
    params, grads = {"w": draw(1)["dense"]}, {"w": draw(2)["dense"]}
    mesh = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Auto,))
    expected = step(adaptive_grad_clip(), grads, params)
    for spec in (P("x"), P(None, "x"), P()):
        clip = adaptive_grad_clip(specs=spec)
        state = clip.init(params)
        specs = ({"w": spec}, P())
        update = jax.shard_map(
            clip.update, mesh=mesh, in_specs=(*specs, specs[0]), out_specs=specs
        )
        got = jax.jit(update)(grads, state, params)
        assert_trees_close(got, expected, rtol=1e-6, atol=0.0)

    update = jax.shard_map(
        adaptive_grad_clip().update,
        mesh=mesh,
        in_specs=(P("x"), P(), P("x")),
        out_specs=P("x"),
    )
    message = r"the leaf 'w' is sharded over the mesh axes \['x'\]. Pass specs="
    with pytest.raises(ValueError, match=message):
        update(grads, state, params)

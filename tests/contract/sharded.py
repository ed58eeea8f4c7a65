"""What every transformation, and every optimizer, keeps over several devices.

Run by `test_shards`.

A process of its own, because the number of devices is fixed when JAX starts.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxclip.parity import assert_trees_close
from tests.contract.cases import ROWS
from tests.contract.optimizers import OPTIMIZERS

pytestmark = pytest.mark.usefixtures("quick_compilation")

BOTH = ("x", "y")
GRADS = {
    "w": np.float32([[3.0, 0.0, 0.5, -0.25], [0.5, -0.25, 1.5, 1.0]]),
    "v": np.float32([[2.0, -1.0, 0.5, 0.25]]),
    "b": np.float32([1.0, -0.5, 0.25, -2.0, 1.0, 0.5, -0.5, 0.25]),
}
# A leaf over both axes, one over one axis, one on every device.
SPECS = {"w": P(*BOTH), "v": P(None, "y"), "b": P()}


@pytest.fixture(params=ROWS)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def mesh():
    assert jax.device_count() == 8
    return jax.make_mesh((2, 4), BOTH, axis_types=(AxisType.Auto,) * 2)


@pytest.fixture(params=[row for row in OPTIMIZERS if row.values[0].shards])
def row(request):
    return request.param


def run(clip, bad_step=1):
    """Return a function that takes three steps, one of which is not finite."""

    def step(state, scale_and_bad, grads, params):
        scale, bad = scale_and_bad
        # NaN on one shard alone, of the leaf that is sharded most.
        spoilt = jnp.where(bad & (grads["w"] > 2), jnp.nan, grads["w"])
        grads = jax.tree.map(lambda leaf: leaf * scale, grads | {"w": spoilt})
        updates, state = clip.update(grads, state, params)
        return state, updates

    def steps(grads, state, params):
        updates = []
        for index, scale in enumerate((1.0, 2.0, 3.0)):
            state, update = step(state, (scale, index == bad_step), grads, params)
            updates.append(update)
        return [updates[0], updates[-1]], state

    return steps


def specs_of_state(transformation, grads, specs):
    """Replicated, but for what is like the parameters."""

    def shapes(tree):
        return jax.tree.map(np.shape, tree)

    def is_like(node):
        return shapes(node) == shapes(grads)

    return jax.tree.map(
        lambda node: specs if is_like(node) else P(),
        jax.eval_shape(transformation.init, grads),
        is_leaf=is_like,
    )


def assert_as_unsharded(case, grads, got, bad_step=1):
    # Sums over shards are taken in another order.
    expected = unsharded(case, grads, bad_step)
    assert_trees_close(got, expected, rtol=3e-6, atol=0.0)


COMPUTED = {}


def unsharded(case, grads, bad_step):
    """Return what a row does on one device, computed once for all of its tests."""
    key = case.name, tuple((name, leaf.shape) for name, leaf in grads.items()), bad_step
    if key not in COMPUTED:
        clip = case.make()
        steps = jax.jit(run(clip, bad_step))
        COMPUTED[key] = steps(grads, clip.init(grads), params_like(grads))
    return COMPUTED[key]


def params_like(grads):
    return jax.tree.map(lambda leaf: np.sign(leaf) + np.float32(0.25), grads)


def in_shard_map(clip, grads, mesh, specs, bad_step=1, **options):
    state_specs = specs_of_state(clip, grads, specs)
    steps = jax.shard_map(
        run(clip, bad_step),
        mesh=mesh,
        in_specs=(specs, state_specs, specs),
        out_specs=([specs, specs], state_specs),
        **options,
    )
    return jax.jit(steps)(grads, clip.init(grads), params_like(grads))


def test_in_shard_map_the_types_of_leaves_say_how_they_are_sharded(case, mesh):
    clip = case.make(specs=SPECS) if case.shards == "specs" else case.make()
    assert_as_unsharded(case, GRADS, in_shard_map(clip, GRADS, mesh, SPECS))
    if case.shards == "axis_name":
        # Where they do, a name that is given too changes nothing.
        clip = case.make(axis_name=BOTH)
        assert_as_unsharded(case, GRADS, in_shard_map(clip, GRADS, mesh, SPECS))


def test_in_shard_map_without_such_types_an_argument_says_it(case, mesh):
    if case.shards is None:
        pytest.skip("takes the parameters' shards from types alone")
    grads = {"w": GRADS["w"], "b": GRADS["b"]}
    specs = {"w": P(*BOTH), "b": P(BOTH)}
    told = {"axis_name": BOTH} if case.shards == "axis_name" else {"specs": specs}
    got = in_shard_map(case.make(**told), grads, mesh, specs, check_vma=False)
    assert_as_unsharded(case, grads, got)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_under_jit_with_sharded_arrays(case, axis_type):
    mesh = jax.make_mesh((2, 4), BOTH, axis_types=(axis_type,) * 2)
    clip = case.make()
    shardings = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
    with jax.set_mesh(mesh):
        grads, params = jax.device_put((GRADS, params_like(GRADS)), (shardings,) * 2)
        updates, state = jax.jit(run(clip))(grads, clip.init(params), params)
    assert_as_unsharded(case, GRADS, (updates, state))
    for name, leaf in updates[0].items():
        assert leaf.sharding.is_equivalent_to(shardings[name], leaf.ndim)


def test_in_pmap_axis_name_says_what_is_sharded(case):
    if case.shards != "axis_name":
        pytest.skip("knows no axis of pmap")
    clip = case.make(axis_name="x")
    grads = {"w": np.tile(GRADS["w"], (2, 2)), "b": np.tile(GRADS["b"], 4)}

    def shard(leaf):
        return leaf.reshape(8, -1)

    def whole(leaf, like):
        return leaf.reshape(like.shape)

    params = params_like(grads)
    state = clip.init(jax.tree.map(lambda leaf: shard(leaf)[0], grads))
    steps = jax.pmap(run(clip), axis_name="x", in_axes=(0, None, 0))
    updates, states = steps(
        jax.tree.map(shard, grads), state, jax.tree.map(shard, params)
    )
    updates = [jax.tree.map(whole, update, grads) for update in updates]
    state = jax.tree.map(lambda leaf: leaf[0], states)
    if hasattr(states, "rms"):
        state = state._replace(rms=jax.tree.map(whole, states.rms, grads))
    assert_as_unsharded(case, grads, (updates, state))


# ---- optimizers ----------------------------------------------------------------------


def test_an_optimizer_in_shard_map(row, mesh):
    got = in_shard_map(row.make(), GRADS, mesh, SPECS, bad_step=None)
    assert_as_unsharded(row, GRADS, got, bad_step=None)


def test_an_optimizer_under_jit_keeps_its_state_where_the_parameters_are(row, mesh):
    optimizer = row.make()
    shardings = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
    grads, params = jax.device_put((GRADS, params_like(GRADS)), (shardings,) * 2)
    state = jax.jit(optimizer.init)(params)
    updates, state = jax.jit(run(optimizer, None))(grads, state, params)
    assert_as_unsharded(row, GRADS, (updates, state), bad_step=None)
    trees = [updates[0], *(kept for kept in state if isinstance(kept, dict))]
    for tree in trees:
        for name, leaf in tree.items():
            assert leaf.sharding.is_equivalent_to(shardings[name], leaf.ndim)

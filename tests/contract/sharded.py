"""What every transformation keeps over several devices; run by `test_contract`.

A process of its own, because the number of devices is fixed when JAX starts.
"""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxclip.parity import assert_trees_close
from tests.contract.cases import CASES

BOTH = ("x", "y")
GRADS = {
    "w": np.float32([[3.0, 0.0], [0.5, -0.25]]),
    "v": np.float32([[2.0, -1.0]]),
    "b": np.float32([1.0, -0.5, 0.25, -2.0]),
}
# A leaf over both axes, one over one axis, one on every device.
SPECS = {"w": P(*BOTH), "v": P(None, "y"), "b": P()}


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def mesh():
    assert jax.device_count() == 4
    return jax.make_mesh((2, 2), BOTH, axis_types=(AxisType.Auto,) * 2)


def assert_as_unsharded(case, grads, got):
    clip = case.make()
    expected = clip.update(grads, clip.init(grads))
    # Sums over shards are taken in another order.
    assert_trees_close(got, expected, rtol=1e-6, atol=0.0)


def in_shard_map(clip, grads, mesh, specs, **options):
    both = (specs, P())
    update = jax.shard_map(
        clip.update, mesh=mesh, in_specs=both, out_specs=both, **options
    )
    return jax.jit(update)(grads, clip.init(grads))


def test_in_shard_map_the_types_of_leaves_say_how_they_are_sharded(case, mesh):
    # Where they do, a name that is given too changes nothing.
    for clip in (case.make(), case.make(axis_name=BOTH)):
        assert_as_unsharded(case, GRADS, in_shard_map(clip, GRADS, mesh, SPECS))


def test_in_shard_map_without_such_types_axis_name_says_it(case, mesh):
    grads = {"w": GRADS["w"], "b": GRADS["b"]}
    specs = {"w": P(*BOTH), "b": P(BOTH)}
    clip = case.make(axis_name=BOTH)
    got = in_shard_map(clip, grads, mesh, specs, check_vma=False)
    assert_as_unsharded(case, grads, got)


def test_under_jit_with_sharded_arrays(case, mesh):
    clip = case.make()
    shardings = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
    grads = jax.device_put(GRADS, shardings)
    updates, state = jax.jit(clip.update)(grads, clip.init(grads))
    assert_as_unsharded(case, GRADS, (updates, state))
    for name, leaf in updates.items():
        assert leaf.sharding.is_equivalent_to(shardings[name], leaf.ndim)

"""What every method keeps over several devices; run by `test_transformations`.

Its own process, because the number of devices is fixed when JAX starts.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxclip.parity import assert_trees_close
from tests.methods.cases import CASES

# One leaf over both axes, one over one axis, one replicated.
SPECS = {"w": P("x", "y"), "v": P(None, "y"), "b": P()}
ALL_SHARDED = {"w": P("x", "y"), "v": P(None, ("x", "y")), "b": P(("x", "y"))}
GRADS = {
    "w": np.float32([[3.0, 0.0], [0.5, -0.25]]),
    "v": np.float32([[2.0, -1.0, 1.0, 0.5]]),
    "b": np.float32([1.0, -0.5, 0.25, 0.5]),
}
LENGTHS = np.float32([1.0, 1.5, 1.0, 2.0, 1.25, 1.5, 500.0, 1.5, 40.0, 1.0])
BAD = 1.25


@pytest.fixture(params=CASES, scope="module")
def make(request):
    factory, options = CASES[request.param]
    return lambda **more: factory(**options, **more)


@pytest.fixture(scope="module")
def whole(make):
    return jax.jit(run(make()))(GRADS, make().init(GRADS))


@pytest.fixture(scope="module")
def mesh():
    assert jax.device_count() == 4
    return jax.make_mesh(
        (2, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2
    )


def run(clip):
    """Return a function that takes gradients through 10 steps, one with one NaN."""

    def step(grads, state, length):
        scaled = jax.tree.map(lambda leaf: leaf * length, grads)
        bad = (length == BAD) & (scaled["w"] > 2)
        updates, state = clip.update(
            scaled | {"w": jnp.where(bad, jnp.nan, scaled["w"])}, state
        )
        # Finite ones alone can be added up, and then show every step.
        return state, jax.tree.map(jnp.nan_to_num, updates)

    def steps(grads, state):
        state, updates = jax.lax.scan(functools.partial(step, grads), state, LENGTHS)
        return jax.tree.map(lambda leaf: leaf.sum(0), updates), state

    return steps


def specs_of_state(clip, specs):
    """Replicated, but for what is like the parameters."""
    state = jax.tree.map(lambda _: P(), jax.eval_shape(clip.init, GRADS))
    return state._replace(rms=specs) if hasattr(state, "rms") else state


def assert_same(got, expected):
    # Sums over shards are taken in another order.
    assert_trees_close(got, expected, rtol=3e-6, atol=0.0, equal_nan=True)


def in_shard_map(clip, mesh, specs, **options):
    state_specs = specs_of_state(clip, specs)
    steps = jax.shard_map(
        run(clip),
        mesh=mesh,
        in_specs=(specs, state_specs),
        out_specs=(specs, state_specs),
        **options,
    )
    return jax.jit(steps)(GRADS, clip.init(GRADS))


def test_in_shard_map_the_types_say_what_is_sharded(make, whole, mesh):
    assert_same(in_shard_map(make(), mesh, SPECS), whole)


def test_in_shard_map_without_types_the_axis_name_says_it(make, whole, mesh):
    clip = make(axis_name=("x", "y"))
    assert_same(in_shard_map(clip, mesh, ALL_SHARDED, check_vma=False), whole)


def test_under_jit_with_sharded_arrays(make, whole, mesh):
    shardings = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
    grads = jax.device_put(GRADS, shardings)
    got = jax.jit(run(make()))(grads, make().init(grads))
    assert_same(got, whole)

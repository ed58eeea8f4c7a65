"""One of two JAX processes that share a mesh; run by `test_processes`.

Usage: ``python -m pytest jax_process.py`` with JAXCLIP_PROCESS (0 or 1),
JAXCLIP_COORDINATOR (``host:port``) and JAXCLIP_OUT, a file for the clipped gradients,
in the environment, and four devices to each process.
"""

import os
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxclip
from jaxclip.parity import assert_trees_close
from tests.contract import sharded
from tests.contract.cases import CASES
from tests.distributed.gradients import GRADS, MAX_NORM


@pytest.fixture(scope="session", autouse=True)
def _two_processes():
    jax.distributed.initialize(
        os.environ["JAXCLIP_COORDINATOR"], 2, int(os.environ["JAXCLIP_PROCESS"])
    )
    assert (jax.process_count(), jax.device_count()) == (2, 8)
    assert jax.local_device_count() == 4
    yield
    jax.distributed.shutdown()


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def mesh(_two_processes):
    # Each process holds one row: every sum over "x" crosses from one to the other.
    return jax.make_mesh((2, 4), sharded.BOTH, axis_types=(AxisType.Auto,) * 2)


def place(tree, mesh, specs):
    """Put arrays that every process holds whole onto the mesh."""

    def put(leaf, spec):
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(
            leaf.shape, NamedSharding(mesh, spec), lambda index: leaf[index]
        )

    return jax.tree.map(put, tree, specs)


def gather(tree):
    """Return whole arrays, which every process holds a part of."""
    return multihost_utils.process_allgather(tree, tiled=True)


def placed_arguments(clip, mesh, specs, grads=sharded.GRADS):
    """Return gradients, state and parameters on the mesh, and the state's specs."""
    state_specs = sharded.specs_of_state(clip, grads, specs)
    state = jax.tree.map(np.asarray, clip.init(grads))
    return (
        place(grads, mesh, specs),
        place(state, mesh, state_specs),
        place(sharded.params_like(grads), mesh, specs),
    ), state_specs


def assert_as_unsharded(case, got, grads=sharded.GRADS):
    updates, state = got
    for leaf in jax.tree.leaves(state):
        if leaf.sharding.is_fully_replicated:
            # All copies that this process holds; `gather` would take the first.
            copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
            for copy in copies[1:]:
                np.testing.assert_array_equal(copy, copies[0])
    sharded.assert_as_unsharded(case, grads, gather((updates, state)))


def test_under_jit_with_sharded_arrays(case, mesh):
    clip = case.make()
    arguments, _ = placed_arguments(clip, mesh, sharded.SPECS)
    assert_as_unsharded(case, jax.jit(sharded.run(clip))(*arguments))


def test_in_shard_map(case, mesh):
    specs = sharded.SPECS
    clip = case.make(specs=specs) if case.shards == "specs" else case.make()
    arguments, state_specs = placed_arguments(clip, mesh, specs)
    steps = jax.shard_map(
        sharded.run(clip),
        mesh=mesh,
        in_specs=(specs, state_specs, specs),
        out_specs=([specs, specs], state_specs),
    )
    assert_as_unsharded(case, jax.jit(steps)(*arguments))


def test_a_step_that_is_not_finite_on_one_process_is_so_on_both(mesh):
    clip = jaxclip.clip_by_global_norm(1.0, nonfinite="zero")
    bad = dict(sharded.GRADS)
    bad["w"] = bad["w"].copy()
    bad["w"][1, 3] = np.nan  # in the row of process 1 alone
    arguments, _ = placed_arguments(clip, mesh, sharded.SPECS, bad)
    updates, state = jax.jit(clip.update)(*arguments)
    assert int(state.nonfinite_count) == 1
    assert not any(np.any(leaf) for leaf in gather(updates).values())


def test_the_gradients_that_torch_is_given_too(mesh):
    specs = {"w": P(sharded.BOTH), "v": P(None, sharded.BOTH), "b": P()}
    placed = place(GRADS, mesh, specs)
    clip = jax.jit(lambda grads: jaxclip.clip_grad_norm(grads, MAX_NORM))
    clipped, total_norm = gather(clip(placed))
    whole, whole_norm = jaxclip.clip_grad_norm(GRADS, MAX_NORM)
    assert_trees_close((clipped, total_norm), (whole, whole_norm), rtol=3e-6, atol=0.0)
    if jax.process_index() == 0:
        out = Path(os.environ["JAXCLIP_OUT"])
        np.savez(out, total_norm=total_norm, **clipped)

"""Optimizers whose step depends on the whole array, on eight devices.

Run by `test_in_optax`, in a process of its own, because the number of devices is fixed
when JAX starts. Prints the names of those that passed.
"""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxclip.optim import adafactor, lbfgs, muon
from tests.optim.against_torch import gradients, parameters

SHAPES = {"w": (8, 16), "v": (4, 2)}
SPECS = {"w": P("x", "y"), "v": P(None, "x")}
OPTIMIZERS = {
    "adafactor": adafactor(0.1, weight_decay=0.1),
    "muon": muon(0.1, ns_dtype="float32"),
    "lbfgs": lbfgs(0.1, max_iter=1, history_size=3),
}


def assert_close(got, expected):
    # Sums over shards are taken in another order.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        got,
        expected,
    )


def main():
    assert jax.device_count() == 8
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Auto,) * 2)

    def shardings(specs):
        return {name: NamedSharding(mesh, spec) for name, spec in specs.items()}

    def in_shard_map(function, *specs):
        return jax.jit(
            jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=P())
        )

    params = {k: np.float32(v) for k, v in parameters(shapes=SHAPES).items()}
    grads = gradients(steps=2, shapes=SHAPES)
    grads = {k: np.float32(v) for k, v in grads.items()}
    # The gradients of all steps lie in one array.
    specs_of_grads = {name: P(None, *spec) for name, spec in SPECS.items()}

    for name, optimizer in OPTIMIZERS.items():

        def steps(params, grads, optimizer=optimizer):
            def step(state, grad):
                updates, state = optimizer.update(grad, state, params)
                return state, updates

            return jax.lax.scan(step, optimizer.init(params), grads)

        whole = jax.jit(steps)(params, grads)
        placed = jax.device_put(
            (params, grads), (shardings(SPECS), shardings(specs_of_grads))
        )
        assert_close(jax.jit(steps)(*placed), whole)

        with pytest.raises(ValueError, match="'v' varies over the mesh axes"):
            in_shard_map(steps, SPECS, specs_of_grads)(params, grads)
        # What every device has is the whole.
        assert_close(in_shard_map(steps, P(), P())(params, grads), whole)
        print(name)


if __name__ == "__main__":
    main()

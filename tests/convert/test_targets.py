"""Every form in which users hold a model is filled, and nothing is made in vain."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn
from flax import nnx

from jaxclip.convert import from_torch, mapping, to_torch


class _Net(nnx.Module):
    """Weights, and what torch's state dict has no counterpart for."""

    def __init__(self, *, rngs):
        self.fc = nnx.Linear(3, 2, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.cache = nnx.Cache(jnp.ones(2))

    def __call__(self, x):
        return self.dropout(self.fc(x) + self.cache[...])


class _LinenNet(nn.Module):
    """A layer with parameters and one with statistics."""

    def setup(self):
        self.fc = nn.Dense(2)
        self.count = self.variable("batch_stats", "count", jnp.zeros, (2,))

    def __call__(self, x, scale=1.0):
        return self.fc(x) * scale + self.count.value


SOURCE = {"fc.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.ones(2)}
LINEN_SOURCE = SOURCE | {"count": torch.tensor([1.0, 2.0])}
X = jnp.array([1.0, 2.0, 3.0])


class _MaskedNet(_Net):
    """The same with an array that is no variable."""

    def __init__(self, *, rngs):
        super().__init__(rngs=rngs)
        self.mask = jnp.arange(2)

    def __call__(self, x):
        return super().__call__(x) * self.mask


def make():
    return _Net(rngs=nnx.Rngs(3))


@pytest.mark.parametrize("net", [_Net, _MaskedNet])
def test_a_function_gives_what_the_module_that_it_makes_gives(net):
    def make():
        return net(rngs=nnx.Rngs(3))

    expected, made = from_torch(make(), SOURCE), from_torch(make, SOURCE)
    assert type(made) is net
    left, right = nnx.split(expected), nnx.split(made)
    assert left[0] == right[0]
    for one, other in zip(*map(jax.tree.leaves, (left[1], right[1])), strict=True):
        assert one.dtype == other.dtype
        assert jnp.array_equal(one, other)
    # Random streams and masks are real: the model runs, and drops the same.
    np.testing.assert_array_equal(made(X), expected(X))
    assert to_torch(made).keys() == SOURCE.keys()


def test_a_function_makes_no_weights(monkeypatch):
    made = []

    def init(key, shape, dtype, out_sharding=None):
        array = jnp.zeros(shape, dtype)
        made.append(array)
        return array

    def make():
        return nnx.Linear(3, 2, kernel_init=init, bias_init=init, rngs=nnx.Rngs(0))

    source = {name.removeprefix("fc."): tensor for name, tensor in SOURCE.items()}
    from_torch(make, source)
    assert made
    assert all(isinstance(array, jax.core.Tracer) for array in made)
    # And the check works.
    from_torch(make(), source)
    assert not all(isinstance(array, jax.core.Tracer) for array in made)


def test_a_function_must_make_a_module():
    match = "target is a function that returns a int; it must return an NNX module"
    with pytest.raises(TypeError, match=match):
        from_torch(lambda: 3, SOURCE)


def test_a_function_that_draws_from_an_outer_stream_is_told_to_make_its_own():
    rngs = nnx.Rngs(0)
    for target in (partial(_Net, rngs=rngs), lambda: _Net(rngs=rngs)):
        with pytest.raises(ValueError, match=r"make that inside, too: lambda: Model\("):
            from_torch(target, SOURCE)
    assert rngs.default.count[...] == 0


@pytest.mark.parametrize("abstract", [False, True])
def test_the_pair_of_a_split_module_is_filled_and_given_back(abstract):
    graphdef, state = nnx.split(make())
    if abstract:
        state = jax.eval_shape(lambda: state)
    again, filled = from_torch((graphdef, state), SOURCE)
    assert again == graphdef
    assert isinstance(filled, nnx.State)
    np.testing.assert_array_equal(filled["fc"]["kernel"][...], SOURCE["fc.weight"].T)
    if not abstract:
        expected = from_torch(make(), SOURCE)
        np.testing.assert_array_equal(nnx.merge(again, filled)(X), expected(X))
        assert to_torch((graphdef, filled)).keys() == SOURCE.keys()


def test_a_state_alone_is_refused_with_what_to_do():
    model = make()
    state = nnx.state(model)
    match = (
        r"an nnx\.State, .* not the types of the modules, which say how the arrays "
        r"lie\. Pass the pair that has both: \(nnx\.graphdef\(model\), state\)\.$"
    )
    for call in (lambda: from_torch(state, SOURCE), lambda: to_torch(state)):
        with pytest.raises(TypeError, match=match):
            call()
    _, filled = from_torch((nnx.graphdef(model), state), SOURCE)
    np.testing.assert_array_equal(filled["fc"]["kernel"][...], SOURCE["fc.weight"].T)


def test_a_state_in_parts_is_refused_with_what_to_do():
    graphdef, params, rest = nnx.split(make(), nnx.Param, ...)
    match = (
        r"a graphdef and several states\. Make one state of them: "
        r"\(graphdef, nnx\.merge_state\(params, rest\)\)\.$"
    )
    with pytest.raises(TypeError, match=match):
        from_torch((graphdef, params, rest), SOURCE)
    match = (
        r"whose parts do not fit together: Incorrect number of leaves, .*\. The state "
        r"must hold every variable of the model, as nnx\.state\(model\) does, or nnx\."
    )
    with pytest.raises(ValueError, match=match):
        from_torch((graphdef, params), SOURCE)
    whole = nnx.merge_state(params, rest)
    _, filled = from_torch((graphdef, whole), SOURCE)
    np.testing.assert_array_equal(filled["fc"]["kernel"][...], SOURCE["fc.weight"].T)


@pytest.mark.parametrize(
    "inputs",
    [X, (X,), (X, jnp.ones(2)), jax.ShapeDtypeStruct((3,), "float32"), np.ones(3)],
    ids=["array", "tuple", "two", "shape", "numpy"],
)
def test_a_linen_module_with_inputs_is_filled(inputs):
    module, variables = from_torch((_LinenNet(), inputs), LINEN_SOURCE)
    assert sorted(variables) == ["batch_stats", "params"]
    expected = SOURCE["fc.weight"].numpy() @ np.asarray(X) + 1 + [1, 2]
    np.testing.assert_allclose(module.apply(variables, X), expected)
    assert to_torch((module, variables)).keys() == LINEN_SOURCE.keys()


def test_inputs_that_are_a_dict_stand_in_a_tuple():
    class _Net(nn.Module):
        def setup(self):
            self.fc = nn.Dense(2)

        def __call__(self, batch):
            return self.fc(batch["x"])

    target = (_Net(), ({"x": X},))
    _, variables = from_torch(target, SOURCE)
    assert variables["params"]["fc"]["kernel"].shape == (3, 2)


def test_a_linen_module_with_inputs_makes_no_weights():
    huge = nn.Dense(2**20, use_bias=False)
    shape = jax.ShapeDtypeStruct((2**20,), "float32")
    made = mapping((huge, shape))
    assert made.entries[0].leaves[0].value.shape == (2**20, 2**20)


def test_abstract_values_say_where_arrays_go():
    mesh = jax.make_mesh((1,), ("x",))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    shapes = {
        "params": {"kernel": jax.ShapeDtypeStruct((3, 2), "float32", sharding=place)}
    }
    source = {"weight": SOURCE["fc.weight"]}
    _, variables = from_torch((nn.Dense(2, use_bias=False), shapes), source)
    assert variables["params"]["kernel"].sharding == place

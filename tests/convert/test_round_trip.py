"""From torch and back again, bit for bit, and without a trace on what was given."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn
from flax import nnx
from flax.core import FrozenDict, freeze

import jaxclip.models
from jaxclip.convert import from_torch, to_torch

DTYPES = ["float32", "float64", "float16", "bfloat16"]
FRAMEWORKS = ["nnx", "linen"]
MODELS = ["my_net", "scratch", "rnn", "gru", "lstm", "gpt"]


def bits(tensor):
    """Return a tensor's dtype, shape and bits."""
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    raw = tensor.detach().view(integer[tensor.itemsize]).flatten().tolist()
    return str(tensor.dtype), tuple(tensor.shape), raw


def all_bits(state_dict):
    return {name: bits(tensor) for name, tensor in state_dict.items()}


def arrays(target):
    """Return the arrays of an NNX module or of a Linen pair."""
    tree = target[1] if isinstance(target, tuple) else nnx.state(target)
    return jax.tree.leaves(tree)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", MODELS)
def test_weights_come_back_bit_for_bit(build, name, framework, dtype):
    source, target = build(name, framework, dtype)
    expected = all_bits(source.state_dict())

    converted = from_torch(target, source)
    returned = to_torch(converted)

    assert all_bits(returned) == expected
    assert {str(array.dtype) for array in arrays(converted)} == {dtype}
    for param in source.parameters():
        param.data.fill_(0)
    source.load_state_dict(returned)  # strict
    assert all_bits(source.state_dict()) == expected


def test_the_state_dict_is_in_torchs_order(build):
    source, _ = build("my_net", "nnx")
    model = jaxclip.models.my_net(rngs=nnx.Rngs(0))
    assert list(to_torch(model)) == list(source.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_every_bit_pattern_survives(dtype):
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    info, one = torch.iinfo(integer), torch.tensor(1.0, dtype=dtype).view(integer)
    patterns = torch.tensor([0, 1, -1, info.max, info.min, info.min + 1, int(one)])
    # Zeros of both signs, subnormals, infinities, NaNs with payloads.
    exponents = torch.tensor([torch.inf, -torch.inf], dtype=dtype).view(integer)
    patterns = torch.cat([patterns.to(integer), exponents, exponents + 1]).view(dtype)

    class Raw(nnx.Module):
        def __init__(self):
            with jax.enable_x64(True):
                self.w = nnx.Param(jnp.zeros(len(patterns), str(dtype)[6:]))

    returned = to_torch(from_torch(Raw(), {"w": patterns}))["w"]
    assert bits(returned) == bits(patterns)


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (2, 0, 3)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "bool"])
def test_every_shape_survives(shape, dtype):
    source = {"w": torch.ones(shape, dtype=getattr(torch, dtype))}

    class Raw(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.zeros(shape, dtype))

    assert all_bits(to_torch(from_torch(Raw(), source))) == all_bits(source)


def concrete(build, name, framework):
    """Return a torch model and a Flax model that has other weights already."""
    source, target = build(name, framework)
    zeros = {key: torch.zeros_like(t) for key, t in source.state_dict().items()}
    return source, from_torch(target, zeros)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_neither_the_target_nor_the_source_is_changed(build, framework):
    source, target = concrete(build, "lstm", framework)
    state_dict = source.state_dict()
    before, names = all_bits(state_dict), list(state_dict)
    held = arrays(target)

    converted = from_torch(target, state_dict, rename={"": ""})

    assert type(converted) is type(target)
    assert converted is not target
    assert list(state_dict) == names
    assert all_bits(state_dict) == before
    for array, same in zip(held, arrays(target), strict=True):
        assert array is same
        assert not np.asarray(array).any()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_nothing_is_shared_with_the_source(build, framework):
    source, target = build("rnn", framework)
    converted = from_torch(target, source)
    returned = to_torch(converted)
    before = [np.array(array) for array in arrays(converted)]
    for tensors in (source.state_dict(), returned):
        for tensor in tensors.values():
            tensor.fill_(9.0)
        for array, value in zip(arrays(converted), before, strict=True):
            np.testing.assert_array_equal(array, value)


def test_numpy_arrays_may_be_changed_as_soon_as_they_are_read():
    # JAX would copy large arrays a little later; seen in one of three to thirty calls.
    target = nnx.Embed(256, 256, rngs=nnx.Rngs(0))
    for _ in range(100):
        weight = np.zeros((256, 256), "f")
        converted = from_torch(target, {"weight": weight})
        weight[:] = 1
        assert not converted.embedding[...].any()


def test_what_is_no_weight_stays_as_it_is_and_is_not_shared():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(2, 2, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)
            self.cache = nnx.Cache(jnp.ones(3))
            self.mask = jnp.arange(2)

    model = Model(nnx.Rngs(5))
    model.dropout(jnp.ones(2))
    source = {"linear.weight": torch.eye(2), "linear.bias": torch.zeros(2)}
    converted = from_torch(model, source)
    assert int(converted.dropout.rngs.count[...]) == 1
    np.testing.assert_array_equal(converted.cache[...], model.cache[...])
    np.testing.assert_array_equal(converted.mask, model.mask)
    np.testing.assert_array_equal(
        converted.dropout(jnp.ones(64)), model.dropout(jnp.ones(64))
    )
    converted.dropout(jnp.ones(2))
    assert int(model.dropout.rngs.count[...]) == 2
    assert sorted(to_torch(converted)) == sorted(source)


def test_linen_collections_that_are_no_weights_stay_as_they_are():
    module = nn.Dense(2)
    params = module.init(jax.random.key(0), jnp.ones(2))["params"]
    variables = {"params": params, "cache": {"seen": jnp.ones(3)}, "empty": {}}
    source = {"weight": torch.eye(2), "bias": torch.zeros(2)}
    _, converted = from_torch((module, variables), source)
    assert converted["cache"]["seen"] is variables["cache"]["seen"]
    assert converted["empty"] == {}
    np.testing.assert_array_equal(converted["params"]["kernel"], np.eye(2))


def test_frozen_variables_come_back_frozen():
    module = nn.Dense(2)
    variables = freeze(module.init(jax.random.key(0), jnp.ones(2)))
    source = {"weight": torch.eye(2), "bias": torch.zeros(2)}
    _, converted = from_torch((module, variables), source)
    assert isinstance(converted, FrozenDict)
    assert all_bits(to_torch((module, converted))) == all_bits(source)


def test_linen_metadata_is_kept():
    init = nn.with_partitioning(nn.initializers.zeros, (None, "model"))
    module = nn.Dense(2, kernel_init=init)
    variables = module.init(jax.random.key(0), jnp.ones(2))
    source = {"weight": torch.arange(4.0).reshape(2, 2), "bias": torch.ones(2)}
    _, converted = from_torch((module, variables), source)
    kernel = converted["params"]["kernel"]
    assert isinstance(kernel, nn.Partitioned)
    assert kernel.names == (None, "model")
    np.testing.assert_array_equal(kernel.value, [[0, 2], [1, 3]])
    assert all_bits(to_torch((module, converted))) == all_bits(source)


def test_nnx_metadata_is_kept():
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    model.kernel = nnx.Param(model.kernel[...], note="kept")
    source = {"weight": torch.eye(2), "bias": torch.zeros(2)}
    assert from_torch(model, source).kernel.get_metadata("note") == "kept"


def test_arrays_stay_where_the_target_had_been_put():
    device = jax.devices()[0]
    target = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    target.kernel[...] = jax.device_put(target.kernel[...], device)
    source = {"weight": torch.eye(2), "bias": torch.zeros(2)}
    converted = from_torch(target, source)
    assert converted.kernel[...].committed
    assert converted.kernel[...].sharding == target.kernel[...].sharding
    assert not converted.bias[...].committed


def test_an_abstract_model_has_no_weights_to_give(build):
    _, target = build("my_net", "nnx")
    with pytest.raises(ValueError, match=r"'1.weight' \(4, 3\) is a ShapeDtypeStruct"):
        to_torch(target)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_result_can_be_donated(build, framework):
    source, target = build("my_net", framework)
    converted = from_torch(target, copy.deepcopy(source))
    tree = converted[1] if framework == "linen" else nnx.state(converted)
    doubled = jax.jit(lambda t: jax.tree.map(lambda x: 2 * x, t), donate_argnums=0)(
        tree
    )
    assert jax.tree.structure(doubled) == jax.tree.structure(tree)

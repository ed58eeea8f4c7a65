"""Modules of Equinox hold what torch's hold, and do the same with it."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxclip.convert import (
    ConversionError,
    Link,
    from_torch,
    mapping,
    register,
    to_torch,
)
from jaxclip.convert._rules import registry

KEY = jax.random.key(0)
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}

LAYERS = {
    "Linear": (torch.nn.Linear(4, 3), lambda: eqx.nn.Linear(4, 3, key=KEY), (5, 4)),
    "Conv1d": (
        torch.nn.Conv1d(4, 6, 3, stride=2, padding=1),
        lambda: eqx.nn.Conv1d(4, 6, 3, stride=2, padding=1, key=KEY),
        (5, 4, 9),
    ),
    "Conv2d": (
        torch.nn.Conv2d(4, 6, (3, 2), groups=2, dilation=2),
        lambda: eqx.nn.Conv2d(4, 6, (3, 2), groups=2, dilation=2, key=KEY),
        (5, 4, 9, 8),
    ),
    "Conv2d without bias": (
        torch.nn.Conv2d(4, 6, 3, bias=False),
        lambda: eqx.nn.Conv2d(4, 6, 3, use_bias=False, key=KEY),
        (5, 4, 9, 8),
    ),
    "Conv3d": (
        torch.nn.Conv3d(2, 3, 3),
        lambda: eqx.nn.Conv3d(2, 3, 3, key=KEY),
        (2, 2, 5, 4, 3),
    ),
    "ConvTranspose1d": (
        torch.nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1),
        lambda: eqx.nn.ConvTranspose1d(
            4, 6, 3, stride=2, padding=1, output_padding=1, key=KEY
        ),
        (5, 4, 7),
    ),
    "ConvTranspose2d": (
        torch.nn.ConvTranspose2d(4, 6, (3, 2), groups=2, dilation=2),
        lambda: eqx.nn.ConvTranspose2d(4, 6, (3, 2), groups=2, dilation=2, key=KEY),
        (5, 4, 6, 5),
    ),
    "LayerNorm": (torch.nn.LayerNorm(4), lambda: eqx.nn.LayerNorm(4), (5, 4)),
    "GroupNorm": (
        torch.nn.GroupNorm(2, 4),
        lambda: eqx.nn.GroupNorm(2, 4),
        (5, 4, 6),
    ),
    "RMSNorm": (
        torch.nn.RMSNorm(4, eps=1e-5),
        lambda: eqx.nn.RMSNorm(4, use_bias=False),
        (5, 4),
    ),
    "PReLU": (torch.nn.PReLU(), lambda: eqx.nn.PReLU(), (5, 4)),
    "PReLU of channels": (
        torch.nn.PReLU(4),
        lambda: eqx.nn.PReLU(jnp.zeros((4, 1))),
        (5, 4, 6),
    ),
    "Sequential": (
        torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()),
        lambda: eqx.nn.Sequential(
            [eqx.nn.Linear(4, 3, key=KEY), eqx.nn.Lambda(jax.nn.relu)]
        ),
        (5, 4),
    ),
}


@pytest.fixture(params=LAYERS)
def layer(request):
    """Return a torch layer with weights drawn, one of Equinox, and an input."""
    source, make, shape = LAYERS[request.param]
    torch.manual_seed(0)
    with torch.no_grad():
        for param in source.parameters():
            param.copy_(torch.randn_like(param))
    return source, make(), torch.randn(shape)


def test_a_layer_computes_as_torchs(layer):
    source, model, x = layer
    made = from_torch(model, source)
    got = jax.vmap(made)(jnp.asarray(x.numpy()))
    np.testing.assert_allclose(got, source(x).detach().numpy(), **ROUNDING)


def test_an_embedding_has_torchs_rows():
    source = torch.nn.Embedding(7, 4)
    made = from_torch(eqx.nn.Embedding(7, 4, key=KEY), source)
    tokens = torch.tensor([3, 0, 6])
    got = jax.vmap(made)(jnp.asarray(tokens.numpy()))
    np.testing.assert_array_equal(got, source(tokens).detach().numpy())


def test_weights_come_back_to_the_bit(layer):
    source, model, _ = layer
    returned = to_torch(from_torch(model, source))
    assert returned.keys() == source.state_dict().keys()
    for name, tensor in source.state_dict().items():
        assert torch.equal(returned[name], tensor)


@pytest.mark.parametrize("sizes", [{}, {"kdim": 6, "vdim": 10}], ids=["one", "three"])
@pytest.mark.parametrize("bias", [True, False])
def test_attention_computes_as_torchs(sizes, bias):
    torch.manual_seed(0)
    source = torch.nn.MultiheadAttention(8, 2, bias=bias, batch_first=True, **sizes)
    if bias:
        torch.nn.init.normal_(source.in_proj_bias)
        torch.nn.init.normal_(source.out_proj.bias)
    names = "query_bias", "key_bias", "value_bias", "output_bias"
    model = eqx.nn.MultiheadAttention(
        *(2, 8),
        key_size=sizes.get("kdim"),
        value_size=sizes.get("vdim"),
        # torch has as many features of values as of queries, however large they are.
        vo_size=4,
        output_size=8,
        **{f"use_{name}": bias for name in names},
        key=KEY,
    )
    made = from_torch(model, source)
    widths = 8, sizes.get("kdim", 8), sizes.get("vdim", 8)
    inputs = [torch.randn(3, 5, width) for width in widths]
    got = jax.vmap(made)(*(jnp.asarray(x.numpy()) for x in inputs))
    expected, _ = source(*inputs)
    np.testing.assert_allclose(got, expected.detach().numpy(), **ROUNDING)
    returned = to_torch(made)
    for name, tensor in source.state_dict().items():
        assert torch.equal(returned[name], tensor)


def test_attention_with_some_biases_is_refused():
    model = eqx.nn.MultiheadAttention(2, 8, use_key_bias=True, key=KEY)
    with pytest.raises(ConversionError, match=re.escape("it has key_proj.bias and no")):
        mapping(model)


@pytest.mark.parametrize("kind", ["GRUCell", "LSTMCell"])
def test_a_cell_with_one_bias_says_what_to_do(kind):
    source = getattr(torch.nn, kind)(4, 3)
    model = getattr(eqx.nn, kind)(4, 3, key=KEY)
    with pytest.raises(ConversionError, match=f"Equinox's {kind} has one bias"):
        from_torch(model, source)
    source = getattr(torch.nn, kind)(4, 3, bias=False)
    model = getattr(eqx.nn, kind)(4, 3, use_bias=False, key=KEY)
    made = from_torch(model, source)
    x, state = torch.randn(5, 4), torch.randn(5, 3)
    if kind == "LSTMCell":
        expected = source(x, (state, state))
        inputs = x.numpy(), (state.numpy(), state.numpy())
    else:
        expected, inputs = source(x, state), (x.numpy(), state.numpy())
    got = jax.vmap(made)(*jax.tree.map(jnp.asarray, inputs))
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other.detach().numpy(), **ROUNDING)


class Own(eqx.nn.Linear):
    """A layer of a user's, which returns another shape than its ancestor."""

    def __call__(self, x, *, key=None):
        """Map ``(I,)`` to ``(O, 1)``."""
        return super().__call__(x, key=key)[:, None]


class Block(eqx.Module):
    """Layers in a list, and an array."""

    layers: list
    scale: jax.Array

    def __init__(self):
        """Make them."""
        self.layers = [eqx.nn.Linear(2, 2, key=KEY), Own(2, 2, key=KEY)]
        self.scale = jnp.ones(2)

    def __call__(self, x):
        """Return the input."""
        return x


@pytest.mark.parametrize("parted", [False, True])
def test_the_map_pairs_modules_and_says_how_equinoxs_own_lie(parted):
    model = {"block": Block()}
    if parted:  # as users hand the trained part over
        model, _ = eqx.partition(model, eqx.is_inexact_array)
    pairs = {pair.torch: (pair.kind, pair.layout) for pair in mapping(model).modules}
    assert pairs == {
        "block": ("Block", None),
        "block.layers.0": ("Linear", "same"),
        "block.layers.1": ("Own", None),
    }


class Affine(eqx.Module):
    """A layer that scales and shifts, where torch keeps both in one tensor."""

    scale: jax.Array
    shift: jax.Array

    def __call__(self, x):
        """Map ``(N,)`` to the same."""
        return x * self.scale + self.shift


def test_a_class_of_the_users_may_have_a_rule(monkeypatch):
    monkeypatch.setattr(registry, "RULES", {**registry.RULES})
    link = Link(
        ("weight",),
        ("scale", "shift"),
        lambda weight: tuple(weight),
        lambda *both: (np.stack(both),),
    )
    register(Affine, lambda layer, variables: [link], layout="same")
    model = {"affine": Affine(jnp.zeros(2), jnp.zeros(2))}
    source = {"affine.weight": torch.tensor([[2.0, 3], [0, 1]])}
    made = from_torch(model, source)
    np.testing.assert_array_equal(made["affine"](jnp.ones(2)), [2, 4])
    assert torch.equal(to_torch(made)["affine.weight"], source["affine.weight"])
    [pair] = mapping(model).modules
    assert (pair.kind, pair.layout) == ("Affine", "same")

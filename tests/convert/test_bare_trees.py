"""Trees of parameters, of no Flax module, and how their axes lie."""

import re
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from jaxclip import convert, optim, parity
from jaxclip.convert import ConversionError, WeightMap, from_torch, mapping, to_torch
from jaxclip.convert._axes import likely_order

# A convolution and two products of float32, added up in another order.
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}
AXES = {"*.w": (1, 0), "conv.kernel": (2, 3, 1, 0)}


def params():
    """Return what a function of JAX's own takes: matrices for ``x @ w``."""
    return {
        "conv": {"kernel": jnp.zeros((3, 3, 2, 4)), "bias": jnp.zeros(4)},
        "layers": [{"w": jnp.zeros((4, 4))}, {"w": jnp.zeros((4, 5))}],
        "scale": jnp.zeros(5),
    }


class Torch(torch.nn.Module):
    """The same numbers in torch."""

    def __init__(self):
        """Draw them."""
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(2, 4, 3)
        self.fc = torch.nn.ModuleList(
            [torch.nn.Linear(4, n, bias=False) for n in (4, 5)]
        )
        self.scale = torch.nn.Parameter(torch.randn(5))

    def forward(self, x):
        x = self.conv(x).mean((2, 3))
        return self.fc[1](torch.relu(self.fc[0](x))) * self.scale


RENAME = {
    "conv.weight": "conv.kernel",
    "fc.0.weight": "layers.0.w",
    "fc.1.weight": "layers.1.w",
}


def forward(params, x):
    """Compute the same, with channels last."""
    layout = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(
        x, params["conv"]["kernel"], (1, 1), "VALID", dimension_numbers=layout
    )
    x = (x + params["conv"]["bias"]).mean((1, 2))
    x = jax.nn.relu(x @ params["layers"][0]["w"])
    return x @ params["layers"][1]["w"] * params["scale"]


def test_a_function_of_converted_parameters_is_torchs():
    source, given = Torch(), params()
    made = from_torch(given, source, rename=RENAME, axes=AXES)
    assert jax.tree.structure(made) == jax.tree.structure(given)
    assert not any(leaf.any() for leaf in jax.tree.leaves(given))
    x = torch.randn(6, 2, 5, 5)
    np.testing.assert_allclose(
        forward(made, jnp.asarray(x.permute(0, 2, 3, 1).numpy())),
        source(x).detach().numpy(),
        **ROUNDING,
    )


def test_the_way_back_is_exact():
    source = Torch()
    made = from_torch(params(), source, rename=RENAME, axes=AXES)
    weights = mapping(params(), source, rename=RENAME, axes=AXES)
    for returned in (weights.to_torch(made), WeightMap.to_torch(weights, made)):
        assert returned.keys() == source.state_dict().keys()
        for name, tensor in source.state_dict().items():
            assert torch.equal(returned[name], tensor)
    own_names = to_torch(made, axes=AXES)
    assert torch.equal(own_names["layers.1.w"], source.fc[1].weight)
    assert torch.equal(own_names["conv.kernel"], source.conv.weight)


def test_the_table_of_a_map_shows_the_axes():
    table = str(mapping(params(), axes=AXES))
    assert re.search(
        r"layers\.1\.w +\(5, 4\) +transpose +layers\.1\.w +\(4, 5\)", table
    )
    assert re.search(r"conv\.kernel +\(4, 2, 3, 3\) .* \(3, 3, 2, 4\)", table)


def test_a_saved_map_keeps_the_axes(tmp_path):
    source = Torch()
    weights = mapping(params(), source, rename=RENAME, axes=AXES)
    weights.save(tmp_path / "map.json")
    tensors = {name: t.numpy() for name, t in source.state_dict().items()}
    made = WeightMap.load(tmp_path / "map.json").to_flax(tensors, like=params())
    expected = weights.to_flax(tensors, like=params())
    jax.tree.map(np.testing.assert_array_equal, made, expected)


def test_a_raw_parameter_of_a_flax_module_may_lie_otherwise():
    class Projection(nnx.Module):
        def __init__(self):
            self.across = nnx.Param(jnp.zeros((2, 3)))
            self.fc = nnx.Linear(3, 2, rngs=nnx.Rngs(0))

    weight = torch.arange(6.0).reshape(3, 2)
    source = {"across": weight, "fc.weight": torch.ones(2, 3), "fc.bias": torch.ones(2)}
    made = from_torch(Projection(), source, axes={"across": (1, 0)})
    np.testing.assert_array_equal(made.across[...], weight.T)


def test_stacked_layers_of_a_tree_are_several_in_torch():
    tree = {"blocks": {"b": jnp.zeros((3, 2))}}
    source = {f"blocks.{n}.b": torch.full((2,), float(n)) for n in range(3)}
    made = from_torch(tree, source, stacked="blocks")
    np.testing.assert_array_equal(made["blocks"]["b"][:, 0], [0, 1, 2])


def test_a_function_may_make_the_tree_and_an_abstract_one_will_do():
    source = {"w": torch.ones(2, 3)}
    made = from_torch(lambda: {"w": jnp.zeros((2, 3))}, source)
    np.testing.assert_array_equal(made["w"], 1)
    abstract = jax.eval_shape(lambda: {"w": jnp.zeros((2, 3))})
    np.testing.assert_array_equal(from_torch(abstract, source)["w"], 1)


class Equinox(eqx.Module):
    """The same in Equinox, whose layers lie as torch's do."""

    conv: eqx.nn.Conv2d
    fc: list[eqx.nn.Linear]
    scale: jax.Array
    activation: Callable[[jax.Array], jax.Array]

    def __init__(self, activation=jax.nn.relu):
        """Draw other numbers."""
        self.activation = activation
        keys = jax.random.split(jax.random.key(0), 3)
        self.conv = eqx.nn.Conv2d(2, 4, 3, key=keys[0])
        self.fc = [
            eqx.nn.Linear(4, n, use_bias=False, key=key)
            for n, key in zip((4, 5), keys[1:], strict=True)
        ]
        self.scale = jnp.ones(5)

    def __call__(self, x):
        x = self.conv(x).mean((1, 2))
        return self.fc[1](self.activation(self.fc[0](x))) * self.scale


def test_a_module_of_equinox_is_a_tree():
    source, model = Torch(), Equinox()
    made = from_torch(model, source)
    assert type(made) is Equinox
    assert made.activation is jax.nn.relu
    x = torch.randn(6, 2, 5, 5)
    np.testing.assert_allclose(
        jax.vmap(made)(jnp.asarray(x.numpy())),
        source(x).detach().numpy(),
        **ROUNDING,
    )
    returned = to_torch(made)
    assert returned.keys() == source.state_dict().keys()
    for name, tensor in source.state_dict().items():
        assert torch.equal(returned[name], tensor)


def test_an_axis_of_length_1_may_be_added():
    tree = {"conv": {"bias": jnp.zeros((4, 1, 1))}}
    source = {"conv.bias": torch.arange(4.0)}
    axes = {"conv.bias": (0, None, None)}
    made = from_torch(tree, source, axes=axes)
    np.testing.assert_array_equal(made["conv"]["bias"][:, 0, 0], [0, 1, 2, 3])
    assert torch.equal(to_torch(made, axes=axes)["conv.bias"], source["conv.bias"])
    advice = "'conv.bias' (4, 1, 1) needs (4, 1, 1) in torch's layout. If its axes lie "
    with pytest.raises(ConversionError, match=re.escape(advice)) as caught:
        from_torch(tree, source)
    assert "axes={'conv.bias': (0, None, None)}" in str(caught.value)


@pytest.mark.parametrize("right", [True, False])
def test_a_port_in_equinox_is_held_against_torch(tmp_path, right):
    torch.manual_seed(0)
    source = Torch()
    optimizer = torch.optim.AdamW(source.parameters(), lr=1e-2)
    with parity.record(tmp_path, source, optimizer) as run:
        for _ in range(2):
            x, y = torch.randn(6, 2, 5, 5), torch.randn(6, 5)
            with run.step(x=x, y=y):
                optimizer.zero_grad()
                torch.nn.functional.mse_loss(source(x), y).backward()
                optimizer.step()

    def loss_fn(model, batch):
        outputs = jax.vmap(model)(batch["x"])
        return jnp.mean((outputs - batch["y"]) ** 2), outputs

    model = Equinox() if right else Equinox(jax.nn.gelu)
    port = parity.Port(model, loss_fn, optim.adamw(1e-2))
    report = parity.verify(tmp_path, port)
    assert report.passed is right
    if not right:
        assert (report.first.stage, report.first.module) == ("activations", "fc.1")
    assert report.of_stage("optimizer state")[0].verdict == "same"


def test_optimizers_take_a_tree():
    source, made = Torch(), params()
    weights = mapping(made, source, rename=RENAME, axes=AXES)
    optimizer = torch.optim.Adam(source.parameters())
    source(torch.randn(2, 2, 5, 5)).sum().backward()
    optimizer.step()
    state = convert.opt_state_from_torch(
        optimizer,
        made,
        optim.adam(1e-3),
        mapping=weights,
        param_names=[name for name, _ in source.named_parameters()],
        count=1,
    )
    moment = optimizer.state[source.fc[1].weight]["exp_avg"]
    np.testing.assert_array_equal(state.exp_avg["layers"][1]["w"], moment.T)


# What is refused, and what is said.


@pytest.mark.parametrize(
    ("axes", "problem"),
    [
        (
            {"*.w": (2, 0, 1), "conv.kernel": (2, 3, 1, 0)},
            "axes has '*.w': (2, 0, 1), which is no order of the axes of 'layers.0.w' "
            "(4, 4).",
        ),
        (
            {**AXES, "conv.kernle": (0,)},
            "axes has 'conv.kernle'; the target has no tensor of that name in torch. "
            "Nearest: 'conv.kernel'",
        ),
        (
            {"conv.kernel": (2, 3, 1, 0), "layers.0.w": (1, 0)},
            "'layers.1.w' (in the source 'fc.1.weight') has shape (5, 4); 'layers.1.w' "
            "(4, 5) needs (4, 5) in torch's layout. If its axes lie in another order: "
            "axes={'layers.1.w': (1, 0)}.",
        ),
        (
            {"*.w": (1, 0)},
            "'conv.kernel' (3, 3, 2, 4) needs (3, 3, 2, 4) in torch's layout. If its "
            "axes lie in another order: axes={'conv.kernel': (2, 3, 1, 0)}.",
        ),
    ],
    ids=["another rank", "no such name", "a matrix left out", "a kernel left out"],
)
def test_what_does_not_fit_is_named(axes, problem):
    with pytest.raises(ConversionError, match=re.escape(problem)):
        from_torch(params(), Torch(), rename=RENAME, axes=axes)


def test_axes_of_a_layer_that_says_them_are_refused():
    layer = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    problem = "axes has 'weight'; how 'kernel' (3, 2) lies follows from its layer."
    with pytest.raises(ConversionError, match=re.escape(problem)):
        mapping(layer, axes={"weight": (1, 0)})


@pytest.mark.parametrize(
    "axes",
    [
        *((1, 0), {"w": "10"}, {"w": 1}, {"w": (0, 2)}, {"w": (True, False)}),
        *({1: (0,)}, {"w": (1, None)}, {"w": (0, 0, None)}),
    ],
)
def test_axes_of_another_type_are_refused(axes):
    with pytest.raises(TypeError, match=r"axes is .*; it must be a mapping from names"):
        mapping({"w": jnp.zeros((2, 2))}, axes=axes)


def test_an_axis_that_torch_lacks_has_length_one():
    problem = "axes has 'w': (0, None), which is no order of the axes of 'w' (2, 2)."
    with pytest.raises(ConversionError, match=re.escape(problem)):
        mapping({"w": jnp.zeros((2, 2))}, axes={"w": (0, None)})


def test_keys_and_what_is_no_array_stay():
    tree = {"w": jnp.zeros(2), "key": jax.random.key(3), "name": "a", "none": None}
    made = from_torch(tree, {"w": torch.ones(2)})
    np.testing.assert_array_equal(made["w"], 1)
    assert made["key"] is tree["key"]
    assert (made["name"], made["none"]) == ("a", None)


def test_a_list_of_pairs_is_a_tree():
    layers = [(jnp.zeros((2, 3)), jnp.zeros(3)), (jnp.zeros((3, 1)), jnp.zeros(1))]
    source = {
        **{"0.0": torch.ones(3, 2), "0.1": torch.ones(3)},
        **{"1.0": torch.ones(1, 3), "1.1": torch.ones(1)},
    }
    made = from_torch(layers, source, axes={"?.0": (1, 0)})
    assert [w.shape for w, _ in made] == [(2, 3), (3, 1)]
    assert all(leaf.all() for leaf in jax.tree.leaves(made))


def test_a_source_in_the_place_of_the_target_is_refused():
    with pytest.raises(TypeError, match=r"target holds a tensor of torch's at 'conv\."):
        from_torch(dict(Torch().state_dict()), params())


def test_the_usual_order_is_advised_of_several():
    assert likely_order((4, 4, 3, 3), (3, 3, 4, 4)) == (2, 3, 1, 0)
    assert likely_order((2, 3, 4), (3, 2, 4)) == (1, 0, 2)
    assert likely_order((2, 3), (3, 4)) is None
    assert likely_order((2,), (3,)) is None

"""Layers that Flax holds as one array with a leading axis, and torch in a list."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn
from flax import nnx

from jaxclip.convert import ConversionError, from_torch, mapping, to_torch
from jaxclip.convert._rules.links import Link, Rule, same
from jaxclip.convert._rules.registry import RULES

LAYERS, WIDTH = 3, 4


class _TorchBlock(torch.nn.Module):
    """A layer and an array."""

    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(WIDTH, WIDTH)
        self.scale = torch.nn.Parameter(torch.rand(WIDTH))

    def forward(self, x):
        return torch.tanh(self.fc(x)) * self.scale


class _TorchNet(torch.nn.Module):
    """Blocks one after another, and a head."""

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList(_TorchBlock() for _ in range(LAYERS))
        self.head = torch.nn.Linear(WIDTH, 2)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class _Block(nnx.Module):
    def __init__(self, *, rngs):
        self.fc = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.scale = nnx.Param(jnp.ones(WIDTH))

    def __call__(self, x):
        return jnp.tanh(self.fc(x)) * self.scale[...]


class _Net(nnx.Module):
    def __init__(self, *, rngs):
        @nnx.split_rngs(splits=LAYERS)
        @nnx.vmap
        def blocks(rngs):
            return _Block(rngs=rngs)

        self.blocks = blocks(rngs)
        self.head = nnx.Linear(WIDTH, 2, rngs=rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def through(x, block):
            return block(x)

        return self.head(through(x, self.blocks))


class _LinenBlock(nn.Module):
    def setup(self):
        self.fc = nn.Dense(WIDTH)
        self.scale = self.param("scale", nn.initializers.ones, (WIDTH,))

    def __call__(self, x, _):
        return jnp.tanh(self.fc(x)) * self.scale, None


class _LinenNet(nn.Module):
    def setup(self):
        scanned = nn.scan(
            _LinenBlock,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=LAYERS,
        )
        self.blocks = scanned()
        self.head = nn.Dense(2)

    def __call__(self, x):
        return self.head(self.blocks(x, None)[0])


def source():
    torch.manual_seed(2)
    return _TorchNet()


TARGETS = {
    "nnx": lambda: _Net(rngs=nnx.Rngs(0)),
    "linen": (_LinenNet(), jnp.ones(WIDTH)),
}


@pytest.mark.parametrize("framework", TARGETS)
def test_stacked_layers_compute_what_torchs_list_does(framework):
    torch_net = source()
    x = np.linspace(-1, 1, WIDTH, dtype="f")
    expected = torch_net(torch.from_numpy(x)).detach()
    converted = from_torch(TARGETS[framework], torch_net, stacked="blocks")
    if framework == "nnx":
        outputs = converted(x)
    else:
        module, variables = converted
        outputs = module.apply(variables, x)
    np.testing.assert_allclose(outputs, expected, rtol=1e-6)

    returned = to_torch(converted, stacked=["blocks"])
    wanted = torch_net.state_dict()
    assert returned.keys() == wanted.keys()
    assert all(torch.equal(returned[name], tensor) for name, tensor in wanted.items())
    torch_net.load_state_dict(returned)  # strict


@pytest.mark.parametrize("framework", TARGETS)
def test_each_layer_lies_as_its_type_says(framework):
    # A square kernel: nothing but its values tells whether it was transposed.
    torch_net = source()
    tree = mapping(TARGETS[framework], torch_net, stacked="blocks").to_flax(
        torch_net.state_dict()
    )
    kernel = tree.get("params", tree)["blocks"]["fc"]["kernel"]
    for layer, block in enumerate(torch_net.blocks):
        np.testing.assert_array_equal(kernel[layer], block.fc.weight.detach().T)


def test_stacked_layers_may_have_another_name_in_torch():
    state_dict = {
        name.replace("blocks.", "h."): tensor
        for name, tensor in source().state_dict().items()
    }
    target = TARGETS["nnx"]
    made = mapping(target, state_dict, stacked="blocks", rename={"h": "blocks"})
    assert {*made.to_torch(made.to_flax(state_dict))} == state_dict.keys()


def test_a_layer_that_is_missing_is_named_with_its_number():
    state_dict = source().state_dict()
    del state_dict["blocks.1.fc.weight"]
    state_dict["blocks.3.scale"] = torch.ones(WIDTH)
    with pytest.raises(ConversionError) as caught:
        from_torch(TARGETS["nnx"], state_dict, stacked="blocks")
    missing, unused = caught.value.problems
    assert missing.startswith(
        "'blocks.fc.kernel' (3, 4, 4) is not filled: the source has no "
        "'blocks.1.fc.weight' (4, 4)."
    )
    assert unused.startswith("'blocks.3.scale' (4,) is not used.")


@pytest.mark.parametrize("framework", TARGETS)
def test_stacked_layers_that_nobody_told_of_are_seen(framework):
    with pytest.raises(ConversionError) as caught:
        from_torch(TARGETS[framework], source())
    assert caught.value.hint == (
        "The layers seem to be stacked in the target: try stacked='blocks'."
    )


def test_an_axis_that_a_rule_knows_nothing_of_is_refused(monkeypatch):
    def transpose(kernel):
        return (np.transpose(kernel, (1, 0)),)

    def links(layer, names):
        yield Link(("weight",), ("kernel",), transpose, transpose)
        yield same("bias", "bias")

    monkeypatch.setitem(RULES, nnx.Linear, Rule(links))
    with pytest.raises(ConversionError) as caught:
        from_torch(TARGETS["nnx"], source())
    assert caught.value.problems[0] == (
        "'blocks.fc.kernel' (3, 4, 4) has no shape of a Linear's (axes don't match "
        "array). If the first axis is one of layers, name the module that has them in "
        "stacked=."
    )
    from_torch(TARGETS["nnx"], source(), stacked="blocks")


def test_a_path_that_is_no_module_is_refused():
    match = r"stacked has 'block', which is no module in the target that holds variab"
    with pytest.raises(ConversionError, match=match):
        from_torch(TARGETS["nnx"], source(), stacked=["blocks", "block"])


def test_a_module_that_is_not_stacked_is_refused():
    match = (
        r"stacked has 'head', whose variables differ in the length of their first "
        r"axis, that of layers: 'head\.bias' \(2,\), 'head\.kernel' \(4, 2\)\."
    )
    with pytest.raises(ConversionError, match=match):
        from_torch(TARGETS["nnx"], source(), stacked=["blocks", "head"])


def test_stacks_may_be_in_stacks():
    class Group(nnx.Module):
        def __init__(self, *, rngs):
            @nnx.split_rngs(splits=2)
            @nnx.vmap
            def inner(rngs):
                return _Block(rngs=rngs)

            self.inner = inner(rngs)

    @nnx.split_rngs(splits=3)
    @nnx.vmap
    def outer(rngs):
        return Group(rngs=rngs)

    target = nnx.Dict(outer=outer(nnx.Rngs(0)))
    state_dict = {
        f"outer.{i}.inner.{j}.{name}": tensor + 10 * i + j
        for i in range(3)
        for j in range(2)
        for name, tensor in _TorchBlock().state_dict().items()
    }
    stacked = ["outer", "outer.inner"]
    converted = from_torch(target, state_dict, stacked=stacked)
    np.testing.assert_array_equal(
        converted.outer.inner.fc.kernel[2, 1],
        state_dict["outer.2.inner.1.fc.weight"].T,
    )
    returned = to_torch(converted, stacked=stacked)
    assert returned.keys() == state_dict.keys()
    assert all(torch.equal(returned[name], state_dict[name]) for name in returned)


def test_linens_other_transformations_of_a_class_change_no_layout():
    class _Net(nn.Module):
        def setup(self):
            self.dense = nn.remat(nn.Dense)(WIDTH, use_bias=False)

        def __call__(self, x):
            return self.dense(x)

    weight = torch.rand(WIDTH, WIDTH)
    _, variables = from_torch((_Net(), jnp.ones(WIDTH)), {"dense.weight": weight})
    np.testing.assert_array_equal(variables["params"]["dense"]["kernel"], weight.T)

"""Which torch name and which layout each variable has, by the type that holds it."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn
from flax import nnx

from jaxclip import models
from jaxclip.convert import ConversionError, from_torch, to_torch
from jaxclip.convert._rules.links import Link, Rule
from jaxclip.convert._rules.registry import RULES
from jaxclip.models import linen

RNGS = nnx.Rngs(0)


def tensors(target):
    """Return a state dict of the right names and shapes, of numbers all different."""
    shapes = {name: t.shape for name, t in to_torch(target).items()}
    starts = np.cumsum([0, *(shape.numel() for shape in shapes.values())])
    return {
        name: torch.arange(start, start + shape.numel()).reshape(shape).float()
        for start, (name, shape) in zip(starts, shapes.items(), strict=False)
    }


def init(module, *shape):
    return module, module.init(jax.random.key(0), jnp.zeros(shape))


# The rules.


@pytest.mark.parametrize("use_bias", [True, False])
def test_a_linear_kernel_is_the_transposed_weight(use_bias):
    source = torch.nn.Linear(3, 2, bias=use_bias)
    x = np.arange(3.0, dtype="f")
    expected = source(torch.tensor(x)).detach().numpy()

    layer = nnx.Linear(3, 2, use_bias=use_bias, rngs=RNGS)
    converted = from_torch(layer, source)
    np.testing.assert_array_equal(converted.kernel[...], source.weight.detach().T)
    np.testing.assert_allclose(converted(x), expected, rtol=1e-6)

    dense = nn.Dense(2, use_bias=use_bias)
    module, variables = from_torch(init(dense, 3), source)
    np.testing.assert_allclose(module.apply(variables, x), expected, rtol=1e-6)


def test_a_square_kernel_is_transposed_too_and_outputs_tell():
    source = torch.nn.Linear(3, 3, bias=False, dtype=torch.float64)
    x = np.array([1.0, 2.0, 3.0])
    expected = source(torch.tensor(x)).detach().numpy()
    with jax.enable_x64(True):
        layer = nnx.Linear(3, 3, use_bias=False, param_dtype="float64", rngs=RNGS)
        right = from_torch(layer, source)
        np.testing.assert_allclose(right(x), expected, rtol=1e-14)
        # Nothing but the values can tell: the shapes of a wrong port agree.
        wrong = from_torch(layer, {"weight": source.weight.detach().T})
        assert wrong.kernel.shape == right.kernel.shape
        assert np.abs(wrong(x) - expected).max() > 0.1


def test_an_embedding_lies_as_the_weight_does():
    source = torch.nn.Embedding(4, 3)
    tokens = np.array([3, 0, 0])
    expected = source(torch.tensor(tokens)).detach().numpy()
    converted = from_torch(nnx.Embed(4, 3, rngs=RNGS), source)
    np.testing.assert_array_equal(converted(tokens), expected)
    embed = nn.Embed(4, 3)
    shapes = jax.eval_shape(embed.init, jax.random.key(0), tokens)
    module, variables = from_torch((embed, shapes), source)
    np.testing.assert_array_equal(module.apply(variables, tokens), expected)


@pytest.mark.parametrize("shape", [(2, 2), (3, 2), (2, 3, 2)])
def test_raw_parameters_are_taken_as_they_are_whatever_their_name(shape):
    class Raw(nnx.Module):
        def __init__(self):
            self.kernel = nnx.Param(jnp.zeros(shape))
            self.weight = nnx.BatchStat(jnp.zeros(shape))

    class LinenRaw(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.param("kernel", nn.initializers.zeros, shape)
            self.variable("batch_stats", "weight", jnp.zeros, shape)

    source = tensors(Raw())
    converted = from_torch(Raw(), source)
    np.testing.assert_array_equal(converted.kernel[...], source["kernel"])
    np.testing.assert_array_equal(converted.weight[...], source["weight"])
    _, variables = from_torch(init(LinenRaw(), 1), source)
    np.testing.assert_array_equal(variables["params"]["kernel"], source["kernel"])
    np.testing.assert_array_equal(variables["batch_stats"]["weight"], source["weight"])


# The names.


def nnx_blocks():
    """Return layers in every kind of container that NNX has."""

    def layer():
        return nnx.Linear(1, 1, use_bias=False, rngs=RNGS)

    return nnx.Dict(
        blocks=nnx.List([layer(), nnx.List([layer()])]),
        table=nnx.Dict(a=layer()),
        steps=nnx.Sequential(layer(), nnx.relu, layer()),
        data=nnx.data({"pair": (layer(), nnx.Param(jnp.zeros(2)))}),
        named=models.Sequential({"0": layer(), "last": layer()}),
    )


class LinenBlocks(nn.Module):
    """The same containers as far as Linen has them."""

    def setup(self):
        def layer():
            return nn.Dense(1, use_bias=False)

        self.blocks = [layer(), [layer()]]
        self.table = {"a": layer()}
        self.steps = nn.Sequential([layer(), nn.relu, layer()])
        self.named = linen.Sequential({"0": layer(), "last": layer()})

    def __call__(self, x):
        for layer in (*self.blocks[:1], *self.blocks[1], *self.table.values()):
            x = layer(x)
        return self.named(self.steps(x))


NAMES = [
    "blocks.0.weight",
    "blocks.1.0.weight",
    "table.a.weight",
    "steps.0.weight",
    "steps.2.weight",
    "data.pair.0.weight",
    "data.pair.1",
    "named.0.weight",
    "named.last.weight",
]


@pytest.mark.parametrize("framework", ["nnx", "linen"])
def test_names_are_the_paths_of_attributes_indices_and_keys(framework):
    if framework == "nnx":
        target, names = nnx_blocks(), NAMES
    else:
        target = init(LinenBlocks(), 1)
        names = [name for name in NAMES if not name.startswith("data")]
    assert sorted(to_torch(target)) == sorted(names)
    source = tensors(target)
    converted = from_torch(target, source)
    for name, tensor in to_torch(converted).items():
        assert torch.equal(tensor, source[name]), name


def test_a_module_that_points_back_at_its_parent_is_no_part_of_itself():
    class Child(nnx.Module):
        def __init__(self, parent):
            self.parent = parent
            self.weight = nnx.Param(jnp.zeros(1))

    class Parent(nnx.Module):
        def __init__(self):
            self.child = Child(self)

    converted = from_torch(Parent(), {"child.weight": torch.ones(1)})
    assert converted.child.parent is converted
    assert converted.child.weight[0] == 1


# Tied weights.


def nnx_tied():
    """Return one layer under two names, and one variable under two names."""
    layer = nnx.Linear(2, 2, use_bias=False, rngs=RNGS)
    embed = nnx.Embed(3, 2, rngs=RNGS)
    return nnx.Dict(first=layer, second=layer, table=embed.embedding, embed=embed)


class LinenTied(nn.Module):
    """One layer under two names."""

    def setup(self):
        self.first = nn.Dense(2, use_bias=False)
        self.second = self.first

    def __call__(self, x):
        return self.second(self.first(x))


def test_tied_weights_are_in_the_state_dict_under_every_name():
    expected = ["table", "first.weight", "second.weight", "embed.weight"]
    assert list(to_torch(nnx_tied())) == expected
    assert list(to_torch(init(LinenTied(), 2))) == ["first.weight", "second.weight"]


@pytest.mark.parametrize("layer", [["first"], ["second"], ["first", "second"]])
@pytest.mark.parametrize("table", [["table"], ["embed.weight"]])
def test_tied_weights_are_taken_from_any_of_their_names(layer, table):
    weight, rows = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.ones(3, 2)
    source = {f"{name}.weight": weight for name in layer}
    _, variables = from_torch(init(LinenTied(), 2), source)
    np.testing.assert_array_equal(variables["params"]["first"]["kernel"], weight.T)
    converted = from_torch(nnx_tied(), source | dict.fromkeys(table, rows))
    assert converted.first is converted.second
    assert converted.embed.embedding is converted.table
    np.testing.assert_array_equal(converted.second.kernel[...], weight.T)
    np.testing.assert_array_equal(converted.table[...], rows)


def test_tied_weights_that_differ_are_refused():
    source = {"first.weight": torch.eye(2), "second.weight": torch.ones(2, 2)}
    match = (
        r"'params.first.kernel' is one variable with several names, and the source has "
        r"other values under 'second.weight' than under 'first.weight'\."
    )
    with pytest.raises(ConversionError, match=match):
        from_torch(init(LinenTied(), 2), source)


def test_tied_weights_that_are_missing_are_one_problem():
    with pytest.raises(ConversionError) as caught:
        from_torch(init(LinenTied(), 2), {})
    assert caught.value.problems == (
        "'params.first.kernel' (2, 2) is not filled: the source has no 'first.weight' "
        "(2, 2).",
    )


# Types without a rule, and modules that cannot be seen.


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (nnx.LoRALinear(2, 2, lora_rank=1, rngs=RNGS), "flax.nnx.nn.lora.LoRALinear"),
        (init(nn.ConvLocal(1, (3,)), 3, 1), "flax.linen.linear.ConvLocal"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_type_of_flax_without_a_rule_is_refused_by_name(target, name):
    for convert in (to_torch, lambda target: from_torch(target, {})):
        match = rf"{name} has no rule\. Which way round .* is not guessed"
        with pytest.raises(ConversionError, match=match):
            convert(target)


def test_modules_without_weights_need_no_rule():
    class Model(nnx.Module):
        def __init__(self):
            self.dropout = nnx.Dropout(0.5, rngs=RNGS)
            self.rngs = nnx.Rngs(1)
            self.weight = nnx.Param(jnp.ones(1))

    assert list(to_torch(Model())) == ["weight"]


class Compact(nn.Module):
    """A layer that only a call makes."""

    @nn.compact
    def __call__(self, x):
        self.param("scale", nn.initializers.ones, (2,))
        return nn.Dense(2, name="inner")(x)


def test_submodules_made_in_a_compact_method_are_refused_with_what_to_do():
    with pytest.raises(ConversionError) as caught:
        to_torch(init(Compact(), 2))
    assert caught.value.problems == tuple(
        f"'params.inner.{name}' lies in a submodule of Compact that cannot be seen, "
        "because it is made in an @nn.compact method. Show how it is called: "
        "target=(module, variables, inputs)."
        for name in ("kernel", "bias")
    )


def test_variables_that_no_module_is_seen_to_hold_are_refused():
    @jax.tree_util.register_dataclass
    @dataclass
    class Box:
        inside: nnx.Param

    model = nnx.Dict(box=nnx.data(Box(nnx.Param(jnp.ones(1)))))
    match = r"'box\.inside' lies where no module is seen to hold it"
    with pytest.raises(ConversionError, match=match):
        to_torch(model)


def test_a_layer_without_what_its_type_holds_is_refused():
    module = linen.MyLinear(2, 2)
    variables = module.init(jax.random.key(0), jnp.ones(2))
    del variables["params"]["fc"]["kernel"]
    with pytest.raises(ConversionError, match="Dense at 'fc' has no 'kernel'"):
        to_torch((module, variables))


# Classes that users derive.


def test_a_class_derived_from_a_layer_is_laid_out_as_that_layer():
    class Scaled(nnx.Linear):
        def __init__(self):
            super().__init__(2, 3, use_bias=False, rngs=RNGS)
            self.scale = nnx.Param(jnp.ones((2, 3)))

    source = {"weight": torch.ones(3, 2), "scale": torch.ones(2, 3)}
    converted = from_torch(Scaled(), source)
    assert converted.kernel.shape == (2, 3)
    assert {name: t.shape for name, t in to_torch(converted).items()} == {
        name: t.shape for name, t in source.items()
    }


def test_a_rule_may_join_several_variables_of_several_modules(monkeypatch):
    class Attention(nnx.Module):
        def __init__(self):
            self.query = nnx.Linear(2, 2, use_bias=False, rngs=RNGS)
            self.key = nnx.Linear(2, 2, use_bias=False, rngs=RNGS)
            self.out = nnx.Linear(2, 2, use_bias=False, rngs=RNGS)

    def links(layer, names):
        yield Link(
            torch=("in_proj_weight",),
            flax=("query.kernel", "key.kernel"),
            to_flax=lambda joined: tuple(part.T for part in np.split(joined, 2)),
            to_torch=lambda *kernels: (np.concatenate([k.T for k in kernels]),),
        )
        yield Link(("steps",), (), lambda steps: (), lambda: (np.int64(0),))

    monkeypatch.setitem(RULES, Attention, Rule(links))
    source = {
        "in_proj_weight": torch.arange(8.0).reshape(4, 2),
        "steps": torch.tensor(0),
        "out.weight": torch.eye(2),
    }
    converted = from_torch(Attention(), source)
    np.testing.assert_array_equal(converted.query.kernel[...], [[0, 2], [1, 3]])
    np.testing.assert_array_equal(converted.key.kernel[...], [[4, 6], [5, 7]])
    returned = to_torch(converted)
    assert sorted(returned) == sorted(source)
    for name, tensor in returned.items():
        assert torch.equal(tensor, source[name]), name
    assert returned["steps"].dtype == torch.int64


def test_a_rule_that_leaves_a_variable_out_is_refused(monkeypatch):
    monkeypatch.setitem(RULES, nnx.Linear, Rule(lambda layer, names: []))
    match = "'kernel' is a variable that the rule for Linear lacks"
    with pytest.raises(ConversionError, match=match):
        to_torch(nnx.Linear(2, 2, rngs=RNGS))

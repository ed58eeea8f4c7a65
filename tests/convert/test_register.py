"""A new type of layer is one rule in one place, and a wrong rule is found."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn
from flax import nnx

from jaxclip import convert, models
from jaxclip.convert import (
    ConversionError,
    Link,
    from_torch,
    permuted,
    register,
    same,
    to_torch,
    transposed,
)
from jaxclip.convert._rules import registry


@pytest.fixture(autouse=True)
def _rules(monkeypatch):
    """Forget afterwards what a test registers."""
    monkeypatch.setattr(registry, "RULES", dict(registry.RULES))


class Torch(torch.nn.Module):
    """A torch module with two tensors of its own."""

    def __init__(self):
        """Make the two."""
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
        self.shift = torch.nn.Parameter(torch.tensor([7.0, 8.0]))


class NNX(nnx.Module):
    """The same in NNX, one of them across."""

    def __init__(self):
        """Make the two."""
        self.kernel = nnx.Param(jnp.zeros((3, 2)))
        self.bias = nnx.Param(jnp.zeros(2))


class Linen(nn.Module):
    """The same in Linen."""

    @nn.compact
    def __call__(self, x):
        self.param("kernel", nn.initializers.zeros, (3, 2))
        self.param("bias", nn.initializers.zeros, (2,))


def links(layer, variables):
    assert variables["kernel"].shape == (3, 2)
    return [transposed("weight", "kernel"), same("shift", "bias")]


def linen_target():
    module = Linen()
    return module, module.init(jax.random.key(0), jnp.zeros(1))


def test_one_rule_serves_a_layer_wherever_it_is():
    for module_type in (NNX, Linen):
        assert register(module_type, links) is links
    source = torch.nn.Sequential(Torch(), torch.nn.Linear(2, 2))
    target = nnx.Sequential(NNX(), nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    converted = from_torch(target, source)
    np.testing.assert_array_equal(
        converted.layers[0].kernel[...], [[0, 3], [1, 4], [2, 5]]
    )
    source.load_state_dict(to_torch(converted), strict=True)
    assert source[0].weight[1, 0] == 3

    _, variables = from_torch(linen_target(), Torch())
    np.testing.assert_array_equal(variables["params"]["bias"], [7, 8])


def test_it_is_a_decorator_too_and_holds_for_derived_types():
    @register(NNX)
    def rule(layer, variables):
        return links(layer, variables)

    class Derived(NNX):
        pass

    assert rule.__name__ == "rule"
    assert list(to_torch(from_torch(Derived(), Torch()))) == ["weight", "shift"]


def test_a_later_rule_takes_the_place_of_an_earlier_one():
    register(NNX, lambda layer, variables: [])
    register(NNX, links)
    assert list(to_torch(from_torch(NNX(), Torch()))) == ["weight", "shift"]


def test_a_rule_may_hide_an_attribute_and_say_what_to_do():
    class Wrapped(nnx.Module):
        def __init__(self):
            self.inner = NNX()

    register(NNX, links, remedies={"steps": "Drop it.", "weight": "Turn it."})
    register(Wrapped, lambda layer, variables: [], hidden="inner")
    from_torch(Wrapped(), Torch())
    extra = {"steps": torch.ones(3), "weight": torch.ones(3, 2)}
    with pytest.raises(ConversionError) as caught:
        from_torch(Wrapped(), Torch().state_dict() | extra)
    assert caught.value.problems == (
        "'steps' (3,) is not used. Drop it.",
        "'weight' has shape (3, 2); 'inner.kernel' (3, 2) needs (2, 3) in torch's "
        "layout. Turn it.",
    )


def test_a_rule_may_refuse_a_module():
    @register(NNX)
    def rule(layer, variables):
        raise ConversionError(["it is upside down.", "it is blue."])

    model = nnx.Dict(a=NNX(), fc=nnx.Linear(1, 1, rngs=nnx.Rngs(0)))
    with pytest.raises(ConversionError) as caught:
        from_torch(model, {"fc.weight": torch.ones(1, 1)})
    assert caught.value.problems == (
        "NNX at 'a': it is upside down.",
        "NNX at 'a': it is blue.",
        "'fc.bias' (1,) is not filled: the source has no 'fc.bias' (1,).",
    )


def test_permuted_names_for_each_axis_of_the_variable_the_tensors():
    link = permuted("weight", "kernel", (1, 2, 0))
    tensor = np.arange(24).reshape(2, 3, 4)
    (variable,) = link.to_flax(tensor)
    assert variable.shape == (3, 4, 2)
    np.testing.assert_array_equal(link.to_torch(variable)[0], tensor)


# What is wrong with a rule.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((NNX(), links), "module_type is NNX("),
        ((int, links), "module_type is <class 'int'>; it must be a class derived from"),
        ((NNX, [same("a", "b")]), "links is [Link("),
        (
            (NNX, links, "hidden", 3),
            "hidden is 3; it must be the name of an attribute.",
        ),
    ],
)
def test_wrong_types_are_refused(arguments, message):
    module_type, given, *hidden = arguments
    options = {hidden[0]: hidden[1]} if hidden else {}
    with pytest.raises(TypeError, match=re.escape(message)):
        register(module_type, given, **options)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([("weight", "kernel")], "the rule for NNX yields ('weight', 'kernel'), not a"),
        (
            [Link(("weight",), ("kernel",), lambda w: w.T, lambda k: (k.T,))],
            "to_flax of the link for 'kernel' (3, 2) returned ndarray; it must return "
            "a tuple of as many arrays as it has names, which is 1.",
        ),
        (
            [Link(("weight",), ("kernel",), lambda w: (w.T,), lambda k: (k.T, k))],
            "to_torch of the link for 'kernel' (3, 2) returned 2; it must return a",
        ),
        (
            [Link(("weight",), ("kernel",), lambda w: (w,), lambda k: (k.T,))],
            "to_flax of the link for 'kernel' (3, 2) made float32 (2, 3) for 'kernel', "
            "which is float32 (3, 2).",
        ),
    ],
)
def test_a_rule_that_yields_something_else_is_refused(wrong, message):
    register(NNX, lambda layer, variables: [*wrong, same("shift", "bias")])
    with pytest.raises(TypeError, match=re.escape(message)):
        from_torch(NNX(), Torch())


def test_what_the_documentation_names_is_there():
    for name in ("Link", "permuted", "register", "same", "transposed"):
        assert getattr(convert, name).__doc__


@pytest.mark.parametrize("parts", [("query", "key", "value"), ("q", "k", "v")])
def test_projections_that_are_layers_of_their_own_are_joined_by_a_rule(parts):
    parts = [part if len(part) > 1 else f"{part}_proj" for part in parts]
    whole = torch.nn.MultiheadAttention(6, 2).state_dict()
    whole["in_proj_bias"] = torch.arange(18.0)  # zeros at first
    apart = {name: whole[name] for name in ("out_proj.weight", "out_proj.bias")}
    for kind in ("weight", "bias"):
        names = [f"{part}.{kind}" for part in parts]
        apart |= zip(names, whole[f"in_proj_{kind}"].chunk(3), strict=True)

    class Apart(models.MultiheadAttention):
        pass

    target = nnx.eval_shape(lambda: Apart(6, 2, rngs=nnx.Rngs(0)))
    with pytest.raises(ConversionError) as caught:
        from_torch(target, apart)
    unused = [text for text in caught.value.problems if " is not used. " in text]
    assert len(unused) == 6
    assert all("one in_proj_weight; where each has a layer" in text for text in unused)

    @register(Apart)
    def joined(layer, variables):
        for kind in ("weight", "bias"):
            yield Link(
                tuple(f"{part}.{kind}" for part in parts),
                (f"in_proj_{kind}",),
                lambda *three: (np.concatenate(three),),
                lambda one: tuple(np.split(one, 3)),
            )

    layer = from_torch(target, apart)
    np.testing.assert_array_equal(layer.in_proj_weight[...], whole["in_proj_weight"])
    np.testing.assert_array_equal(layer.in_proj_bias[...], whole["in_proj_bias"])
    returned = to_torch(layer)
    assert returned.keys() == apart.keys()
    assert all(torch.equal(returned[name], apart[name]) for name in apart)

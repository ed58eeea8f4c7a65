"""What does not fit is refused: all of it at once, each with what it may have meant."""

import pickle
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn
from flax import nnx

from jaxclip.convert import ConversionError, from_torch, to_torch


def model():
    """Return two layers and an array."""
    rngs = nnx.Rngs(0)
    return nnx.Dict(
        embed=nnx.Embed(4, 3, rngs=rngs),
        fc=nnx.Linear(3, 2, rngs=rngs),
        scale=nnx.Param(jnp.ones(5)),
    )


def good():
    return {
        "embed.weight": torch.ones(4, 3),
        "fc.weight": torch.ones(2, 3),
        "fc.bias": torch.ones(2),
        "scale": torch.ones(5),
    }


def problems(source, target=None, **kwargs):
    with pytest.raises(ConversionError) as caught:
        from_torch(model() if target is None else target, source, **kwargs)
    return list(caught.value.problems)


def test_the_good_source_is_good():
    from_torch(model(), good())


@pytest.mark.parametrize("name", good())
def test_a_missing_tensor_is_named_with_both_shapes(name):
    source = good()
    shape = tuple(source.pop(name).shape)
    (problem,) = problems(source)
    assert problem.endswith(f"is not filled: the source has no {name!r} {shape}.")
    if name == "fc.weight":
        assert problem.startswith("'fc.kernel' (3, 2) ")


def test_a_tensor_left_over_is_named():
    assert problems(good() | {"extra": torch.ones(7)}) == ["'extra' (7,) is not used."]


def test_a_misspelt_name_is_shown_from_both_sides():
    source = good()
    source["fc.wieght"] = source.pop("fc.weight")
    assert problems(source) == [
        "'fc.kernel' (3, 2) is not filled: the source has no 'fc.weight' (2, 3). "
        "Nearest: 'fc.wieght' (2, 3).",
        "'fc.wieght' (2, 3) is not used. Nearest: 'fc.weight' (2, 3).",
    ]


def test_a_tensor_of_the_same_shape_is_near_whatever_its_name():
    source = good()
    source["x"] = source.pop("scale")
    source["y"] = torch.ones(6)
    assert problems(source) == [
        "'scale' (5,) is not filled: the source has no 'scale' (5,). "
        "Nearest: 'x' (5,) (same shape).",
        "'x' (5,) is not used. Nearest: 'scale' (5,) (same shape).",
        "'y' (6,) is not used.",
    ]


def test_a_shape_is_compared_and_shown_in_torchs_layout():
    # The shape of the Flax kernel is not the shape of the torch weight.
    assert problems(good() | {"fc.weight": torch.ones(3, 2)}) == [
        "'fc.weight' has shape (3, 2); 'fc.kernel' (3, 2) needs (2, 3) in torch's "
        "layout."
    ]
    swapped = {"embed.weight": torch.ones(2, 3), "fc.weight": torch.ones(4, 3)}
    assert problems(good() | swapped) == [
        "'embed.weight' has shape (2, 3); 'embed.embedding' (4, 3) needs (4, 3) in "
        "torch's layout. Nearest: 'fc.weight' (4, 3).",
        "'fc.weight' has shape (4, 3); 'fc.kernel' (3, 2) needs (2, 3) in torch's "
        "layout. Nearest: 'embed.weight' (2, 3).",
    ]


@pytest.mark.parametrize("shape", [(), (1,), (1, 5), (5, 1)])
def test_shapes_are_neither_broadcast_nor_squeezed(shape):
    (problem,) = problems(good() | {"scale": torch.ones(shape)})
    assert problem == (
        f"'scale' has shape {shape}; 'scale' (5,) needs (5,) in torch's layout."
    )


def test_dtypes_are_not_cast():
    assert problems(good() | {"scale": torch.ones(5, dtype=torch.float64)}) == [
        "'scale' is float64; 'scale' (5,) needs float32. Nothing is cast unless "
        "dtype='float32' says so; or build the target with float64 parameters, under "
        "jax.enable_x64(True)."
    ]
    (problem,) = problems(good() | {"scale": torch.ones(5, dtype=torch.int32)})
    assert problem == (
        "'scale' is int32; 'scale' (5,) needs float32. Only floats are cast, to "
        "floats: cast the source first, or build the target with int32 parameters."
    )
    for dtype in (torch.bfloat16, torch.float16):
        (problem,) = problems(good() | {"scale": torch.ones(5, dtype=dtype)})
        name = str(dtype).removeprefix("torch.")
        assert problem.startswith(f"'scale' is {name}; 'scale' (5,) needs float32.")
        assert problem.endswith(f"or build the target with {name} parameters.")


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (3.0, "is a float, not a tensor or an array."),
        ([1.0], "is a list, not a tensor or an array."),
        (None, "is a NoneType, not a tensor or an array."),
        (torch.ones(5).to_sparse(), "cannot be read as a dense array: "),
        (torch.ones(5, device="meta"), "cannot be read as a dense array: "),
    ],
    ids=["float", "list", "None", "sparse", "meta"],
)
def test_what_has_no_dense_values_is_refused(value, what):
    (problem,) = problems(good() | {"scale": value})
    assert problem.startswith(f"'scale' {what}")


def test_a_mapping_among_the_tensors_is_named_with_the_key_that_takes_it():
    assert problems({"model": good(), "step": 3}, key="")[-2:] == [
        "'model' is a mapping, not a tensor; if it is the state dict, say so with "
        "key='model'.",
        "'step' () is not used.",
    ]


def test_all_problems_come_at_once():
    source = {
        "fc.weight": torch.ones(3, 2),
        "fc.bias": torch.ones(2, dtype=torch.float64),
        "scale": "text",
        "left.over": torch.ones(1),
    }
    found = problems(source, rename={"nothing": "x"}, ignore=["none.*"])
    assert [problem.split(";")[0].split(":")[0] for problem in found] == [
        "ignore has the pattern 'none.*', which no tensor of the source matches.",
        "rename has the prefix 'nothing', which no tensor of the source has.",
        "'embed.embedding' (4, 3) is not filled",
        "'left.over' (1,) is not used.",
        "'scale' is a str, not a tensor or an array.",
        "'fc.weight' has shape (3, 2)",
        "'fc.bias' is float64",
    ]


def test_problems_with_the_target_come_with_those_of_the_source():
    class Two(nnx.Module):
        def __init__(self):
            self.lora = nnx.LoRA(1, 1, 1, rngs=nnx.Rngs(0))
            self.scale = nnx.Param(jnp.ones(5))

    found = problems({"lora.weight": torch.ones(1, 1, 3)}, Two())
    assert found[0].startswith(
        "'lora.lora_a', 'lora.lora_b': flax.nnx.nn.lora.LoRA has"
    )
    assert found[1].startswith("'scale' (5,) is not filled")
    assert found[2] == "'lora.weight' (1, 1, 3) is not used."


def test_a_renamed_tensor_is_shown_under_both_names():
    source = {f"net.{name}": tensor for name, tensor in good().items()}
    source["net.scale"] = torch.ones(6)
    source["net.more"] = torch.ones(1)
    assert problems(source, rename={"net": ""}) == [
        "'more' (in the source 'net.more') (1,) is not used.",
        "'scale' (in the source 'net.scale') has shape (6,); 'scale' (5,) needs (5,) "
        "in torch's layout.",
    ]


def test_two_variables_of_one_name_are_refused():
    def layer():
        return nnx.Linear(1, 1, use_bias=False, rngs=nnx.Rngs(0))

    clashing = nnx.Dict({"a.b": layer(), "a": nnx.Dict({"b": layer()})})
    match = (
        r"'a\.b\.kernel' \(1, 1\) and 'a\.b\.kernel' \(1, 1\) would both be "
        r"'a\.b\.weight' in torch"
    )
    with pytest.raises(ConversionError, match=match):
        to_torch(clashing)


def test_the_hints_for_very_many_names_end():
    target = nnx.Dict({f"w{i}": nnx.Param(jnp.ones(1)) for i in range(300)})
    found = problems({f"model.w{i}": np.ones(1, "f") for i in range(300)}, target)
    assert len(found) == 600
    assert sum("Nearest" in problem for problem in found) == 40


def test_a_target_without_weights_is_refused():
    match = "target has no parameter to fill"
    with pytest.raises(ConversionError, match=match):
        to_torch(nnx.Dropout(0.5, rngs=nnx.Rngs(0)))
    with pytest.raises(ConversionError, match=match):
        to_torch((nn.Dense(2), {}))
    assert "'a' (1,) is not used." in problems({"a": torch.ones(1)}, (nn.Dense(2), {}))


def test_a_variable_that_holds_no_array_is_refused():
    target = model()
    target.scale = nnx.Param("text")
    with pytest.raises(ConversionError, match="'scale' holds a str, not an array"):
        from_torch(target, good())


def test_a_parameter_that_is_left_out_needs_no_value():
    target = model()
    target.scale = nnx.Param(None)
    source = good()
    del source["scale"]
    assert from_torch(target, source).scale.get_value() is None


def test_a_dtype_that_torch_lacks_is_refused():
    target = model()
    target.scale = nnx.Param(jnp.ones(5, "float8_e4m3b11fnuz"))
    match = r"'scale' \(5,\) torch has no dtype float8_e4m3b11fnuz"
    with pytest.raises(ConversionError, match=match):
        to_torch(target)


@pytest.mark.parametrize(
    ("target", "what"),
    [
        (nn.Dense(2), "a Linen module without its variables"),
        (torch.nn.Linear(2, 2), r"a torch\.nn\.modules\.linear\.Linear"),
        ({"params": {}}, "what a Linen module holds, without the module"),
        ((nn.Dense(2), None), r"a builtins\.tuple"),
        ([nn.Dense(2), {}], r"a builtins\.list"),
    ],
    ids=["linen", "torch", "dict", "pair", "list"],
)
def test_a_target_of_another_type_is_refused(target, what):
    match = rf"target is {what}; it must be an NNX module, a function that makes one"
    with pytest.raises(TypeError, match=match):
        from_torch(target, {})
    with pytest.raises(TypeError, match=match):
        to_torch(target)


def test_one_collection_in_place_of_all_variables_is_refused():
    module = nn.Dense(2)
    params = module.init(jax.random.key(0), jnp.ones(2))["params"]
    match = r"have the keys \['bias', 'kernel'\], .* Pass all that module\.init returns"
    with pytest.raises(TypeError, match=match):
        to_torch((module, params))


def test_the_error_shows_its_public_name_and_survives_pickling():
    error = ConversionError(["'a' is wrong.", "'b' is wrong."])
    assert ConversionError.__module__ == "jaxclip.convert"
    copy = pickle.loads(pickle.dumps(error))
    assert copy.problems == error.problems
    assert str(copy) == str(error)
    assert str(ConversionError(["x"])).startswith("nothing was converted; 1 problem:\n")


def test_problems_that_differ_in_numbers_alone_are_printed_as_one():
    layers = nnx.List([nnx.Linear(2, 2, rngs=nnx.Rngs(0)) for _ in range(11)])
    names = [f"layers.{n}.weight" for n in range(11)]
    found = problems(dict.fromkeys(names, np.ones((2, 2), "f")), layers)
    # Every one is there,
    assert len(found) == 33
    error = ConversionError(found, "Try this.")
    head, *lines, hint = str(error).splitlines()
    assert head == "nothing was converted; 33 problems:"
    # and one of each kind is shown, with its hints.
    assert [line.partition(" Nearest")[0] for line in lines] == [
        "  - '0.kernel' (2, 2) is not filled: the source has no '0.weight' (2, 2).",
        "  - '0.bias' (2,) is not filled: the source has no '0.bias' (2,). "
        "And 10 more like it, to '10.bias'.",
        "  - 'layers.0.weight' (2, 2) is not used.",
    ]
    for line, last in ((lines[0], "10.kernel"), (lines[2], "layers.10.weight")):
        assert " Nearest: " in line
        assert line.endswith(f" And 10 more like it, to {last!r}.")
    assert hint == "Try this."


def test_problems_of_which_more_differs_are_printed_one_by_one():
    different = [
        "'a.0.w' (2, 2) is not used.",
        "'a.1.w' (2, 3) is not used.",  # another shape
        "'b.2.w' (2, 2) is not used.",  # another name
        "'a.3.w' (2, 2) is not filled.",  # another problem
        "'a.4.w' (2, 2) is not used.",  # like the first; two are few
    ]
    assert len(str(ConversionError(different)).splitlines()) == 6


def test_a_source_may_be_anything_with_a_state_dict():
    source = types.SimpleNamespace(state_dict=good)
    np.testing.assert_array_equal(from_torch(model(), source).scale[...], np.ones(5))

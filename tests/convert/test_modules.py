"""Which modules are one on either side, and what users say of their outputs."""

import json
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from flax import linen as nn
from flax import nnx

from jaxclip import models
from jaxclip.convert import ConversionError, WeightMap, mapping, register, same
from jaxclip.convert._rules import registry
from tests.trios import BY_NAME


class Block(nnx.Module):
    """A convolution and a norm that a user has put together."""

    def __init__(self, rngs):
        """Make the layers, one of them without weights."""
        self.conv = nnx.Conv(2, 3, (3, 3), rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.norm = nnx.GroupNorm(3, num_groups=1, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.drop(self.conv(x)))


class Settings(nnx.Module):
    """A module that nobody calls."""

    def __init__(self):
        """Hold one number."""
        self.scale = nnx.Param(jnp.ones(1))


class Net(nnx.Module):
    """Blocks and a head."""

    def __init__(self, rngs):
        """Make the layers."""
        self.blocks = nnx.List([Block(rngs), Block(rngs)])
        self.settings = Settings()
        self.fc = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return self.fc(x.mean((1, 2)))


def make_net():
    return Net(nnx.Rngs(0))


class LinenNet(nn.Module):
    """A block in Linen, where a list and an index make one name."""

    def setup(self):
        self.convs = [nn.Conv(3, (3, 3)), nn.Conv(3, (3, 3))]

    def __call__(self, x):
        for conv in self.convs:
            x = conv(x)
        return x


@pytest.fixture(scope="module")
def net():
    """Return the map of the net."""
    return mapping(make_net)


def names(weights):
    return {
        name: np.ones(spec.shape, "f")
        for entry in weights.entries
        for name, spec in entry.expected.items()
    }


def paths(weights):
    return {pair.torch: pair.flax for pair in weights.modules}


# Which modules are one.


def test_modules_are_those_that_hold_weights_and_return_something(net):
    assert [(p.torch, p.flax, p.kind, p.layout) for p in net.modules] == [
        ("", "", "Net", None),
        ("blocks.0", "blocks.0", "Block", None),
        ("blocks.0.conv", "blocks.0.conv", "Conv", "channels_last_2d"),
        ("blocks.0.norm", "blocks.0.norm", "GroupNorm", "channels_last"),
        ("blocks.1", "blocks.1", "Block", None),
        ("blocks.1.conv", "blocks.1.conv", "Conv", "channels_last_2d"),
        ("blocks.1.norm", "blocks.1.norm", "GroupNorm", "channels_last"),
        ("fc", "fc", "Linear", "same"),
    ]


def test_a_hidden_attribute_is_in_flaxs_path_alone():
    weights = mapping(lambda: nnx.Sequential(nnx.Linear(1, 1, rngs=nnx.Rngs(0))))
    assert paths(weights) == {"": "", "0": "layers.0"}


def test_what_one_module_is_in_torch_is_no_several():
    def make():
        rngs = nnx.Rngs(0)
        return nnx.Dict(
            attention=nnx.MultiHeadAttention(2, 4, rngs=rngs, decode=False),
            normed=models.WeightNorm(nnx.Linear(2, 2, rngs=rngs)),
        )

    assert list(paths(mapping(make))) == ["attention", "normed"]


def test_a_module_in_stacked_layers_has_a_pair_for_each():
    def layer(rngs):
        return nnx.Dict(a=nnx.Linear(3, 3, rngs=rngs), b=nnx.Conv(3, 3, 1, rngs=rngs))

    def make():
        keys = nnx.Rngs(0).split((2, 3))
        stacks = nnx.vmap(lambda rngs: nnx.Dict(h=nnx.vmap(layer)(rngs)))(keys)
        return nnx.Dict(h=stacks, fc=nnx.Linear(3, 2, rngs=nnx.Rngs(0)))

    def flax(i, j, name):
        return f"h[{i}].h[{j}].{name}"

    weights = mapping(make, stacked=["h", "h.h"])
    expected = {
        f"h.{i}.h.{j}.{name}": flax(i, j, name)
        for i in range(2)
        for j in range(3)
        for name in "ab"
    }
    assert paths(weights) == {"fc": "fc"} | expected
    images = np.arange(30.0).reshape(1, 3, 10)
    outputs = weights.activations_to_flax({"h.1.h.2.b": images})
    np.testing.assert_array_equal(outputs[flax(1, 2, "b")], images.swapaxes(1, 2))
    back = weights.activations_to_torch(outputs)
    np.testing.assert_array_equal(back["h.1.h.2.b"], images)


def test_pairs_of_stacked_layers_follow_a_rename():
    def make():
        layers = nnx.vmap(lambda rngs: nnx.Linear(3, 3, rngs=rngs))
        return nnx.Dict(h=layers(nnx.Rngs(0).split(2)))

    source = torch.nn.ModuleDict(
        {"layers": torch.nn.ModuleList(torch.nn.Linear(3, 3) for _ in range(2))}
    )
    weights = mapping(make, source, stacked="h", rename={"layers": "h"})
    assert paths(weights) == {"layers.0": "h[0]", "layers.1": "h[1]"}


@pytest.mark.parametrize("framework", ["nnx", "linen"])
def test_a_module_of_two_names_has_two_pairs(framework):
    trio = BY_NAME["gpt"]
    source = trio.torch_model(torch.float32)
    model = getattr(trio, f"{framework}_model")(source, "float32")
    whole = source.state_dict()
    tied = {name: t for name, t in whole.items() if name != "lm_head.weight"}
    wrapped = {f"module.{name}": tensor for name, tensor in tied.items()}
    for tensors, prefix in ((whole, ""), (tied, ""), (wrapped, "module.")):
        pairs = {pair.torch: pair for pair in mapping(model, tensors).modules}
        wte, head = pairs[f"{prefix}wte"], pairs[f"{prefix}lm_head"]
        assert (wte.flax, head.flax) == ("wte", "lm_head")
        # Flax lists an NNX module under the name that is first in the alphabet.
        aliases = ("lm_head", None) if framework == "nnx" else (None, "wte")
        assert (wte.alias_of, head.alias_of) == aliases


UNCHANGED = ("", "fc", "blocks.0", "blocks.0.conv", "blocks.0.norm")


@pytest.mark.parametrize(
    ("rename", "expected"),
    [
        # As torch.compile does it.
        (
            lambda name: f"_orig_mod.{name}",
            [f"_orig_mod.{path}".rstrip(".") for path in UNCHANGED],
        ),
        # A container is known by all that it holds, which the root is no longer.
        (
            lambda name: name.replace("blocks.", "body."),
            [None, "fc", "body.0", "body.0.conv", "body.0.norm"],
        ),
        # Tensors of the norms have other names.
        (lambda name: name.replace("norm.weight", "norm.gamma"), UNCHANGED),
        # A layer of each block has another place.
        (
            lambda name: re.sub(r"blocks\.(\d)\.norm", r"norms.\1", name),
            [None, "fc", None, "blocks.0.conv", "norms.0"],
        ),
        # The root holds what the last layer holds, and more.
        (lambda name: name.replace("fc.", "fc_"), [None, None, *UNCHANGED[2:]]),
        # One module holds what two hold.
        (
            lambda name: re.sub(r"(conv|norm)\.(\w+)$", r"\1_\2", name),
            [None, "fc", None, None, None],
        ),
    ],
    ids=["wrapper", "body", "gamma", "norms", "fc_", "conv_"],
)
def test_modules_have_their_paths_in_the_source(net, rename, expected):
    back = {rename(name): name for name in names(net)}
    source = {name: names(net)[own] for name, own in back.items()}
    found = mapping(make_net, source, rename=lambda name: back[name]).modules
    torch = {pair.flax: pair.torch for pair in found}
    assert [torch.get(path) for path in UNCHANGED] == [*expected]
    second = [path.replace("0", "1") for path in UNCHANGED]
    assert [torch.get(path) for path in second] == [
        path and path.replace("0", "1") for path in expected
    ]


def test_what_is_left_out_of_the_source_is_no_part_of_a_module(net):
    source = names(net) | {"blocks.0.norm.count": np.ones(1)}
    weights = mapping(make_net, source, ignore="*.count")
    assert paths(weights) == paths(net)


def test_a_flatten_leaves_the_output_of_a_linear_as_it_is():
    def make():
        rngs = nnx.Rngs(0)
        return nnx.Dict(
            norm=models.BatchNorm(12), fc=nnx.Linear(12, 2, rngs=rngs)
        )  # a norm of what was flattened, which it returns in that order

    norm = {f"norm.{name}": (3, 2, 2) for name in ("weight", "running_mean")}
    weights = mapping(make, flatten={"fc": (3, 2, 2), **norm})
    assert {p.torch: p.layout for p in weights.modules} == {"norm": None, "fc": "same"}


# What users say.


def layouts(weights):
    return {pair.torch: pair.layout for pair in weights.modules}


def test_what_a_container_returns_is_to_be_said(net):
    image = np.arange(36.0).reshape(1, 3, 3, 4)
    with pytest.raises(ConversionError) as caught:
        net.activations_to_flax({"blocks.0": image, "fc": image, "": image})
    assert caught.value.problems == (
        "'blocks.0' is a Block, of which it is not known how its output lies. Say it: "
        "with_layouts({'blocks.0': 'same'}), or 'channels_last', or a permutation of "
        "axes.",
        "'' is a Net, of which it is not known how its output lies. Say it: "
        "with_layouts({'': 'same'}), or 'channels_last', or a permutation of axes.",
    )
    said = net.with_layouts({"": "same", "blocks.*": "channels_last"})
    mapped = said.activations_to_flax({"blocks.0": image, "fc": image, "": image})
    np.testing.assert_array_equal(mapped["blocks.0"], image.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(mapped["fc"], image)
    np.testing.assert_array_equal(mapped[""], image)
    # What types say stays, and the map that was given is not changed.
    assert layouts(said)["blocks.0.conv"] == "channels_last_2d"
    assert layouts(net)["blocks.0"] is None


def test_a_function_may_say_it(net):
    said = net.with_layouts(lambda path: (0, 2, 3, 1) if "blocks" in path else None)
    assert layouts(said)["blocks.0"] == (0, 2, 3, 1)
    assert layouts(said)["blocks.0.conv"] == (0, 2, 3, 1)
    assert layouts(said)["fc"] == "same"
    image = torch.arange(24.0).reshape(1, 2, 3, 4)
    mapped = said.activations_to_flax({"blocks.0": image})
    np.testing.assert_array_equal(mapped["blocks.0"], image.permute(0, 2, 3, 1))
    assert torch.equal(said.activations_to_torch(mapped)["blocks.0"], image)


def test_a_path_counts_for_more_than_a_type_and_a_pattern_for_less(net):
    said = net.with_layouts({"blocks.0.conv": "same", "blocks.*": "channels_last"})
    assert layouts(said)["blocks.0.conv"] == "same"
    assert layouts(said)["blocks.1.conv"] == "channels_last_2d"
    with pytest.raises(ConversionError) as caught:
        net.with_layouts({"*": "same", "x*": "same"})
    assert caught.value.problems[:2] == (
        "layouts has the pattern 'x*', which no module of the mapping matches.",
        "layouts has '*': 'same', and 'blocks.0.conv' is a Conv, whose output is "
        "'channels_last_2d'. Narrow the pattern; if it is meant, say it of "
        "'blocks.0.conv' by that path.",
    )
    assert len(caught.value.problems) == 5


def test_the_first_pattern_that_fits_is_taken(net):
    both = {"blocks.?": "channels_last", "blocks.[01]": (0, 1)}
    assert layouts(net.with_layouts(both))["blocks.0"] == "channels_last"
    assert layouts(net.with_layouts(both))["blocks.1"] == "channels_last"


def test_a_module_without_weights_may_be_added():
    module = LinenNet()
    inputs = jax.ShapeDtypeStruct((1, 4, 4, 2), "float32")
    weights = mapping((module, inputs))
    assert paths(weights) == {"": "", "convs.0": "convs_0", "convs.1": "convs_1"}
    image = torch.arange(24.0).reshape(1, 2, 3, 4)
    with pytest.raises(ConversionError) as caught:
        weights.activations_to_flax({"convs.2": image})
    assert caught.value.problems == (
        "'convs.2' is no module of the mapping, which has those that hold weights, "
        "return something, and are one on either side. Leave it out; or, if there is "
        "such a module in Flax, add it: with_layouts({'convs.2': 'same'}), or "
        "'channels_last'. Nearest: 'convs.1', 'convs.0'.",
    )
    added = dict.fromkeys(("pool", "convs.0.drop.mask"), "channels_last")
    said = weights.with_layouts(added)
    mapped = said.activations_to_flax(dict.fromkeys(added, image))
    assert {path: array.shape for path, array in mapped.items()} == {
        "pool": (1, 3, 4, 2),
        "convs_0.drop.mask": (1, 3, 4, 2),
    }
    returned = said.activations_to_torch(mapped)
    assert all(torch.equal(tensor, image) for tensor in returned.values())
    assert returned.keys() == added.keys()
    with pytest.raises(ConversionError, match=r"'convs\.0' and 'convs_0' would both"):
        weights.with_layouts({"convs_0": "same"})


@pytest.mark.parametrize(
    ("layout", "shown"),
    [
        ("channels_first", "'channels_first'"),
        ((0, 2), "(0, 2)"),
        ((0, "same"), "(0, 'same')"),
        ((1.0, 0.0), "1.0"),
        ((), "()"),
        (None, "None"),
        (("same", ("x",)), "'x'"),
        ("flattened", "'flattened'"),
        ("flattened(3)", "'flattened(3)'"),
        ("flattened(2, 3, )", "'flattened(2, 3, )'"),
    ],
)
def test_what_is_no_layout_is_refused(net, layout, shown):
    message = f"layouts['fc'] is {shown}; it must be one of 'same', 'channels_last', "
    with pytest.raises(ValueError, match=re.escape(message)):
        net.with_layouts({"fc": layout})
    with pytest.raises(TypeError, match="layouts is 'same'; it must be a mapping from"):
        net.with_layouts("same")


@pytest.mark.parametrize("shape", [(2, 3), (3, 4), (2, 3, 4), (2, 3, 4, 5)])
def test_flattened_images_are_put_in_the_other_order(net, shape):
    word = f"flattened({', '.join(map(str, shape))})"
    said = net.with_layouts({"fc": word})
    images = np.arange(6.0 * np.prod(shape)).reshape(3, 2, *shape)
    flat = images.reshape(3, 2, -1)
    mapped = said.activations_to_flax({"fc": flat})["fc"]
    np.testing.assert_array_equal(
        mapped, np.moveaxis(images, 2, -1).reshape(flat.shape)
    )
    back = said.activations_to_torch({"fc": mapped})["fc"]
    np.testing.assert_array_equal(back, flat)
    with pytest.raises(ConversionError, match=r"its last axis is not of .*'flattened"):
        said.activations_to_flax({"fc": flat[..., 1:]})


# What a module returns.


def test_an_output_keeps_its_structure_and_its_dtypes(net):
    image = torch.arange(72, dtype=torch.bfloat16).reshape(2, 3, 3, 4)
    output = [(image, None), {"count": torch.tensor([[[[7]]]])}]
    mapped = net.activations_to_flax({"blocks.0.conv": output})["blocks.0.conv"]
    (first, none), second = mapped
    assert none is None
    assert (first.dtype, second["count"].dtype) == (ml_dtypes.bfloat16, "int64")
    assert first.shape == (2, 3, 4, 3)
    returned = net.activations_to_torch({"blocks.0.conv": mapped})["blocks.0.conv"]
    assert torch.equal(returned[0][0], image)
    assert returned[0][0].data_ptr() != image.data_ptr()


def test_parts_of_a_tuple_may_lie_otherwise(net):
    # Time first in torch, the batch first in Flax; the state as it is.
    said = net.with_layouts({"fc": ((1, 0, 2), ("same", "same"))})
    sequence, state = np.arange(24.0).reshape(4, 2, 3), np.ones((1, 2, 3))
    call = (sequence, (state, state))
    for output in (call, [call, call]):
        mapped = said.activations_to_flax({"fc": output})["fc"]
        first = mapped[0] if isinstance(output, list) else mapped
        np.testing.assert_array_equal(first[0], sequence.swapaxes(0, 1))
        np.testing.assert_array_equal(first[1][1], state)
        returned = said.activations_to_torch({"fc": mapped})["fc"]
        assert jax.tree.all(
            jax.tree.map(lambda a, b: np.array_equal(a, b), returned, output)
        )


def test_what_does_not_fit_a_layout_is_refused_all_at_once(net):
    said = net.with_layouts(
        {"": (1, 0), "blocks.0": ("same", "same"), "blocks.1": ("same", "same")}
    )
    one = np.ones(3)
    with pytest.raises(ConversionError) as caught:
        said.activations_to_flax(
            {
                "": one,
                "blocks.0": one,
                "blocks.1": (one,),
                "blocks.0.conv": one[None],
                "blocks.0.norm": one,
                "fc": "text",
            }
        )
    assert caught.value.problems == (
        "'' has shape (3,), and not 2 axes.",
        "'blocks.0' is no tuple of 2, as its layout, but ndarray.",
        "'blocks.1' is no tuple of 2, as its layout, but 1.",
        "'blocks.0.conv' has shape (1, 3), too few axes for 'channels_last_2d'.",
        "'blocks.0.norm' has shape (3,), too few axes for 'channels_last'.",
        "'fc' is a str, not a tensor or an array.",
    )


# Maps in files.


@pytest.fixture(scope="module")
def saved(tmp_path_factory, net):
    path = tmp_path_factory.mktemp("map") / "map.json"
    parts = {"": ((1, 0, 2), "same"), "blocks.0": "channels_last"}
    said = net.with_layouts(parts)
    said.save(path)
    return said, path


def test_a_file_holds_the_modules(saved):
    said, path = saved
    loaded = WeightMap.load(path)
    assert loaded.modules == said.modules
    assert str(loaded) == str(said)
    rows = [line.split() for line in str(loaded).splitlines()]
    assert ["blocks.1", "unknown", "blocks.1", "Block"] in rows


def changed(path, change):
    said = json.loads(path.read_text())
    change(said)
    other = path.with_name("changed.json")
    other.write_text(json.dumps(said))
    return other


def test_a_file_of_version_1_serves_all_but_activations(saved, net):
    def older(said):
        said["format"] = said["format"].replace("2", "1")
        del said["modules"]

    loaded = WeightMap.load(changed(saved[1], older))
    assert loaded.entries[0].names == net.entries[0].names
    assert loaded.to_flax(names(net))["fc"]["kernel"].shape == (3, 2)
    with pytest.raises(ConversionError, match="it was read from a file of version 1"):
        loaded.activations_to_flax({"fc": np.ones(1)})
    assert "torch module" not in str(loaded)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda said: said.pop("modules"), "it lacks 'modules'"),
        (lambda said: said["modules"][0].pop("layout"), "it lacks 'layout'"),
        (
            lambda said: said["modules"][0].update(layout="x"),
            "a layout is 'x'; it must be one of 'same',",
        ),
        (
            lambda said: said["modules"][1].update(torch=""),
            "it has several modules at one path",
        ),
        (
            lambda said: said["modules"][1].update(flax=""),
            "it has several modules at one path",
        ),
        (
            lambda said: said.update(format=said["format"].replace("2", "3")),
            "its format is 'jaxclip.convert map, version 3', not '.*version 2'",
        ),
    ],
)
def test_a_file_with_damaged_modules_is_refused(saved, change, message):
    path = changed(saved[1], change)
    with pytest.raises(ValueError, match=message) as caught:
        WeightMap.load(path)
    assert str(caught.value).startswith(f"{str(path)!r} is damaged or no map: ")


# Layers of users' own.


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("channels_last", "channels_last"),
        ([1, 0], (1, 0)),
        (lambda layer: "same", "same"),
        (lambda layer: layer.conv, "channels_last_2d"),
        (lambda layer: None, None),
        (None, None),
    ],
)
def test_a_rule_says_how_the_output_of_its_layer_lies(monkeypatch, layout, expected):
    monkeypatch.setattr(registry, "RULES", dict(registry.RULES))
    register(Block, lambda layer, variables: [], layout=layout)
    assert layouts(mapping(make_net))["blocks.1"] == expected


def test_a_rule_for_weights_alone_leaves_the_layout_to_the_type(monkeypatch):
    monkeypatch.setattr(registry, "RULES", dict(registry.RULES))

    class Named(nnx.LayerNorm):
        pass

    register(Named, lambda layer, variables: [same(f"my_{n}", n) for n in variables])
    weights = mapping(lambda: nnx.Dict(norm=Named(2, rngs=nnx.Rngs(0))))
    assert weights.entries[0].names == ("norm.my_bias",)
    assert layouts(weights) == {"norm": "same"}


def test_a_rule_with_no_layout_at_all_is_refused(monkeypatch):
    monkeypatch.setattr(registry, "RULES", dict(registry.RULES))
    with pytest.raises(ValueError, match="layout is 'NHWC'; it must be one of"):
        register(Block, lambda layer, variables: [], layout="NHWC")
    register(Block, lambda layer, variables: [], layout=lambda layer: "NHWC")
    with pytest.raises(ValueError, match="the layout of Block is 'NHWC'; it must be"):
        mapping(make_net)

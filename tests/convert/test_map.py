"""One map serves weights, gradients and moments, and says in a file what it does."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxclip import models
from jaxclip.convert import ConversionError, WeightMap, from_torch, mapping, to_torch
from jaxclip.convert._rules.links import Link, Rule, same
from jaxclip.convert._rules.pieces import View
from jaxclip.convert._rules.registry import RULES
from jaxclip.models import linen
from torchref.my_linear import my_net

X = np.linspace(-1, 1, 8, dtype="f").reshape(2, 4)


def trained():
    """Return a torch net with gradients and Adam's moments after a step."""
    torch.manual_seed(1)
    net = my_net()
    adam = torch.optim.Adam(net.parameters(), lr=0.1)
    net(torch.from_numpy(X)).square().sum().backward()
    adam.step()
    return net, adam


def test_gradients_are_mapped_as_weights_are():
    net, _ = trained()
    made = mapping(lambda: models.my_net(rngs=nnx.Rngs(0)), net)
    model = from_torch(models.my_net(rngs=nnx.Rngs(0)), net)
    net.zero_grad()
    net(torch.from_numpy(X)).square().sum().backward()
    torch_grads = {name: p.grad for name, p in net.named_parameters()}

    grads = nnx.grad(lambda model: (model(X) ** 2).sum())(model)
    mapped = made.to_torch(grads)
    assert mapped.keys() == torch_grads.keys()
    for name, grad in torch_grads.items():
        torch.testing.assert_close(mapped[name], grad)

    back = made.to_flax(torch_grads, like=grads)
    assert jax.tree.structure(back) == jax.tree.structure(grads)
    for one, other in zip(*map(jax.tree.leaves, (back, grads)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_moments_are_mapped_as_weights_are():
    net, adam = trained()
    module = linen.my_net()
    made = mapping((module, X), net).parameters()
    moments = {
        name: adam.state[parameter]["exp_avg"]
        for name, parameter in net.named_parameters()
    }
    params = from_torch((module, X), net)[1]
    state = optax.adam(0.1).init(params)[0]
    mu = made.to_flax(moments, like=state.mu)
    assert jax.tree.structure(mu) == jax.tree.structure(state.mu)
    returned = made.to_torch(mu)
    assert all(torch.equal(returned[name], moments[name]) for name in moments)


def test_a_map_keeps_the_dtypes_of_what_it_is_given():
    made = mapping(nnx.Linear(2, 1, rngs=nnx.Rngs(0)))
    tree = made.to_flax({"weight": np.ones((1, 2)), "bias": np.ones(1, "int8")})
    assert (tree["kernel"].dtype, tree["bias"].dtype) == ("float64", "int8")
    returned = made.to_torch(tree)
    assert (returned["weight"].dtype, returned["bias"].dtype) == (
        torch.float64,
        torch.int8,
    )


def test_the_parameters_are_those_that_torch_has():
    class Net(nnx.Module):
        def __init__(self):
            self.weight = nnx.Param(jnp.ones(2))
            self.mean = nnx.BatchStat(jnp.ones(2))

    made = mapping(Net())
    assert [entry.names for entry in made.entries] == [("weight",), ("mean",)]
    assert [entry.names for entry in made.parameters().entries] == [("weight",)]


def test_in_linen_the_parameters_are_those_of_one_collection():
    norm = linen.BatchNorm(2)
    inputs = jax.ShapeDtypeStruct((1, 2), "float32")
    init = partial(norm.init, use_running_average=True)
    made = mapping((norm, jax.eval_shape(init, jax.random.key(0), inputs)))
    names = {name for entry in made.parameters().entries for name in entry.names}
    assert names == {"weight", "bias"}
    assert len(made.entries) == 5


def test_random_streams_are_no_part_of_a_map_and_stay_where_they_are():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.fc = nnx.Linear(2, 1, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

    net = Net(nnx.Rngs(3))
    net.dropout(jnp.ones(4))  # It counts its draws.
    made, state = mapping(net), nnx.state(net)
    tensors = made.to_torch(state)
    assert tensors.keys() == {"fc.weight", "fc.bias"}
    doubled = {name: 2 * tensor for name, tensor in tensors.items()}
    back = made.to_flax(doubled, like=state)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    nnx.update(net, back)
    np.testing.assert_array_equal(net.fc.kernel[...], doubled["fc.weight"].T)
    assert net.dropout.rngs.count[...] == 1
    # Only what is of another type is passed over, wherever it lies.
    state["dropout"]["scale"] = nnx.Param(jnp.ones(1))
    with pytest.raises(ConversionError, match=r"'dropout\.scale' is not in the map"):
        made.to_torch(state)


def test_what_does_not_fit_a_map_is_refused_all_at_once():
    made = mapping(nnx.Linear(2, 1, rngs=nnx.Rngs(0)))
    with pytest.raises(ConversionError) as caught:
        made.to_flax({"weight": np.ones((2, 1)), "scale": np.ones(1)})
    assert caught.value.problems == (
        "'bias' (1,) is not filled: the source has no 'bias' (1,). "
        "Nearest: 'scale' (1,) (same shape).",
        "'scale' (1,) is not used. Nearest: 'bias' (1,) (same shape).",
        "'weight' has shape (2, 1); 'kernel' (2, 1) needs (1, 2) in torch's layout.",
    )
    with pytest.raises(ConversionError) as caught:
        made.to_torch({"kernel": jnp.ones((1, 2)), "scale": jnp.ones(1)})
    assert caught.value.problems == (
        "'bias' is not in the tree.",
        "'kernel' has shape (1, 2), not (2, 1).",
        "'scale' is not in the mapping.",
    )
    good = {"weight": np.ones((1, 2)), "bias": np.ones(1)}
    with pytest.raises(ConversionError) as caught:
        made.to_flax(good, like={"kernel": 0, "x": 0})
    assert caught.value.problems == (
        "like has 'x', which is not in the mapping.",
        "like lacks 'bias', which is in the mapping.",
    )


def test_options_for_a_source_want_a_source():
    with pytest.raises(TypeError, match="are for a source; there is none"):
        mapping(nnx.Linear(2, 1, rngs=nnx.Rngs(0)), rename={"a": "b"})


# Layouts of every kind.


class Odd(nnx.Module):
    """A module whose rule does what ``links`` says."""

    links = ()

    def __init__(self, **shapes):
        """Make variables of these shapes."""
        for name, shape in shapes.items():
            setattr(self, name, nnx.Param(jnp.zeros(shape)))


def link(torch_names, flax_names, to_flax, to_torch):
    return Link(
        tuple(torch_names.split()), tuple(flax_names.split()), to_flax, to_torch
    )


def permuted(*axes):
    back = tuple(np.argsort(axes))
    return (lambda a: (a.transpose(axes),)), (lambda a: (a.transpose(back),))


def thirds(joined):
    return tuple(part.T for part in np.split(joined, 3))


def joined(*parts):
    return (np.concatenate([part.T for part in parts]),)


LAYOUTS = {
    "same": (link("w", "k", lambda a: (a,), lambda a: (a,)), {"k": (2, 3)}),
    "transpose": (link("w", "k", *permuted(1, 0)), {"k": (2, 3)}),
    "permute (2, 3, 1, 0)": (
        link("w", "k", *permuted(2, 3, 1, 0)),
        {"k": (2, 1, 4, 5)},
    ),
    "reshape": (
        link("w", "k", lambda a: (a.reshape(2, 6),), lambda a: (a.reshape(2, 3, 2),)),
        {"k": (2, 6)},
    ),
    "flip": (
        link("w", "k", lambda a: (a[::-1].T,), lambda a: (a.T[::-1],)),
        {"k": (2, 3)},
    ),
    # The Linear after a flatten: NCHW to NHWC.
    "rearranged": (
        link(
            "w",
            "k",
            lambda a: (a.reshape(2, 3, 4, 5).transpose(2, 3, 1, 0).reshape(60, 2),),
            lambda a: (a.reshape(4, 5, 3, 2).transpose(3, 2, 0, 1).reshape(2, 60),),
        ),
        {"k": (60, 2)},
    ),
    "split in 3": (
        link("w", "q k v", thirds, joined),
        {"q": (4, 2), "k": (4, 2), "v": (4, 2)},
    ),
    "3 joined": (
        link("q k v", "w", lambda *parts: joined(*parts), lambda a: thirds(a)),
        {"w": (6, 4)},
    ),
    "constant": (
        Link(("n",), (), lambda n: (), lambda: (np.array(7),)),
        {"z": (2,)},
    ),
}


@pytest.fixture
def odd(monkeypatch):
    """Return a function that makes a model with one link, a scalar beside it."""

    def make(link, shapes):
        rest = [same(name, name) for name in shapes if name not in link.flax]
        rule = Rule(lambda layer, names: [link, *rest])
        monkeypatch.setitem(RULES, Odd, rule)
        return nnx.Dict(odd=Odd(**shapes), scalar=nnx.Param(jnp.zeros(())))

    return make


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_named_and_survives_a_file(layout, odd, tmp_path):
    made = mapping(odd(*LAYOUTS[layout]))
    (row, *_) = (line for line in str(made).splitlines() if "odd." in line)
    assert f"  {layout}  " in f"{row}  "
    path = tmp_path / "map.json"
    made.save(path)
    loaded = WeightMap.load(path)
    assert str(loaded) == str(made)
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.normal(size=spec.shape).astype("f")
        for entry in made.entries
        for name, spec in entry.expected.items()
    }
    if layout == "constant":
        tensors["odd.n"] = np.array(7)
    expected, tree = made.to_flax(tensors), loaded.to_flax(tensors)
    assert jax.tree.structure(expected) == jax.tree.structure(tree)
    assert all(map(np.array_equal, *map(jax.tree.leaves, (expected, tree))))
    returned = loaded.to_torch(tree)
    assert returned.keys() == tensors.keys()
    for name, tensor in returned.items():
        np.testing.assert_array_equal(tensor, tensors[name])


def test_copies_of_several_tensors_survive_a_file(odd, tmp_path):
    def copies(*arrays):
        return tuple(array.copy() for array in arrays)

    made = mapping(odd(link("a b", "k l", copies, copies), {"k": (2, 3), "l": (4,)}))
    made.save(tmp_path / "map.json")
    rng = np.random.default_rng(0)
    shapes = {"odd.a": (2, 3), "odd.b": (4,), "scalar": ()}
    tensors = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    tree = WeightMap.load(tmp_path / "map.json").to_flax(tensors)
    np.testing.assert_array_equal(tree["odd"]["k"], tensors["odd.a"])
    np.testing.assert_array_equal(tree["odd"]["l"], tensors["odd.b"])


@pytest.mark.parametrize("wrong", ["sum", "scaled", "dropped", "absolute"])
def test_what_does_more_than_move_elements_is_not_saved(wrong, odd, tmp_path):
    layout, shapes = {
        "sum": (
            link("a b", "k", lambda a, b: (a + b,), lambda k: (k, np.zeros_like(k))),
            {"k": (3,)},
        ),
        "scaled": (link("w", "k", lambda a: (2 * a,), lambda k: (k / 2,)), {"k": (3,)}),
        # Which changes nothing in the numbers of elements.
        "absolute": (
            link("w", "k", lambda a: (np.abs(a),), lambda k: (np.abs(k),)),
            {"k": (3,)},
        ),
        "dropped": (
            link("w", "k", lambda a: (np.append(a, 0 * a),), lambda k: (k[:3],)),
            {"k": (6,)},
        ),
    }[wrong]
    made = mapping(odd(layout, shapes))
    assert "computed" in str(made)
    path = tmp_path / "map.json"
    with pytest.raises(ConversionError, match="which a file cannot say"):
        made.save(path)
    assert not path.exists()


def test_a_map_of_a_model_survives_a_file(tmp_path):
    net, _ = trained()
    source = {f"module.{name}": tensor for name, tensor in net.state_dict().items()}
    made = mapping((linen.my_net(), X), source)
    path = tmp_path / "map.json"
    made.save(path)
    loaded = WeightMap.load(str(path))
    assert str(loaded) == str(made)
    assert loaded.notes == ("'module.' was taken off every name",)
    assert len(loaded.parameters().entries) == len(source)
    returned = loaded.to_torch(made.to_flax(source))
    assert all(torch.equal(returned[name], source[name]) for name in source)


def test_a_count_of_batches_is_narrowed_by_a_map_from_a_file_too(tmp_path):
    made = mapping(nnx.Dict(norm=models.BatchNorm(2)))
    made.save(tmp_path / "map.json")
    loaded = WeightMap.load(tmp_path / "map.json")
    assert "norm.num_batches_tracked  ()     same" in str(made)
    assert str(loaded) == str(made)
    source = {f"norm.{n}": t for n, t in torch.nn.BatchNorm1d(2).state_dict().items()}
    source["norm.num_batches_tracked"].fill_(2**31 - 1)
    for weights in (made, loaded):
        tree = weights.to_flax(source)
        assert tree["norm"]["num_batches_tracked"].dtype == "int32"
        for name, tensor in weights.to_torch(tree).items():
            assert tensor.dtype == source[name].dtype
            assert torch.equal(tensor, source[name])
    source["norm.num_batches_tracked"].fill_(2**31)
    for weights in (made, loaded):
        match = r"num_batches_tracked is 2147483648, more than int32 holds"
        with pytest.raises(ConversionError, match=match):
            weights.to_flax(source)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("map") / "map.json"
    mapping(nnx.Linear(3, 2, rngs=nnx.Rngs(0))).save(path)
    return path


def changed(saved, change):
    said = json.loads(saved.read_text())
    change(said)
    path = saved.with_name("changed.json")
    path.write_text(json.dumps(said))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda said: said.update(format="x"), "its format is 'x', not"),
        (lambda said: said.pop("links"), "it lacks 'links'"),
        (lambda said: said["links"][0].pop("pieces"), "it lacks 'pieces'"),
        (
            lambda said: said["links"][0]["pieces"].clear(),
            "it does not say of each element of 'weight', once, where it goes",
        ),
        (
            lambda said: said["links"][0]["pieces"][0]["flax"].update(offset=1),
            "it does not say of each element",
        ),
        (
            lambda said: said["links"][0]["pieces"][0]["torch"].update(strides=[1, 1]),
            "it does not say of each element",
        ),
        (
            lambda said: said["links"][0]["pieces"][0]["torch"].update(strides=[9, 9]),
            "it does not say of each element",
        ),
        (
            lambda said: said["links"][0]["pieces"][0]["torch"].update(array=1),
            "it does not say of each element",
        ),
        (
            lambda said: said["links"][0]["torch"][0].update(shape=[2.0, 3]),
            r"2\.0 is no size, offset or stride",
        ),
        (
            lambda said: said["links"][0]["flax"][0].update(dtype="code"),
            "data type 'code' not understood",
        ),
    ],
)
def test_a_file_that_is_not_whole_is_refused(change, message, saved):
    path = changed(saved, change)
    with pytest.raises(ValueError, match=message) as caught:
        WeightMap.load(path)
    assert str(caught.value).startswith(f"{str(path)!r} is damaged or no map: ")


def test_a_file_that_is_no_json_or_missing_is_named(saved):
    path = saved.with_name("text.json")
    path.write_bytes(saved.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"text\.json' is damaged or no map"):
        WeightMap.load(path)
    with pytest.raises(FileNotFoundError, match=r"there is no map at '.*none\.json'"):
        WeightMap.load(saved.with_name("none.json"))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_map_is_refused_or_still_moves_each_element_once(saved, data):
    said = json.loads(saved.read_text())
    # Walk to some number in the file, and change it.
    place, key = said, "links"
    while isinstance(place[key], dict | list):
        place = place[key]
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return
        key = data.draw(st.sampled_from(keys))
    place[key] = data.draw(st.integers(-3, 12) | st.none() | st.just("x"))
    path = saved.with_name("fuzzed.json")
    path.write_text(json.dumps(said))
    try:
        loaded = WeightMap.load(path)
    except ValueError as error:
        assert str(error).startswith(f"{str(path)!r} is damaged")  # noqa: PT017
        return
    tensors = {
        name: np.arange(int(np.prod(spec.shape))).reshape(spec.shape)
        for entry in loaded.entries
        for name, spec in entry.expected.items()
    }
    for name, tensor in loaded.to_torch(loaded.to_flax(tensors)).items():
        np.testing.assert_array_equal(tensor, tensors[name])


@pytest.mark.parametrize(
    ("offset", "strides", "fits"),
    [
        (0, (3, 1), True),
        (5, (-3, -1), True),
        (1, (3, 1), False),
        (0, (4, 1), False),
        (0, (-3, 1), False),
        (6, (0, 0), False),
        (-1, (3, 1), False),
    ],
)
def test_no_view_reaches_beyond_its_array(offset, strides, fits):
    assert View(0, offset, strides).fits((2, 3), 6) == fits


def test_a_stack_survives_a_file(tmp_path):
    @nnx.split_rngs(splits=3)
    @nnx.vmap
    def layers(rngs):
        return nnx.Linear(2, 4, rngs=rngs)

    model = layers(nnx.Rngs(0))
    made = mapping(nnx.Dict(h=model), stacked="h")
    made.save(tmp_path / "map.json")
    loaded = WeightMap.load(tmp_path / "map.json")
    expected = to_torch(nnx.Dict(h=model), stacked="h")
    returned = loaded.to_torch({"h": nnx.to_pure_dict(nnx.state(model))})
    assert all(torch.equal(returned[name], expected[name]) for name in expected)
    assert str(loaded) == str(made)

"""What every module of a model returns is the same in torch and in Flax."""

from collections import defaultdict
from dataclasses import replace

import jax
import numpy as np
import pytest
import torch
from flax import nnx

from jaxclip import convert, parity
from jaxclip.convert._rules import registry
from jaxclip.convert._rules.layouts import SAME
from tests.convert.captured import linen_calls, nnx_calls, torch_outputs
from tests.trios import BY_NAME

NAMES = ["my_net", "gpt", "lstm-2", "resnet"]


def flax_outputs(weights, trio, framework, source, dtype):
    """Return what the modules of a Flax model return, by the paths in the map."""
    inputs = trio.for_flax(trio.inputs())
    inputs = inputs if trio.takes == "tokens" else inputs.astype(dtype)
    if framework == "nnx":
        graph, state = nnx.split(trio.nnx_model(source, dtype))

        def run(state, inputs):
            model = nnx.merge(graph, state)
            model.eval()
            return nnx_calls(model, inputs)

    else:
        module, state = trio.linen_model(source, dtype)
        mode = {"train": False} if trio.takes == "images" else {}

        def run(state, inputs):
            return linen_calls(module, state, inputs, **mode)

    calls = jax.jit(run)(state, inputs)
    return by_path(weights, calls)


def by_path(weights, calls):
    """Share the calls of a module out to the paths by which it is reached.

    A tied embedding is called as such first, and as the output layer last.
    """
    paths = defaultdict(list)
    for pair in sorted(weights.modules, key=lambda pair: pair.torch == "lm_head"):
        paths[pair.alias_of or pair.flax].append(pair.flax)
    return {
        path: output
        for origin, outputs in calls.items()
        if origin in paths
        for path, output in zip(paths[origin], outputs, strict=True)
    }


@pytest.fixture(scope="module", params=NAMES)
def trio(request):
    return BY_NAME[request.param]


@pytest.fixture(scope="module", params=["nnx", "linen"])
def runs(request, trio):
    """Return a map, torch's outputs, and the port's in float32 and in float64."""
    exact = trio.torch_model(torch.float32)
    model = getattr(trio, f"{request.param}_model")(exact, "float32")
    weights = convert.mapping(model, exact)
    inputs = torch.as_tensor(trio.inputs())
    inputs = inputs if trio.takes == "tokens" else inputs.float()
    expected = torch_outputs(exact.eval(), inputs)
    low = flax_outputs(weights, trio, request.param, exact, "float32")
    with jax.enable_x64(True):
        exact = exact.double()
        high = flax_outputs(weights, trio, request.param, exact, "float64")
    return weights, expected, low, high


def test_every_module_with_weights_has_its_pair(trio, runs):
    weights, expected, low, _ = runs
    source = trio.torch_model(torch.float32)
    paths = {pair.torch for pair in weights.modules}
    with_weights = {
        path for path, module in source.named_modules() if module.state_dict()
    }
    # Those are lists in Flax, which nobody calls.
    lists = {
        path
        for path in with_weights
        if isinstance(source.get_submodule(path), torch.nn.ModuleList)
        or (path.startswith("stages.") and path.count(".") == 1)
        or path.endswith("downsample")
    }
    assert paths == with_weights - lists
    assert paths <= expected.keys()
    assert {pair.flax for pair in weights.modules} == low.keys()


def test_activations_agree_module_by_module_within_noise(runs):
    weights, outputs, low, high = runs
    paths = [path for path in outputs if path in {p.torch for p in weights.modules}]
    mapped = weights.activations_to_flax({path: outputs[path] for path in paths})
    comparison = parity.compare_trees(
        mapped,
        {path: low[path] for path in mapped},
        {path: high[path] for path in mapped},
    )
    comparison.raise_if_different()
    assert len(comparison.tensors) >= len(weights.modules)


def test_they_come_back_to_the_bit(runs):
    weights, outputs, _, _ = runs
    given = {pair.torch: outputs[pair.torch] for pair in weights.modules}
    returned = weights.activations_to_torch(weights.activations_to_flax(given))
    parity.assert_trees_equal(returned, given)


# A wrong layout is seen.


@pytest.mark.parametrize("trio", ["resnet"], indirect=True)
@pytest.mark.parametrize("runs", ["nnx"], indirect=True)
def test_a_layout_of_the_right_shape_and_the_wrong_order_fails(runs):
    weights, outputs, low, high = runs
    turned = weights.with_layouts({"conv1": (0, 3, 2, 1)})  # height for width
    mapped = turned.activations_to_flax({"conv1": outputs["conv1"]})
    comparison = parity.compare_trees(
        mapped, {"conv1": low["conv1"]}, {"conv1": high["conv1"]}
    )
    assert comparison.tensors[0].shapes[0] == comparison.tensors[0].shapes[1]
    assert not comparison.passed


def test_a_rule_with_the_wrong_layout_fails(monkeypatch):
    wrong = replace(registry.RULES[nnx.Conv], layout=SAME)
    monkeypatch.setitem(registry.RULES, nnx.Conv, wrong)
    trio = BY_NAME["resnet"]
    source = trio.torch_model(torch.float32)
    weights = convert.mapping(trio.nnx_model(source, "float32"), source)
    image = np.zeros((3, 3, 6, 6), "f")
    mapped = weights.activations_to_flax({"conv1": image})
    with pytest.raises(parity.ParityError, match="shape differs"):
        parity.assert_trees_equal(mapped, {"conv1": np.zeros((3, 6, 6, 3), "f")})

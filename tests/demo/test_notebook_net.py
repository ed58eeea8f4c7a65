import json

import jax
import numpy as np
import pytest
import torch

import jaxclip
from jaxclip.demo._metrics import write_metrics
from jaxclip.demo._notebook_net import compare_nets, max_ulps
from jaxclip.demo._settings import Settings
from tests.demo.runs import history, proof, trainings


@pytest.fixture(scope="module")
def net():
    return compare_nets(seed=0)


def test_gradients_clipped_by_every_way_are_equal_up_to_rounding(net):
    assert net.equal
    assert str(net).startswith("equal, up to rounding: the gradients differ by at most")
    assert len(net.ways) == 8
    for way in net.ways:
        norm = np.sqrt(
            sum(np.sum(np.square(g, dtype=float)) for g in way.grads.values())
        )
        assert norm == pytest.approx(1, rel=1e-6)


def test_parameters_stand_beside_each_other(net):
    names = {
        p.torch_name: (p.torch_shape, p.jax_name, p.jax_shape) for p in net.parameters
    }
    assert names == {
        "1.weight": ((4, 3), "1.weight", (4, 3)),
        "1.bias": ((3,), "1.bias", (3,)),
        "1.fc.weight": ((3, 3), "1.fc.kernel", (3, 3)),
        "1.fc.bias": ((3,), "1.fc.bias", (3,)),
        "3.weight": ((1, 3), "3.kernel", (3, 1)),
        "3.bias": ((1,), "3.bias", (1,)),
    }


def test_the_gradients_are_those_of_the_net(net):
    # The output is linear in its last bias, and repeats the four equal inputs.
    assert net.torch_grads["3.bias"] == net.jax_grads["3.bias"] == 1
    for grads in (net.torch_grads, net.jax_grads):
        np.testing.assert_array_equal(
            grads["1.weight"], np.tile(grads["1.bias"], (4, 1))
        )


def test_torchs_random_state_is_left_as_it_was():
    before = torch.random.get_rng_state()
    compare_nets(seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)


def scaled(clip, factor):
    """Make a clip of jaxclip's return gradients that are wrong by a factor."""

    def wrong(grads, *args, **kwargs):
        clipped, norm = clip(grads, *args, **kwargs)
        return jax.tree.map(lambda g: g * factor, clipped), norm

    return wrong


def test_a_wrong_clip_is_found_and_named(monkeypatch, tmp_path):
    clip = scaled(jaxclip.clip_grad_norm, 1 + 1e-5)
    monkeypatch.setattr(jaxclip, "clip_grad_norm", clip)
    net = compare_nets(seed=0)
    assert not net.equal
    assert "NOT equal" in str(net)
    assert "jaxclip.clip_grad_norm:" in str(net)
    # What was compared and differs is no less compared.
    write_metrics(net, trainings(), proof(), Settings(), tmp_path / "metrics.json")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["notebook_net"]["equal"] is False
    ulps = {way["name"]: way["max_ulps"] for way in metrics["notebook_net"]["ways"]}
    assert ulps["jaxclip.clip_grad_norm"] > 80
    assert ulps["nn.utils.clip_grad_norm_"] is None


def test_metrics_have_every_step_and_null_for_nan(net, tmp_path):
    free = history()
    free.losses[3] = np.nan
    path = tmp_path / "metrics.json"
    write_metrics(net, trainings(unclipped=free), proof(), Settings(), path)
    model = json.loads(path.read_text())["language_model"]
    assert model["equal"] is True
    assert model["verdict"] == str(proof())
    runs = model["runs"]
    assert list(runs) == ["torch", "JAX", "torch, unclipped"]
    assert runs["torch, unclipped"]["loss"][2:5] == [
        *(pytest.approx(free.losses[2]), None, pytest.approx(free.losses[4])),
    ]
    assert all(len(column) == 20 for run in runs.values() for column in run.values())


def test_ulps_are_the_greatest_of_all_tensors(net):
    worst = [way.comparison for way in net.ways if way.comparison is not None]
    assert 0 <= min(map(max_ulps, worst)) <= max(map(max_ulps, worst)) < 64

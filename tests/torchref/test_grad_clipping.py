import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.golden import NOTEBOOK_ATOL, NOTEBOOK_CLIPPED, NOTEBOOK_GRADIENTS
from torchref.grad_clipping import grad_clipping
from torchref.my_linear import my_net


def net_with(*grads):
    """Make a net from scratch whose parameters have the given gradients, or None."""
    params = []
    for grad in grads:
        grad = None if grad is None else torch.as_tensor(grad)
        param = torch.zeros(1) if grad is None else torch.zeros_like(grad)
        param.requires_grad_().grad = grad
        params.append(param)
    return SimpleNamespace(params=params)


def clip_by_the_notebooks_loop(net, theta):
    norm = 0
    for p in net.parameters():
        norm += torch.sum(p.grad**2)
    norm = torch.sqrt(norm)
    if norm > theta:
        for p in net.parameters():
            p.grad[:] *= theta / norm
    return norm


def clip_by_torch(net, theta):
    return nn.utils.clip_grad_norm_(net.parameters(), max_norm=theta)


@pytest.mark.parametrize(
    "clip", [clip_by_the_notebooks_loop, grad_clipping, clip_by_torch]
)
def test_each_way_to_clip_gives_the_numbers_that_the_notebook_printed(clip):
    net = my_net()
    for name, p in net.named_parameters():
        p.grad = torch.tensor(NOTEBOOK_GRADIENTS[name])
    norm = clip(net, 1)
    np.testing.assert_allclose(norm, 25.35308, rtol=1e-6)
    for name, p in net.named_parameters():
        np.testing.assert_allclose(
            p.grad, NOTEBOOK_CLIPPED[name], rtol=0, atol=NOTEBOOK_ATOL, err_msg=name
        )


@settings(derandomize=True, max_examples=60)
@given(
    grads=st.lists(
        st.lists(st.floats(-1e6, 1e6, width=32), max_size=4), min_size=1, max_size=4
    ),
    theta=st.floats(0, 1e7),
)
def test_clipping_is_the_formula_min_of_1_and_theta_over_norm(grads, theta):
    net = net_with(*(np.array(grad, np.float64) for grad in grads))
    flat = np.concatenate([np.array(grad, np.float64) for grad in grads])
    norm = math.sqrt(sum(x * x for x in flat))
    expected = flat * min(1, theta / norm) if norm else flat
    np.testing.assert_allclose(grad_clipping(net, theta), norm, rtol=1e-12)
    clipped = np.concatenate([p.grad.numpy() for p in net.params])
    np.testing.assert_allclose(clipped, expected, rtol=1e-12, atol=0)
    assert np.linalg.norm(clipped) <= theta * (1 + 1e-12) or norm <= theta


def test_a_gradient_inside_the_ball_or_on_it_is_left_to_the_bit():
    net = net_with([3.0], [4.0])
    for theta in (5.0, 5.5, math.inf):
        assert grad_clipping(net, theta) == 5
        assert [p.grad.item() for p in net.params] == [3.0, 4.0]


def test_the_gradient_is_clipped_in_place():
    net = net_with([3.0, 4.0])
    grad = net.params[0].grad
    grad_clipping(net, 1.0)
    assert net.params[0].grad is grad
    torch.testing.assert_close(grad, torch.tensor([0.6, 0.8]))


def test_a_parameter_of_no_dimensions_is_clipped_too():
    net = net_with(2.0)
    grad_clipping(net, 0.5)
    assert net.params[0].grad.item() == 0.5


def test_a_parameter_without_a_gradient_is_skipped():
    net = net_with(None, [3.0, 4.0], None)
    assert grad_clipping(net, 1.0) == 5
    assert [p.grad is None for p in net.params] == [True, False, True]


def test_a_frozen_parameter_of_a_module_does_not_count():
    net = nn.Linear(2, 1)
    net.weight.grad = torch.tensor([[3.0, 4.0]])
    net.bias.grad = torch.tensor([100.0])
    net.bias.requires_grad_(False)
    assert grad_clipping(net, 1.0) == 5
    assert net.bias.grad.item() == 100


@pytest.mark.parametrize(
    "net", [nn.Linear(2, 1), nn.ReLU(), net_with(None), net_with()], ids=str
)
def test_with_no_gradient_at_all_the_norm_is_zero(net):
    norm = grad_clipping(net, 1.0)
    assert norm.shape == ()
    assert norm == 0


def test_zero_gradients_and_a_threshold_of_zero():
    net = net_with([0.0, 0.0])
    assert grad_clipping(net, 0) == 0
    assert net.params[0].grad.tolist() == [0, 0]
    net = net_with([3.0, 4.0])
    assert grad_clipping(net, 0) == 5
    assert net.params[0].grad.tolist() == [0, 0]


def test_a_norm_that_is_nan_clips_nothing():
    net = net_with([math.nan, 4.0])
    assert math.isnan(grad_clipping(net, 1.0))
    assert net.params[0].grad[1] == 4


@pytest.mark.parametrize("theta", [-1.0, math.nan])
def test_a_threshold_that_is_negative_or_nan_is_refused(theta):
    with pytest.raises(ValueError, match=rf"theta is {theta}; it must be at least 0"):
        grad_clipping(net_with([1.0]), theta)


def test_a_net_that_is_neither_is_refused():
    expected = r"net is a list; it must be an nn\.Module, or an object .* `\.params`"
    with pytest.raises(TypeError, match=expected):
        grad_clipping([torch.ones(1)], 1.0)

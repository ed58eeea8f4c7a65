import numpy as np
import torch

from torchref.my_linear import MyLinear, my_net


def test_my_linear_is_two_affine_maps_the_first_with_an_untransposed_weight():
    torch.manual_seed(0)
    layer = MyLinear(4, 3).double()
    p = {name: value.detach().numpy() for name, value in layer.named_parameters()}
    x = np.random.default_rng(0).standard_normal((2, 5, 4))
    hidden = x @ p["weight"] + p["bias"]
    expected = hidden @ p["fc.weight"].T + p["fc.bias"]
    actual = layer(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)


def test_my_linear_works_for_any_sizes_and_not_only_for_three_outputs():
    shapes = {name: tuple(p.shape) for name, p in MyLinear(2, 5).named_parameters()}
    assert shapes == {
        "weight": (2, 5),
        "bias": (5,),
        "fc.weight": (5, 5),
        "fc.bias": (5,),
    }


def test_my_linear_draws_weight_and_bias_from_the_standard_normal():
    torch.manual_seed(0)
    layer = MyLinear(100, 100)
    # 10 000 draws: the standard errors are 0.01 and 0.007; 100 draws: 0.1 and 0.07.
    assert abs(layer.weight.mean().item()) < 0.05
    assert abs(layer.weight.std().item() - 1) < 0.05
    assert abs(layer.bias.mean().item()) < 0.5
    assert abs(layer.bias.std().item() - 1) < 0.35


def test_my_net_has_the_notebooks_parameters_and_gives_one_number():
    torch.manual_seed(0)
    net = my_net()
    assert [name for name, _ in net.named_parameters()] == [
        "1.weight",
        "1.bias",
        "1.fc.weight",
        "1.fc.bias",
        "3.weight",
        "3.bias",
    ]
    y = net(torch.ones(4))
    assert y.shape == (1,)
    y.backward()
    assert all(p.grad is not None for p in net.parameters())

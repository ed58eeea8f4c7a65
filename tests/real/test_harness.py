"""The comparison of real networks finds a small error, whatever it is in."""

import jax
import numpy as np
import pytest
import safetensors.torch
import torch
from flax import nnx

from jaxclip import models
from tests.real.harness import check_port, folder_of


class Net(nnx.Module):
    """A layer, and one with statistics; the second does not see the first's bias."""

    def __init__(self, *, rngs, momentum=0.1, **options):
        """Make the layers."""
        self.fc = nnx.Linear(3, 4, rngs=rngs, **options)
        self.bn = models.BatchNorm(4, momentum=momentum, **options)

    def __call__(self, x):
        return self.bn(self.fc(x))


class WrongOutput(Net):
    """Off by what float32 does not show."""

    def __call__(self, x):
        return super().__call__(x) * (1 + 1e-10)


class WrongGradient(Net):
    """The same output, and a part of the gradient missing."""

    def __call__(self, x):
        return super().__call__(jax.lax.stop_gradient(1e-3 * x) + (1 - 1e-3) * x)


class WrongBuffer(Net):
    """The same output and gradients, and other running averages."""

    def __init__(self, **options):
        """Make the layers."""
        super().__init__(momentum=0.1 + 1e-10, **options)


@pytest.fixture
def port(tmp_path):
    """Return a torch network, the file of its weights, and an input."""
    torch.manual_seed(0)
    source = torch.nn.Sequential()
    source.add_module("fc", torch.nn.Linear(3, 4))
    source.add_module("bn", torch.nn.BatchNorm1d(4))
    path = tmp_path / "net.safetensors"
    safetensors.torch.save_file(source.state_dict(), path)
    return source, path, np.random.default_rng(0).normal(size=(8, 3))


def check(port, net, constant="fc.bias"):
    source, path, x = port

    def make(**options):
        return net(rngs=nnx.Rngs(0), **options)

    check_port(source, make, path, x, constant=constant)


def test_a_right_port_passes(port):
    check(port, Net)


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (WrongOutput, r"^\{'output': 1\.0\d*e-10, 'input 0'"),
        (WrongGradient, r"FAIL \['input 0'\]: more than noise"),
        (WrongBuffer, r"^\{'bn\.running_mean': \d[^,]*, 'bn\.running_var': [^,]*\}"),
    ],
)
def test_a_wrong_port_fails(port, net, said):
    with pytest.raises(AssertionError, match=said):
        check(port, net)


@pytest.mark.parametrize(
    ("constant", "said"),
    [
        ("", r"^\{'fc\.bias': [^,]*\}$"),
        ("fc.weight", r"\['fc\.weight'\] are not constant"),
        ("nothing", r"constant='nothing' matches \[\]"),
    ],
)
def test_what_is_called_constant_is_so_and_nothing_else(port, constant, said):
    with pytest.raises(AssertionError, match=said):
        check(port, Net, constant)


def test_what_is_not_installed_is_skipped_and_said():
    with pytest.raises(pytest.skip.Exception, match="nothing-9 is not installed: `mak"):
        folder_of("nothing_9", "nothing-9")

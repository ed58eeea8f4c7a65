"""What is flattened has its channels first in torch and last in Flax."""

import re

import jax
import numpy as np
import pytest
import torch
from flax import linen as nn
from flax import nnx

from jaxclip.convert import ConversionError, from_torch, to_torch
from tests.convert.layers.harness import normal, randomise

SHAPE = (4, 3, 2)
FLATTEN = {"fc": SHAPE}
NORMED = {f"bn.{name}": SHAPE for name in ("weight", "bias")} | {
    f"bn.running_{name}": SHAPE for name in ("mean", "var")
}


class Torch(torch.nn.Module):
    """A convolution, a norm of what it gives, flattened, and a Linear."""

    def __init__(self):
        """Make the layers."""
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 4, 2)
        self.bn = torch.nn.BatchNorm1d(24)
        self.fc = torch.nn.Linear(24, 5)

    def forward(self, x):
        return self.fc(self.bn(self.conv(x).flatten(1)))


class NNX(nnx.Module):
    """The same in NNX."""

    def __init__(self):
        """Make the layers."""
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(2, 4, (2, 2), padding="VALID", rngs=rngs)
        self.bn = nnx.BatchNorm(24, use_running_average=True, rngs=rngs)
        self.fc = nnx.Linear(24, 5, rngs=rngs)

    def __call__(self, x):
        x = self.conv(x)
        return self.fc(self.bn(x.reshape(x.shape[0], -1)))


class Linen(nn.Module):
    """The same in Linen."""

    def setup(self):
        self.conv = nn.Conv(4, (2, 2), padding="VALID")
        self.bn = nn.BatchNorm(use_running_average=True)
        self.fc = nn.Dense(5)

    def __call__(self, x):
        x = self.conv(x)
        return self.fc(self.bn(x.reshape(x.shape[0], -1)))


IGNORE = ["*num_batches_tracked"]
X = normal(3, 2, 4, 3).astype("f")
LAST = np.moveaxis(X, 1, -1)


@pytest.fixture
def source():
    module = Torch().eval()
    randomise(module)
    return module


@pytest.fixture
def expected(source):
    with torch.no_grad():
        return source(torch.tensor(X)).numpy()


def linen():
    module = Linen()
    return module, jax.eval_shape(module.init, jax.random.key(0), LAST)


def test_it_is_told_and_outputs_agree(source, expected):
    told = FLATTEN | NORMED
    model = from_torch(NNX(), source, ignore=IGNORE, flatten=told)
    np.testing.assert_allclose(model(LAST), expected, rtol=1e-5)
    module, variables = from_torch(linen(), source, ignore=IGNORE, flatten=told)
    np.testing.assert_allclose(module.apply(variables, LAST), expected, rtol=1e-5)
    for target in (model, (module, variables)):
        returned = to_torch(target, flatten=told)
        for name, tensor in returned.items():
            assert torch.equal(tensor, source.state_dict()[name]), name


@pytest.mark.parametrize("told", [None, FLATTEN, NORMED], ids=["none", "fc", "bn"])
def test_the_plain_transpose_is_wrong_and_only_outputs_tell(source, expected, told):
    model = from_torch(NNX(), source, ignore=IGNORE, flatten=told)
    assert model.fc.kernel.shape == (24, 5)
    assert np.abs(model(LAST) - expected).max() > 0.01


def test_the_bias_of_as_many_outputs_stays_as_it_is():
    source = torch.nn.Linear(6, 6)
    layer = nnx.Linear(6, 6, rngs=nnx.Rngs(0))
    converted = from_torch(layer, source, flatten={"": (2, 3)})
    np.testing.assert_array_equal(converted.bias[...], source.bias.detach())
    # Rows of the kernel: (0, 0), (1, 0), (0, 1), ... of (channel, place).
    rows = source.weight.detach().T[[0, 3, 1, 4, 2, 5]]
    np.testing.assert_array_equal(converted.kernel[...], rows)


def test_what_does_not_fit_is_named(source):
    told = {"fd": SHAPE, "conv": (4, 3), "fc": (4, 3, 3), "act": (2, 2)}
    with pytest.raises(ConversionError) as caught:
        from_torch(NNX(), source, ignore=IGNORE, flatten=told)
    assert caught.value.problems == (
        "flatten has 'fd'; the target has no tensor of that name in torch, and no "
        "'fd.weight'.",
        "flatten has 'conv': (4, 3), 12 in all; the last axis of 'conv.weight' "
        "(4, 2, 2, 2) must be as long.",
        "flatten has 'fc': (4, 3, 3), 36 in all; the last axis of 'fc.weight' (5, 24) "
        "must be as long.",
        "flatten has 'act'; the target has no tensor of that name in torch, and no "
        "'act.weight'.",
    )
    with pytest.raises(ConversionError, match=r"'fc\.wieght\.weight'\. Nearest: 'fc\."):
        to_torch(NNX(), flatten={"fc.wieght": SHAPE})


@pytest.mark.parametrize(
    "told", [("fc", SHAPE), {"fc": 24}, {"fc": (24,)}, {"fc": (4, -6)}, {3: SHAPE}]
)
def test_other_types_are_refused(source, told):
    match = re.escape(f"flatten is {told!r}; it must be a mapping from a name in torch")
    with pytest.raises(TypeError, match=match):
        from_torch(NNX(), source, ignore=IGNORE, flatten=told)

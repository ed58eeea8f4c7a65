"""Parameters start from the distributions that torch's start from."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import torchref.my_linear
import torchref.rnn
from jaxclip import convert, models
from jaxclip.models import linen

V, H = 90, 90


TOKENS, VECTOR = jnp.zeros((1, 1), int), jnp.zeros(H)
MODELS = {
    "my_linear": (torchref.my_linear, "MyLinear", (H, H), VECTOR),
    "scratch": (torchref.rnn, "RNNLMScratch", (V, H), TOKENS),
    "lstm": (torchref.rnn, "RNNLM", (V, H, "lstm"), TOKENS),
}


@cache
def draw(framework, model):
    """Make a model, and return its state dict."""
    module, name, sizes, inputs = MODELS[model]
    if framework == "torch":
        torch.manual_seed(0)
        return getattr(module, name)(*sizes).state_dict()
    if framework == "nnx":
        return convert.to_torch(getattr(models, name)(*sizes, rngs=nnx.Rngs(0)))
    flax_module = getattr(linen, name)(*sizes)
    variables = jax.jit(flax_module.init)(jax.random.key(0), inputs)
    return convert.to_torch((flax_module, variables))


def same_distribution(first, second):
    """Run a two-sample Kolmogorov-Smirnov test at a level of one in a million."""
    first, second = np.sort(first.ravel()), np.sort(second.ravel())
    both = np.concatenate([first, second])
    gap = np.searchsorted(first, both, "right") / first.size - (
        np.searchsorted(second, both, "right") / second.size
    )
    critical = np.sqrt(-np.log(1e-6 / 2) / 2 * (1 / first.size + 1 / second.size))
    return np.abs(gap).max() <= critical


@pytest.mark.parametrize("framework", ["nnx", "linen"])
@pytest.mark.parametrize("model", MODELS)
def test_every_parameter_is_drawn_as_torch_draws_it(model, framework):
    expected, actual = draw("torch", model), draw(framework, model)
    assert sorted(actual) == sorted(expected)
    for name, tensor in expected.items():
        assert same_distribution(actual[name].numpy(), tensor.numpy()), name
        # What the test lacks in sharpness at the ends of a uniform distribution.
        largest = tensor.abs().max()
        assert actual[name].abs().max() == pytest.approx(largest, rel=0.5), name


@pytest.mark.parametrize("framework", ["nnx", "linen"])
def test_no_two_parameters_are_the_same_draw(framework):
    tensors = [t.numpy().ravel()[:8] for t in draw(framework, "lstm").values()]
    assert len({t.tobytes() for t in tensors}) == len(tensors)


def test_the_check_of_distributions_can_fail():
    rng = np.random.default_rng(0)
    uniform = rng.uniform(-1, 1, H * H)
    assert same_distribution(uniform, rng.uniform(-1, 1, H * H))
    assert not same_distribution(uniform, rng.uniform(-1.2, 1.2, H * H))
    assert not same_distribution(uniform, rng.normal(scale=3**-0.5, size=H * H))
    assert not same_distribution(uniform, uniform + 0.1)


@pytest.mark.parametrize("seed", range(3))
def test_the_last_layer_of_my_net_is_bounded_by_its_three_inputs(seed):
    last = getattr(models.my_net(rngs=nnx.Rngs(seed)), "3")
    drawn = np.concatenate([last.kernel[...].ravel(), last.bias[...]])
    assert np.abs(drawn).max() <= 3**-0.5
    assert np.abs(drawn).min() > 0

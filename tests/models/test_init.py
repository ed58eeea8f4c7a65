"""Parameters start from the distributions that torch's start from."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn
from flax import nnx

import torchref.gpt
import torchref.my_linear
import torchref.rnn
from jaxclip import convert, models
from jaxclip.models import init, linen

V, H = 90, 90


TOKENS, VECTOR = jnp.zeros((1, 1), int), jnp.zeros(H)
SEQUENCE = jnp.zeros((1, 1, H))
MODELS = {
    "my_linear": (torchref.my_linear, "MyLinear", (H, H), {}, [VECTOR]),
    "scratch": (torchref.rnn, "RNNLMScratch", (V, H), {}, [TOKENS]),
    "lstm": (torchref.rnn, "RNNLM", (V, H, "lstm"), {}, [TOKENS]),
    "lstm_cell": (torch.nn, "LSTMCell", (H, H), {}, [VECTOR[None]]),
    "projected": (torch.nn, "LSTM", (H, H), {"proj_size": H - 1}, [SEQUENCE]),
    "attention": (
        torch.nn,
        "MultiheadAttention",
        (H, 2),
        {"add_bias_kv": True},
        [SEQUENCE] * 3,
    ),
    "gpt": (torchref.gpt, "GPT", (V, 90, H, 2, 2), {}, [TOKENS]),
}


@cache
def draw(framework, model):
    """Make a model, and return its state dict."""
    module, name, sizes, options, inputs = MODELS[model]
    if framework == "torch":
        torch.manual_seed(0)
        return getattr(module, name)(*sizes, **options).state_dict()
    if framework == "nnx":
        model = getattr(models, name)(*sizes, **options, rngs=nnx.Rngs(0))
        return convert.to_torch(model)
    flax_module = getattr(linen, name)(*sizes, **options)
    variables = jax.jit(flax_module.init)(jax.random.key(0), *inputs)
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


# Layers, Flax's own and ours. Arrays of thousands, so that a sample says enough.

IN, OUT, WINDOW = 12, 200, (3, 2)
CONV, TRANSPOSED = init.conv(IN, WINDOW), init.conv_transpose(OUT, WINDOW)
GROUPED = init.conv(IN, WINDOW, feature_group_count=4)

# The torch layer, the NNX one, the Linen one, its input, and how many inputs lead to
# an output, as torch counts them.
LAYERS = {
    "linear": (
        torch.nn.Linear(IN, OUT * 6),
        partial(nnx.Linear, IN, OUT * 6, **init.linear(IN)),
        nn.Dense(OUT * 6, **init.linear(IN)),
        (IN,),
        IN,
    ),
    "conv": (
        torch.nn.Conv2d(IN, OUT, WINDOW),
        partial(nnx.Conv, IN, OUT, WINDOW, **CONV),
        nn.Conv(OUT, WINDOW, **CONV),
        (4, 4, IN),
        IN * 6,
    ),
    "conv, groups": (
        torch.nn.Conv2d(IN, OUT, WINDOW, groups=4),
        partial(nnx.Conv, IN, OUT, WINDOW, feature_group_count=4, **GROUPED),
        nn.Conv(OUT, WINDOW, feature_group_count=4, **GROUPED),
        (4, 4, IN),
        IN * 6 // 4,
    ),
    "conv_transpose": (
        torch.nn.ConvTranspose2d(IN, OUT, WINDOW),
        partial(nnx.ConvTranspose, IN, OUT, WINDOW, **TRANSPOSED),
        nn.ConvTranspose(OUT, WINDOW, **TRANSPOSED),
        (4, 4, IN),
        OUT * 6,
    ),
    "own conv_transpose": (
        torch.nn.ConvTranspose2d(IN, OUT, WINDOW, groups=4),
        partial(models.ConvTranspose, IN, OUT, WINDOW, feature_group_count=4),
        linen.ConvTranspose(IN, OUT, WINDOW, feature_group_count=4),
        (4, 4, IN),
        OUT * 6 // 4,
    ),
    "own bilinear": (
        torch.nn.Bilinear(IN, 4, OUT),
        partial(models.Bilinear, IN, 4, OUT),
        linen.Bilinear(IN, 4, OUT),
        ((IN,), (4,)),
        IN,
    ),
}


def drawn(layer, framework):
    """Return the state dicts of a torch layer and of its Flax counterpart."""
    torch_layer, nnx_layer, linen_layer, shapes, _ = LAYERS[layer]
    torch.manual_seed(0)
    torch_layer.reset_parameters()
    if framework == "nnx":
        flax = nnx_layer(rngs=nnx.Rngs(1))
    else:
        shapes = shapes if isinstance(shapes[0], tuple) else (shapes,)
        inputs = [jnp.zeros(shape) for shape in shapes]
        flax = linen_layer, linen_layer.init(jax.random.key(1), *inputs)
    return torch_layer.state_dict(), convert.to_torch(flax)


@pytest.mark.parametrize("framework", ["nnx", "linen"])
@pytest.mark.parametrize("layer", LAYERS)
def test_layers_are_drawn_as_torch_draws_them(layer, framework):
    expected, actual = drawn(layer, framework)
    bound = LAYERS[layer][-1] ** -0.5
    assert actual.keys() == expected.keys() == {"weight", "bias"}
    for name, tensor in expected.items():
        for sample in (tensor, actual[name]):
            # Of 200 numbers or more; the rest is the chance of one in a million.
            assert sample.abs().max() <= bound, name
            assert sample.abs().max() >= bound * 0.93, name
            assert sample.var() == pytest.approx(bound**2 / 3, rel=0.35), name
        assert same_distribution(actual[name].numpy(), tensor.numpy()), name
    weight = actual["weight"]
    assert weight.var() == pytest.approx(bound**2 / 3, rel=0.1)


@pytest.mark.parametrize("framework", ["nnx", "linen"])
def test_own_embeddings_are_drawn_as_torchs(framework):
    torch.manual_seed(0)
    expected = torch.nn.Embedding(90, 90, padding_idx=3).weight.detach().numpy()
    if framework == "nnx":
        layer = models.Embed(90, 90, padding_idx=3, rngs=nnx.Rngs(0))
    else:
        module = linen.Embed(90, 90, padding_idx=3)
        layer = module, module.init(jax.random.key(0), TOKENS)
    actual = convert.to_torch(layer)["weight"].numpy()
    assert same_distribution(actual, expected)
    assert actual.var() == pytest.approx(1, rel=0.1)
    assert not actual[3].any()
    assert np.abs(actual[[2, 4]]).min() > 0


def test_flaxs_own_defaults_are_others():
    torch_layer = torch.nn.Linear(IN, OUT * 6)
    flax = convert.to_torch(nnx.Linear(IN, OUT * 6, rngs=nnx.Rngs(0)))
    weight = torch_layer.weight.detach().numpy()
    assert not same_distribution(flax["weight"].numpy(), weight)
    assert flax["weight"].numpy().var() == pytest.approx(3 * weight.var(), rel=0.1)
    assert not flax["bias"].any()

"""Weights that torch makes of others: weight_norm and spectral_norm."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import pytest
import torch
from flax import linen as nn
from flax import nnx
from torch.nn.utils import parametrizations, parametrize

from jaxclip import models
from jaxclip.convert import ConversionError, from_torch, to_torch
from jaxclip.models import linen
from jaxclip.models._spectral_norm import Vectors, normalized
from tests.convert.layers.harness import check_layer, normal

# What Flax adds under the root: torch adds nothing.
EXACT = {"epsilon": 0.0}

RNGS = nnx.Rngs(0)
LINEAR = partial(nnx.Linear, 3, 2, rngs=RNGS)


def nnx_normed(make):
    return lambda rngs, param_dtype: models.WeightNorm(
        make(rngs=rngs, param_dtype=param_dtype)
    )


def linen_normed(make):
    return lambda param_dtype: nn.WeightNorm(
        make(param_dtype=param_dtype), param_dtype=param_dtype, **EXACT
    )


def nnx_spectral(make, **options):
    return lambda rngs, param_dtype: models.SpectralNorm(
        make(rngs=rngs, param_dtype=param_dtype), rngs=rngs, **options
    )


def linen_spectral(make, **options):
    return lambda param_dtype: linen.SpectralNorm(
        make(param_dtype=param_dtype), **options
    )


@pytest.mark.parametrize("bias", [True, False])
def test_weight_norm_of_a_linear(bias):
    check_layer(
        parametrizations.weight_norm(torch.nn.Linear(5, 3, bias=bias)),
        nnx_normed(partial(nnx.Linear, 5, 3, use_bias=bias)),
        linen_normed(partial(nn.Dense, 3, use_bias=bias)),
        normal(4, 5),
    )


@pytest.mark.parametrize("axes", [1, 2])
def test_weight_norm_of_a_convolution(axes):
    window = (3, 2)[:axes]
    options = {"padding": "VALID", "feature_group_count": 2}
    conv = getattr(torch.nn, f"Conv{axes}d")(4, 6, window, groups=2)
    check_layer(
        parametrizations.weight_norm(conv),
        nnx_normed(partial(nnx.Conv, 4, 6, window, **options)),
        linen_normed(partial(nn.Conv, 6, window, **options)),
        normal(2, 4, *(7, 6)[:axes]),
        channels_last=True,
    )


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("steps", [1, 3])
def test_spectral_norm_of_a_linear(steps, train):
    norm = partial(parametrizations.spectral_norm, n_power_iterations=steps)
    options = {"n_power_iterations": steps, "use_running_average": not train}
    check_layer(
        norm(torch.nn.Linear(5, 3)).train(train),
        nnx_spectral(partial(nnx.Linear, 5, 3), **options),
        linen_spectral(partial(nn.Dense, 3), **options),
        normal(4, 5),
    )


@pytest.mark.parametrize("train", [True, False])
def test_spectral_norm_of_a_convolution(train):
    window = (3, 2)
    options = {"padding": "VALID", "use_bias": False}
    check_layer(
        parametrizations.spectral_norm(torch.nn.Conv2d(4, 6, window, bias=False)).train(
            train
        ),
        nnx_spectral(
            partial(nnx.Conv, 4, 6, window, **options), use_running_average=not train
        ),
        linen_spectral(
            partial(nn.Conv, 6, window, **options), use_running_average=not train
        ),
        normal(2, 4, 7, 6),
        channels_last=True,
    )


def test_spectral_norm_starts_at_the_largest_singular_value():
    layer = nnx.Conv(4, 5, (2, 3), rngs=RNGS)
    matrix = jnp.moveaxis(layer.kernel[...], -1, 0).reshape(5, -1)
    largest = jnp.linalg.norm(matrix, ord=2)
    normed = models.SpectralNorm(layer, rngs=RNGS)
    vectors = Vectors(normed.u[...], normed.v[...])
    kernel = normalized(layer.kernel[...], vectors)
    # The power method nears it from below.
    assert jnp.allclose(kernel, layer.kernel[...] / largest, rtol=0.02)


def test_train_and_eval_and_views_set_the_mode_of_spectral_norm():
    normed = models.SpectralNorm(LINEAR(), rngs=RNGS)
    first = normed.u[...]
    normed.eval()
    normed(X)
    normed(X, use_running_average=True)
    assert jnp.array_equal(normed.u[...], first)
    normed.v[...] = jnp.ones(3)
    nnx.view(normed, use_running_average=False)(X)
    assert not jnp.array_equal(normed.u[...], first)


def old_weight_norm(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return torch.nn.utils.weight_norm(layer)


def test_the_old_weight_norm_is_told_its_new_names():
    source = old_weight_norm(torch.nn.Linear(3, 2))
    target = models.WeightNorm(LINEAR())
    with pytest.raises(ConversionError) as caught:
        from_torch(target, source)
    problem = caught.value.problems[-1]
    assert problem.startswith("'weight_v' (2, 3) is not used. It is of torch's old")
    # What it says to do.
    start = problem.index("rename=") + len("rename=")
    rename = eval(problem[start : problem.index(" gives it the name")])
    converted = from_torch(target, source, rename=rename)
    renewed = parametrizations.weight_norm(torch.nn.Linear(3, 2))
    renewed.load_state_dict(to_torch(converted), strict=True)
    x = torch.ones(3)
    assert torch.allclose(renewed(x), source(x))


@pytest.mark.parametrize(
    "parametrized",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        old_weight_norm,
        torch.nn.utils.spectral_norm,
    ],
    ids=["weight_norm", "spectral_norm", "old weight_norm", "old spectral_norm"],
)
def test_a_plain_layer_is_refused_with_what_to_do(parametrized):
    source = parametrized(torch.nn.Linear(3, 2)).eval()
    target = nnx.Dict(fc=LINEAR())
    named = {f"fc.{name}": tensor for name, tensor in source.state_dict().items()}
    with pytest.raises(ConversionError) as caught:
        from_torch(target, named)
    extra = [text for text in caught.value.problems if "is not used" in text]
    assert len(extra) == len(named) - 1
    for problem in extra:
        assert "makes a weight of it: put the layer into WeightNorm or Sp" in problem
        assert "remove_parametrizations(layer, 'weight')" in problem
    # What it says to do.
    expected = source(torch.ones(3)).detach()
    if parametrize.is_parametrized(source):
        parametrize.remove_parametrizations(source, "weight")
    elif parametrized is old_weight_norm:
        torch.nn.utils.remove_weight_norm(source)
    else:
        torch.nn.utils.remove_spectral_norm(source)
    layer = from_torch(LINEAR(), source)
    assert jnp.allclose(layer(jnp.ones(3)), expected.numpy(), atol=1e-6)


def linen_pair(module, *arguments, **options):
    init = partial(module.init, **options)
    return module, jax.eval_shape(init, jax.random.key(0), *arguments)


X = jnp.ones((1, 3))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            nnx.WeightNorm(LINEAR(), rngs=RNGS),
            "WeightNorm at '': it keeps its scales outside its variables, and every "
            "call overwrites the kernel: use jaxclip.models.WeightNorm.",
        ),
        (
            nnx.SpectralNorm(LINEAR(), rngs=RNGS),
            "SpectralNorm at '': it keeps one vector where torch's spectral_norm keeps",
        ),
        (
            linen_pair(nn.SpectralNorm(nn.Dense(2)), X, update_stats=False),
            "SpectralNorm at '': it keeps one vector where torch's spectral_norm keeps",
        ),
        (
            models.WeightNorm(nnx.ConvTranspose(3, 2, 3, rngs=RNGS)),
            "WeightNorm at '': it holds a ConvTranspose; the first axis in torch is",
        ),
        (
            linen_pair(nn.WeightNorm(nn.Dense(2), feature_axes=0), X),
            "WeightNorm at '': torch's weight_norm is of the weight alone, with one",
        ),
        (
            linen_pair(nn.WeightNorm(nn.Dense(2), variable_filter=None), X),
            "WeightNorm at '': torch's weight_norm is of the weight alone, with one",
        ),
    ],
    ids=["nnx", "nnx spectral", "spectral", "transpose", "axes", "bias"],
)
def test_what_cannot_hold_it_is_refused_with_what_to_do(target, message):
    with pytest.raises(ConversionError) as caught:
        to_torch(target)
    assert caught.value.problems[0].startswith(message)


def test_our_weight_norm_leaves_the_kernel_as_it_is_where_flaxs_does_not():
    assert "scales" not in nnx.state(nnx.WeightNorm(LINEAR(), rngs=RNGS), nnx.Param)
    stock, own = nnx.WeightNorm(LINEAR(), rngs=RNGS), models.WeightNorm(LINEAR())
    before = own.layer.kernel[...]
    own(X)
    assert jnp.array_equal(own.layer.kernel[...], before)
    before = stock.layer_instance.kernel[...]
    stock(X)
    assert not jnp.allclose(stock.layer_instance.kernel[...], before)

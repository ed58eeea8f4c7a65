"""Where a port looks right and is wrong: each trap, the wrong way and the right one.

The weights are converted, so that only what a user says about the layer can be wrong:
arguments of Flax whose defaults or meanings are not torch's.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn
from flax import nnx

from jaxclip.convert import from_torch
from tests.convert.layers.harness import normal, randomise


def ported(source, nnx_layer, linen_layer, x):
    """Return torch's outputs, and those of both Flax layers after conversion."""
    randomise(source)
    with torch.no_grad():
        expected = source(torch.tensor(x)).numpy()
    # For Flax the channels are last.
    last = np.moveaxis(x, 1, -1)
    layer = from_torch(nnx_layer(rngs=nnx.Rngs(0)), source, ignore=ignored(source))
    shapes = jax.eval_shape(linen_layer.init, jax.random.key(0), last)
    module, variables = from_torch(
        (linen_layer, shapes), source, ignore=ignored(source)
    )
    mutable = [name for name in variables if name != "params"]
    outputs = layer(last), module.apply(variables, last, mutable=mutable)[0]
    return expected, [np.moveaxis(output, -1, 1) for output in outputs]


def ignored(source):
    count = "num_batches_tracked"
    return [count] if count in source.state_dict() else []


def gap(source, nnx_layer, linen_layer, x):
    """Return how far the Flax layers are from torch's, the nearer one."""
    expected, outputs = ported(source, nnx_layer, linen_layer, x)
    for output in outputs:
        assert output.shape == expected.shape
    return min(np.abs(output - expected).max() for output in outputs)


def conv(padding):
    options = {"kernel_size": (3, 3), "strides": 2, "padding": padding}
    return partial(nnx.Conv, 2, 4, **options), nn.Conv(4, **options)


def test_same_padding_at_stride_2_is_elsewhere():
    x = normal(1, 2, 8, 8).astype("f")
    source = torch.nn.Conv2d(2, 4, 3, stride=2, padding=1)
    assert gap(source, *conv("SAME"), x) > 0.5
    assert gap(source, *conv(1), x) < 1e-5
    # On an odd number of pixels the two agree: a test of those alone sees nothing.
    assert gap(source, *conv("SAME"), normal(1, 2, 7, 7).astype("f")) < 1e-5


def conv_transpose(padding, transpose_kernel=False):
    options = {
        "kernel_size": (3, 3),
        "strides": (2, 2),
        "padding": padding,
        "transpose_kernel": transpose_kernel,
    }
    return partial(nnx.ConvTranspose, 2, 2, **options), nn.ConvTranspose(2, **options)


def test_the_window_of_a_transposed_convolution_is_turned_round():
    x = normal(1, 2, 5, 5).astype("f")
    source = torch.nn.ConvTranspose2d(2, 2, 3, stride=2, padding=1)
    right = [(1, 1), (1, 1)]
    for transpose_kernel in (False, True):
        layers = conv_transpose(right, transpose_kernel)
        assert gap(source, *layers, x) < 1e-5
    # The weights by hand, without the turn.
    layer = conv_transpose(right)[0](rngs=nnx.Rngs(0))
    layer.kernel[...] = jnp.asarray(
        source.weight.detach().numpy().transpose(2, 3, 0, 1)
    )
    layer.bias[...] = jnp.asarray(source.bias.detach().numpy())
    wrong = np.moveaxis(layer(np.moveaxis(x, 1, -1)), -1, 1)
    assert np.abs(wrong - source(torch.tensor(x)).detach().numpy()).max() > 0.1


def test_the_padding_of_a_transposed_convolution_is_not_torchs():
    x = normal(1, 2, 5, 5).astype("f")
    source = torch.nn.ConvTranspose2d(2, 2, 3, stride=2, padding=0)
    assert gap(source, *conv_transpose([(2, 2), (2, 2)]), x) < 1e-5
    expected, outputs = ported(source, *conv_transpose([(0, 0), (0, 0)]), x)
    for output in outputs:
        assert output.shape != expected.shape


def test_batch_norms_momentum_is_the_part_that_is_kept():
    x = torch.tensor(normal(64, 3).astype("f"))
    source = torch.nn.BatchNorm1d(3, momentum=0.1)
    source(x)

    def running_mean(momentum):
        layer = nnx.BatchNorm(3, momentum=momentum, rngs=nnx.Rngs(0))
        layer(jnp.asarray(x.numpy()))
        return layer.mean[...]

    expected = source.running_mean.numpy()
    np.testing.assert_allclose(running_mean(0.9), expected, rtol=1e-5)
    assert np.abs(running_mean(0.1) - 9 * expected).max() < 1e-5
    assert np.abs(running_mean(0.99) - expected / 10).max() < 1e-5  # the default


# Each with a batch of the axes that it needs: layer and RMS norms are over the last.
NORMS = {
    "layer": (torch.nn.LayerNorm(6), nnx.LayerNorm, nn.LayerNorm, {}, (4, 6)),
    "group": (
        torch.nn.GroupNorm(2, 6),
        nnx.GroupNorm,
        nn.GroupNorm,
        {"num_groups": 2},
        (4, 6, 5),
    ),
    "instance": (
        torch.nn.InstanceNorm1d(6, affine=True),
        nnx.InstanceNorm,
        nn.InstanceNorm,
        {},
        (4, 6, 5),
    ),
    "rms": (torch.nn.RMSNorm(6), nnx.RMSNorm, nn.RMSNorm, {}, (4, 6)),
}
EPSILON = {"rms": float(jnp.finfo("float32").eps)}


def norm(name, **options):
    """Return a norm of torch, and both of Flax with some options."""
    source, nnx_norm, linen_norm, needed, shape = NORMS[name]
    options = needed | options
    return source, partial(nnx_norm, 6, **options), linen_norm(**options), shape


@pytest.mark.parametrize("name", NORMS)
def test_the_epsilon_of_a_norm_is_another(name):
    epsilon = EPSILON.get(name, 1e-5)
    *layers, shape = norm(name)
    # The variance of such values is of the size of both epsilons.
    x = (normal(*shape) * 1e-3).astype("f")
    assert gap(*layers, x) > 0.01
    *layers, _ = norm(name, epsilon=epsilon, use_fast_variance=False)
    assert gap(*layers, x) < 1e-5


@pytest.mark.parametrize("name", ["layer", "group", "instance"])
def test_the_fast_variance_has_no_digits_left_at_a_large_mean(name):
    *layers, shape = norm(name, epsilon=1e-5)
    x = (normal(*shape) + 1e3).astype("f")
    assert gap(*layers, x) > 0.005
    *layers, _ = norm(name, epsilon=1e-5, use_fast_variance=False)
    # The differences from the mean have four digits left, in torch as here.
    assert gap(*layers, x) < 1e-3


def test_group_norm_has_32_groups_unless_told():
    with pytest.raises(ValueError, match="Number of groups"):
        nnx.GroupNorm(6, rngs=nnx.Rngs(0))
    source = torch.nn.GroupNorm(2, 64)
    x = normal(2, 64, 5).astype("f")
    options = {"epsilon": 1e-5}
    wrong = partial(nnx.GroupNorm, 64, **options), nn.GroupNorm(**options)
    options["num_groups"] = 2
    right = partial(nnx.GroupNorm, 64, **options), nn.GroupNorm(**options)
    assert gap(source, *wrong, x) > 0.1
    assert gap(source, *right, x) < 1e-5


def test_gelu_is_an_approximation_unless_told():
    x = np.linspace(-4, 4, 101, dtype="f")
    for approximate in ("none", "tanh"):
        expected = torch.nn.functional.gelu(torch.tensor(x), approximate=approximate)
        for gelu in (nnx.gelu, nn.gelu, jax.nn.gelu):
            right = gelu(x, approximate=approximate == "tanh")
            np.testing.assert_allclose(right, expected, atol=1e-6)
            wrong = gelu(x, approximate=approximate != "tanh")
            assert np.abs(wrong - expected.numpy()).max() > 4e-4
    # Said nothing of, torch's is exact and Flax's is not.
    exact = torch.nn.functional.gelu(torch.tensor(x)).numpy()
    assert np.abs(nnx.gelu(x) - exact).max() > 4e-4


def test_max_pools_pad_with_minus_infinity_and_average_pools_with_zeros():
    """No trap: both agree, where a padded border is counted in the average."""
    x = normal(1, 2, 7, 7).astype("f") - 3
    last = np.moveaxis(x, 1, -1)
    window = ((3, 3), (2, 2), ((1, 1), (1, 1)))
    for theirs, ours in (
        (torch.nn.functional.max_pool2d, nn.max_pool),
        (torch.nn.functional.avg_pool2d, nn.avg_pool),
    ):
        expected = theirs(torch.tensor(x), 3, stride=2, padding=1).numpy()
        actual = np.moveaxis(ours(last, *window), -1, 1)
        np.testing.assert_allclose(actual, expected, rtol=1e-5)
    # What is not counted in torch has to be told here.
    told = torch.nn.functional.avg_pool2d(
        torch.tensor(x), 3, stride=2, padding=1, count_include_pad=False
    ).numpy()
    assert np.abs(np.moveaxis(nn.avg_pool(last, *window), -1, 1) - told).max() > 0.1
    right = nn.avg_pool(last, *window, count_include_pad=False)
    np.testing.assert_allclose(np.moveaxis(right, -1, 1), told, rtol=1e-5)

"""Normalisation layers, in training and in evaluation."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn
from flax import nnx

from jaxclip import models
from jaxclip.convert import ConversionError, from_torch, to_torch
from jaxclip.models import linen
from tests.convert.layers.harness import check_layer, normal, randomise

COUNT = "num_batches_tracked"


# Which axes are averaged over is settled in float64; float32 has its say on few.
DTYPES = {axes: ("float32", "float64")[axes > 1 :] for axes in range(4)}


def batch(axes):
    return normal(4, 6, *(5, 3, 2)[:axes])


# Flax's own layers.


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("axes", [0, 1, 2, 3])
def test_stock_batch_norm(axes, train):
    kind = getattr(torch.nn, f"BatchNorm{max(axes, 1)}d")
    options = {"use_running_average": not train, "momentum": 0.9}
    check_layer(
        kind(6).train(train),
        partial(nnx.BatchNorm, 6, use_fast_variance=False, **options),
        partial(nn.BatchNorm, use_fast_variance=False, **options),
        batch(axes),
        channels_last=True,
        ignore=[COUNT],
        buffers=not train,
        dtypes=DTYPES[axes],
    )


@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm(bias):
    options = {"epsilon": 1e-5, "use_bias": bias, "use_fast_variance": False}
    check_layer(
        torch.nn.LayerNorm(6, bias=bias),
        partial(nnx.LayerNorm, 6, **options),
        partial(nn.LayerNorm, **options),
        normal(4, 3, 6),
    )


def test_layer_norm_over_two_axes():
    axes = (-2, -1)
    check_layer(
        torch.nn.LayerNorm((3, 6)),
        None,
        partial(
            nn.LayerNorm,
            epsilon=1e-5,
            reduction_axes=axes,
            feature_axes=axes,
            use_fast_variance=False,
        ),
        normal(4, 3, 6),
    )


@pytest.mark.parametrize("groups", [1, 3, 6])
def test_group_norm(groups):
    options = {"epsilon": 1e-5, "use_fast_variance": False}
    check_layer(
        torch.nn.GroupNorm(groups, 6),
        partial(nnx.GroupNorm, 6, num_groups=groups, **options),
        partial(nn.GroupNorm, num_groups=groups, **options),
        batch(2),
        channels_last=True,
    )


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_instance_norm(axes):
    options = {"epsilon": 1e-5, "use_fast_variance": False}
    check_layer(
        getattr(torch.nn, f"InstanceNorm{axes}d")(6, affine=True),
        partial(nnx.InstanceNorm, 6, **options),
        partial(nn.InstanceNorm, **options),
        batch(axes),
        channels_last=True,
        dtypes=DTYPES[axes],
    )


@pytest.mark.parametrize("eps", [1e-3, None])
def test_rms_norm(eps):
    def options(dtype):
        return {"epsilon": float(jnp.finfo(dtype).eps) if eps is None else eps}

    check_layer(
        torch.nn.RMSNorm(6, eps=eps),
        lambda rngs, param_dtype: nnx.RMSNorm(
            6, rngs=rngs, param_dtype=param_dtype, **options(param_dtype)
        ),
        lambda param_dtype: nn.RMSNorm(param_dtype=param_dtype, **options(param_dtype)),
        normal(4, 6) * 1e-3,
    )


# What Flax's own layers have nowhere to put.


def test_the_count_of_batches_is_named_with_what_to_do():
    source = torch.nn.BatchNorm1d(2)
    target = nnx.BatchNorm(2, rngs=nnx.Rngs(0))
    with pytest.raises(ConversionError) as caught:
        from_torch(target, source)
    assert caught.value.problems == (
        "'num_batches_tracked' () is not used. Flax's BatchNorm counts no batches, and "
        "only momentum=None needs the count: leave it out with "
        "ignore=['*num_batches_tracked'], or use jaxclip.models.BatchNorm (or that of "
        "jaxclip.models.linen), which keeps it.",
    )
    converted = from_torch(target, source, ignore=["*num_batches_tracked"])
    # torch takes the rest, and leaves its count as it is.
    source.num_batches_tracked.fill_(3)
    source.load_state_dict(to_torch(converted), strict=True)
    assert source.num_batches_tracked == 3


def test_statistics_that_instance_norm_lacks_are_named_with_what_to_do():
    source = torch.nn.InstanceNorm1d(2, affine=True, track_running_stats=True)
    target = nnx.InstanceNorm(2, rngs=nnx.Rngs(0))
    with pytest.raises(ConversionError) as caught:
        from_torch(target, source)
    assert len(caught.value.problems) == 3
    for problem in caught.value.problems:
        assert "Flax's InstanceNorm keeps no statistics: leave them out" in problem


def test_evaluation_with_the_statistics_of_instance_norm_is_that_of_batch_norm():
    source = torch.nn.InstanceNorm1d(6, affine=True, track_running_stats=True).eval()
    check_layer(
        source,
        partial(models.BatchNorm, 6, use_running_average=True),
        partial(linen.BatchNorm, 6, use_running_average=True),
        batch(1),
        channels_last=True,
    )


def test_weights_along_several_axes_are_refused_in_nnx_with_what_to_do():
    source = torch.nn.LayerNorm((2, 3))
    randomise(source)
    layer = nnx.LayerNorm(6, epsilon=1e-5, rngs=nnx.Rngs(0))
    with pytest.raises(
        ConversionError, match=r"several flatten those axes .* tensor\."
    ):
        from_torch(layer, source)
    flat = {name: tensor.flatten() for name, tensor in source.state_dict().items()}
    x = normal(4, 2, 3).astype("f")
    expected = source(torch.tensor(x)).detach().reshape(4, 6)
    actual = from_torch(layer, flat)(x.reshape(4, 6))
    np.testing.assert_allclose(actual, expected, atol=1e-5)


# Our own batch norm.

OPTIONS = {
    "as torch has it": {},
    "momentum": {"momentum": 0.3},
    "the mean of all batches": {"momentum": None},
    "no weights": {"affine": False},
    "no statistics": {"track_running_stats": False},
}


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_own_batch_norm(options, train):
    check_layer(
        torch.nn.BatchNorm2d(6, **options).train(train),
        partial(models.BatchNorm, 6, use_running_average=not train, **options),
        partial(linen.BatchNorm, 6, use_running_average=not train, **options),
        batch(2),
        channels_last=True,
    )


@pytest.mark.parametrize("axes", [0, 1, 3])
def test_own_batch_norm_of_other_ranks(axes):
    check_layer(
        getattr(torch.nn, f"BatchNorm{max(axes, 1)}d")(6),
        partial(models.BatchNorm, 6),
        partial(linen.BatchNorm, 6, use_running_average=False),
        batch(axes),
        channels_last=True,
        dtypes=DTYPES[axes],
    )


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("framework", ["nnx", "linen"])
def test_own_statistics_are_torchs_over_several_steps(framework, momentum):
    source = torch.nn.BatchNorm1d(3, momentum=momentum, dtype=torch.float64)
    batches = [normal(4, 3, seed=seed) * (seed + 1) + seed for seed in range(5)]
    with jax.enable_x64(True):
        if framework == "nnx":
            layer = models.BatchNorm(3, momentum=momentum, param_dtype="float64")
            for x in batches:
                layer(x)
            target = layer
        else:
            layer = linen.BatchNorm(3, False, momentum, param_dtype="float64")
            variables = layer.init(jax.random.key(0), batches[0])
            for x in batches:
                _, updates = layer.apply(variables, x, mutable=["batch_stats"])
                variables = variables | updates
            target = (layer, variables)
        for x in batches:
            source(torch.tensor(x))
        for name, tensor in to_torch(target).items():
            np.testing.assert_allclose(
                tensor, source.state_dict()[name], rtol=1e-14, err_msg=name
            )
        assert to_torch(target)[COUNT] == 5
        # It goes on in torch from there, and from torch here.
        source.load_state_dict(to_torch(target))
        from_torch(target, source)


def test_the_stock_statistics_part_from_torchs_on_the_first_step():
    source = torch.nn.BatchNorm1d(3)
    stock = nnx.BatchNorm(3, momentum=0.9, rngs=nnx.Rngs(0))
    own = models.BatchNorm(3)
    x = normal(4, 3).astype("f")
    outputs = source(torch.tensor(x)).detach()
    for layer in (stock, own):
        np.testing.assert_allclose(layer(x), outputs, atol=1e-6)
    np.testing.assert_allclose(stock.mean[...], source.running_mean, rtol=1e-6)
    np.testing.assert_allclose(own.running_var[...], source.running_var, rtol=1e-6)
    # Of 4 values the biased variance is 3/4 of the unbiased.
    biased = 0.9 + 0.1 * x.var(axis=0)
    np.testing.assert_allclose(stock.var[...], biased, rtol=1e-6)
    assert np.abs(stock.var[...] - source.running_var.numpy()).max() > 0.01


def test_a_batch_spread_over_an_axis_has_the_moments_of_the_whole():
    x = normal(8, 3).astype("f")
    whole = models.BatchNorm(3)
    expected = whole(x)
    part = models.BatchNorm(3, axis_name="shards")
    graphdef, state = nnx.split(part)

    def run(x):
        layer = nnx.merge(graphdef, state, copy=True)
        return layer(x), layer.running_var[...]

    outputs, variances = jax.vmap(run, axis_name="shards")(x.reshape(2, 4, 3))
    np.testing.assert_allclose(outputs.reshape(8, 3), expected, atol=1e-6)
    for variance in variances:
        np.testing.assert_allclose(variance, whole.running_var[...], rtol=1e-6)


def test_train_and_eval_and_views_set_the_mode():
    layer, x = models.BatchNorm(2), jnp.array([[1.0, 2.0], [3.0, 6.0]])
    layer.eval()
    layer(x)
    assert layer.num_batches_tracked[...] == 0
    nnx.view(layer, use_running_average=False)(x)
    layer.train()
    layer(x)
    layer(x, use_running_average=True)
    assert layer.num_batches_tracked[...] == 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_batches_have_statistics_of_float32(dtype):
    x = (normal(64, 2) + 10).astype(dtype)
    layer = models.BatchNorm(2, momentum=None)
    assert layer(x).dtype == x.dtype
    expected = x.astype("float64").var(axis=0, ddof=1)
    np.testing.assert_allclose(layer.running_var[...], expected, rtol=1e-5)


def test_a_single_value_has_no_variance():
    match = r"x has shape \(1, 2\), 1 value\(s\) for each channel"
    with pytest.raises(ValueError, match=match):
        models.BatchNorm(2)(jnp.ones((1, 2)))
    with pytest.raises(ValueError, match="1 value per channel"):
        torch.nn.BatchNorm1d(2)(torch.ones(1, 2))


@pytest.mark.parametrize("shape", [(4, 1), (2, 4), ()])
def test_an_array_that_would_be_broadcast_is_refused(shape):
    x = jnp.ones(shape)
    message = re.escape(f"x has shape {shape}; its last axis must be the channels, of ")
    with pytest.raises(ValueError, match=message):
        models.BatchNorm(2)(x)
    layer = linen.BatchNorm(2, use_running_average=True)
    with pytest.raises(ValueError, match=message):
        layer.init(jax.random.key(0), x)


def test_a_count_that_32_bits_cannot_hold_is_refused():
    source = torch.nn.BatchNorm1d(2)
    source.num_batches_tracked.fill_(2**31 - 1)
    kept = from_torch(models.BatchNorm(2), source)
    assert to_torch(kept)[COUNT] == 2**31 - 1
    source.num_batches_tracked.fill_(2**31)
    with pytest.raises(ConversionError, match="num_batches_tracked is 2147483648, mor"):
        from_torch(models.BatchNorm(2), source)


def test_sync_batch_norm_has_the_same_weights():
    source = torch.nn.SyncBatchNorm(2)
    randomise(source)
    returned = to_torch(from_torch(models.BatchNorm(2), source))
    assert returned.keys() == source.state_dict().keys()


def test_no_gradient_flows_through_the_statistics():
    def run(x):
        layer = models.BatchNorm(2)
        layer(x)
        return layer.running_var[...].sum()

    x = normal(4, 2).astype("f")
    assert run(x) != run(2 * x)
    np.testing.assert_array_equal(jax.grad(run)(x), np.zeros((4, 2)))

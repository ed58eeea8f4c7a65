"""How the output of a layer lies follows from the type of the Flax layer."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import torch
from flax import linen as nn
from flax import nnx

from jaxclip import convert, models, parity
from jaxclip.convert._rules.registry import output_layout
from jaxclip.models import linen
from tests.convert.layers.harness import normal, randomise


@dataclass(frozen=True)
class Case:
    """A layer three times over, and what it takes in torch.

    ``channels`` is the axis of torch's inputs that Flax has last, if it is another.
    """

    torch: torch.nn.Module
    nnx: Callable[..., Any]
    linen: nn.Module
    shapes: tuple[tuple[int, ...], ...]
    layout: str
    channels: int = -1
    ignore: tuple[str, ...] = ()


def conv(window):
    return partial(nnx.Conv, 2, 3, window, padding="VALID")


def own_transpose(window):
    return partial(models.ConvTranspose, 2, 3, window, strides=2)


LSTM = {"num_layers": 2, "batch_first": False}
HEADS = {"batch_first": False}

CASES = {
    "conv of sequences": Case(
        torch.nn.Conv1d(2, 3, 3),
        conv((3,)),
        nn.Conv(3, 3),
        ((4, 2, 7),),
        "channels_last_1d",
        1,
    ),
    "conv of images": Case(
        torch.nn.Conv2d(2, 3, 3),
        conv((3, 3)),
        nn.Conv(3, (3, 3)),
        ((4, 2, 5, 6),),
        "channels_last_2d",
        1,
    ),
    "conv of one image": Case(
        torch.nn.Conv2d(2, 3, 3),
        conv((3, 3)),
        nn.Conv(3, (3, 3)),
        ((2, 5, 6),),
        "channels_last_2d",
        0,
    ),
    "conv of volumes": Case(
        torch.nn.Conv3d(2, 3, 2),
        conv((2, 2, 2)),
        nn.Conv(3, (2, 2, 2)),
        ((1, 2, 3, 4, 5),),
        "channels_last_3d",
        1,
    ),
    "transposed conv": Case(
        torch.nn.ConvTranspose2d(2, 3, 3),
        partial(
            nnx.ConvTranspose, 2, 3, (3, 3), padding="VALID", transpose_kernel=True
        ),
        nn.ConvTranspose(3, (3, 3)),
        ((4, 2, 5, 6),),
        "channels_last_2d",
        1,
    ),
    "our transposed conv of one sequence": Case(
        torch.nn.ConvTranspose1d(2, 3, 3, stride=2),
        own_transpose(3),
        linen.ConvTranspose(2, 3, 3, strides=2),
        ((2, 5),),
        "channels_last_1d",
        0,
    ),
    "weight_norm of a conv": Case(
        torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(2, 3, 3)),
        lambda rngs: models.WeightNorm(conv((3,))(rngs=rngs)),
        nn.WeightNorm(nn.Conv(3, (3,))),
        ((4, 2, 7),),
        "channels_last_1d",
        1,
    ),
    "batch norm of vectors": Case(
        torch.nn.BatchNorm1d(3),
        lambda rngs: models.BatchNorm(3),
        linen.BatchNorm(3),
        ((4, 3),),
        "channels_last",
    ),
    "batch norm of images": Case(
        torch.nn.BatchNorm2d(3),
        lambda rngs: models.BatchNorm(3),
        nn.BatchNorm(),
        ((4, 3, 5, 6),),
        "channels_last",
        1,
    ),
    "batch norm along torch's axis": Case(
        torch.nn.BatchNorm2d(3),
        partial(nnx.BatchNorm, 3, axis=1),
        nn.BatchNorm(axis=1),
        ((4, 3, 5, 6),),
        "same",
        ignore=("*tracked",),
    ),
    "instance norm": Case(
        torch.nn.InstanceNorm2d(3, affine=True),
        partial(nnx.InstanceNorm, 3, epsilon=1e-5, use_fast_variance=False),
        nn.InstanceNorm(),
        ((4, 3, 5, 6),),
        "channels_last",
        1,
    ),
    "group norm": Case(
        torch.nn.GroupNorm(2, 4),
        partial(nnx.GroupNorm, 4, num_groups=2, epsilon=1e-5, use_fast_variance=False),
        nn.GroupNorm(2),
        ((5, 4, 3, 2),),
        "channels_last",
        1,
    ),
    "layer norm": Case(
        torch.nn.LayerNorm(4),
        partial(nnx.LayerNorm, 4, epsilon=1e-5, use_fast_variance=False),
        nn.LayerNorm(),
        ((2, 3, 4),),
        "same",
    ),
    "linear": Case(
        torch.nn.Linear(4, 5),
        partial(nnx.Linear, 4, 5),
        nn.Dense(5),
        ((2, 3, 4),),
        "same",
    ),
    "slopes of channels": Case(
        torch.nn.PReLU(3),
        partial(models.PReLU, 3),
        linen.PReLU(3),
        ((4, 3, 5, 6),),
        "channels_last",
        1,
    ),
    "lstm, time first": Case(
        torch.nn.LSTM(4, 3, **LSTM),
        partial(models.LSTM, 4, 3, **LSTM),
        linen.LSTM(4, 3, **LSTM),
        ((5, 2, 4),),
        "same",
    ),
    "cell": Case(
        torch.nn.LSTMCell(4, 3),
        partial(models.LSTMCell, 4, 3),
        linen.LSTMCell(4, 3),
        ((2, 4),),
        "same",
    ),
    "attention, time first": Case(
        torch.nn.MultiheadAttention(4, 2, **HEADS),
        partial(models.MultiheadAttention, 4, 2, **HEADS),
        linen.MultiheadAttention(4, 2, **HEADS),
        ((5, 2, 4), (3, 2, 4), (3, 2, 4)),
        "same",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_layers_output_is_laid_out_as_flax_returns_it(case):
    source = case.torch.double().eval()
    randomise(source, signed=not [*source.buffers()])  # variances are positive
    inputs = [normal(*shape, seed=seed) for seed, shape in enumerate(case.shapes)]
    with torch.no_grad():
        output = source(*map(torch.from_numpy, inputs))
    with jax.enable_x64(True):
        make = lambda: nnx.Dict(layer=case.nnx(rngs=nnx.Rngs(0)))  # noqa: E731
        target = nnx.eval_shape(make)
        tensors = {f"layer.{name}": t for name, t in source.state_dict().items()}
        layer = convert.from_torch(
            target, tensors, ignore=case.ignore, dtype="float64"
        )["layer"]
        layer.eval()
        graph, state = nnx.split(layer)
        run = lambda state, *inputs: nnx.merge(graph, state)(*inputs)  # noqa: E731
        given = (jnp.moveaxis(jnp.asarray(x), case.channels, -1) for x in inputs)
        expected = jax.jit(run)(state, *given)
    weights = convert.mapping(target, tensors, ignore=case.ignore)
    (pair,) = (pair for pair in weights.modules if pair.torch == "layer")
    assert pair.layout == output_layout(case.linen) == case.layout
    mapped = weights.activations_to_flax({"layer": output})
    # In float64 the layers are the same but for rounding, as their own tests show.
    parity.assert_trees_close(mapped, {"layer": expected}, rtol=1e-12, atol=1e-13)
    returned = weights.activations_to_torch({"layer": mapped["layer"]})
    parity.assert_trees_equal(returned, {"layer": output})


class Scaled(nnx.Conv):
    """A convolution that may do anything with its output."""

    def __call__(self, x):
        return 2 * super().__call__(x)


class Derived(nnx.Conv):
    """A convolution under another name."""


class LinenDerived(nn.Conv):
    """A convolution under another name."""


class LinenScaled(nn.Conv):
    """A convolution that may do anything with its output."""

    @nn.compact
    def __call__(self, x):
        return 2 * super().__call__(x)


CONV = (1, 1, (3, 3))


@pytest.mark.parametrize(
    ("make", "layout"),
    [
        (lambda rngs: nnx.PReLU(), None),
        (lambda rngs: models.PReLU(1), None),
        (lambda rngs: models.PReLU(2), "channels_last"),
        (lambda rngs: nnx.LinearGeneral(2, 3, rngs=rngs), "same"),
        (lambda rngs: nnx.LinearGeneral(2, (3, 2), rngs=rngs), None),
        (lambda rngs: models.Bilinear(1, 1, 1, rngs=rngs), "same"),
        (lambda rngs: nnx.Einsum("ab,bc->ac", (2, 2), rngs=rngs), None),
        (lambda rngs: nnx.BatchNorm(2, axis=2, rngs=rngs), None),
        (lambda rngs: nnx.InstanceNorm(2, feature_axes=(1, -1), rngs=rngs), None),
        (lambda rngs: nnx.Conv(1, 1, (1, 1, 1, 1), rngs=rngs), None),
        (lambda rngs: nnx.Dropout(0.5), None),
        (lambda rngs: nnx.Dict(), None),
        (lambda rngs: Scaled(*CONV, rngs=rngs), None),
        (lambda rngs: Derived(*CONV, rngs=rngs), "channels_last_2d"),
        (lambda rngs: nnx.Sequential(nnx.relu, nnx.Linear(1, 1, rngs=rngs)), "same"),
        (lambda rngs: nnx.Sequential(nnx.Linear(1, 1, rngs=rngs), nnx.relu), None),
        (lambda rngs: nnx.Sequential(), None),
        (lambda rngs: models.my_net(rngs=rngs), "same"),
    ],
)
def test_what_an_nnx_type_does_not_say_is_not_known(make, layout):
    module = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    assert output_layout(module) == layout


@pytest.mark.parametrize(
    ("module", "layout"),
    [
        (nn.PReLU(), None),
        (linen.PReLU(1), None),
        (linen.PReLU(2), "channels_last"),
        (nn.DenseGeneral(3), "same"),
        (nn.DenseGeneral((3, 2)), None),
        (linen.Bilinear(1, 1, 1), "same"),
        (nn.Einsum((2, 2), "ab,bc->ac"), None),
        (LinenScaled(1, (3, 3)), None),
        (LinenDerived(1, (3, 3)), "channels_last_2d"),
        (nn.Sequential([nn.Dense(1), nn.Conv(1, (3,))]), "channels_last_1d"),
        (nn.Sequential([nn.Dense(1), nn.relu]), None),
        (linen.my_net(), "same"),
    ],
)
def test_what_a_linen_type_does_not_say_is_not_known(module, layout):
    assert output_layout(module) == layout

"""Rules for normalisation layers."""

from collections.abc import Iterator, Sequence
from typing import Any

from flax import linen as nn
from flax import nnx

from jaxclip import models
from jaxclip.convert._rules.layouts import CHANNELS_LAST, SAME, Layout
from jaxclip.convert._rules.links import Link, Rule, Variables, named, narrowed, same
from jaxclip.models import linen

_affine = named({"scale": "weight", "bias": "bias"})
_batch_norm = named(
    {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
)

COUNT = "num_batches_tracked"


def _own_batch_norm(layer: object, variables: Variables) -> Iterator[Link]:
    """Link torch's names, and its 64 bits of a count to the 32 that JAX has."""
    return (narrowed(same(n, n)) if n == COUNT else same(n, n) for n in variables)


def _batch_norm_layout(layer: nnx.BatchNorm | nn.BatchNorm) -> Layout | None:
    return _layout(layer.axis)


def _instance_norm_layout(layer: nnx.InstanceNorm | nn.InstanceNorm) -> Layout | None:
    return _layout(layer.feature_axes)


def _layout(axes: Any) -> Layout | None:
    """Return how the output lies, from the axis of the channels: in torch the second.

    Without spatial axes the second is the last, too.
    """
    channels = tuple(axes) if isinstance(axes, Sequence) else (axes,)
    return {(-1,): CHANNELS_LAST, (1,): SAME}.get(channels)


_BATCH_NORM = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm")
_INSTANCE_NORM = ("InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d")

_batch_norm_rule = Rule(
    _batch_norm,
    layout=_batch_norm_layout,
    torch=_BATCH_NORM,
    note="in training its running variance is another; statistics of float32; "
    f"`ignore=['*{COUNT}']`",
    remedies={
        COUNT: "Flax's BatchNorm counts no batches, and only momentum=None needs the "
        f"count: leave it out with ignore=['*{COUNT}'], or use "
        "jaxclip.models.BatchNorm (or that of jaxclip.models.linen), which keeps it.",
    },
)
_own_batch_norm_rule = Rule(
    _own_batch_norm,
    layout=CHANNELS_LAST,
    torch=_BATCH_NORM,
    note="torch's arguments and statistics",
)
_instance_norm_rule = Rule(
    _affine,
    layout=_instance_norm_layout,
    torch=_INSTANCE_NORM,
    note="`epsilon=1e-5`; no running statistics",
    remedies=dict.fromkeys(
        ("running_mean", "running_var", COUNT),
        "Flax's InstanceNorm keeps no statistics: leave them out with ignore= if "
        "torch's were not used, which is so in training; to evaluate with them, use "
        "jaxclip.models.BatchNorm with use_running_average=True.",
    ),
)
_layer_norm_rule = Rule(
    _affine,
    layout=SAME,
    torch=("LayerNorm",),
    note="`epsilon=1e-5`; several axes in Linen alone",
    remedies=dict.fromkeys(
        ("weight", "bias"),
        "nnx.LayerNorm has weights along one axis; for a normalized_shape of several "
        "flatten those axes of the input, and the tensor: tensor.flatten().",
    ),
)
_group_norm_rule = Rule(
    _affine,
    layout=CHANNELS_LAST,
    torch=("GroupNorm",),
    note="`epsilon=1e-5`; 32 groups unless told",
)
_rms_norm_rule = Rule(
    _affine,
    layout=SAME,
    torch=("RMSNorm",),
    note="`epsilon=jnp.finfo(dtype).eps` for torch's `eps=None`",
)

RULES: dict[type, Rule] = {
    nnx.BatchNorm: _batch_norm_rule,
    nn.BatchNorm: _batch_norm_rule,
    models.BatchNorm: _own_batch_norm_rule,
    linen.BatchNorm: _own_batch_norm_rule,
    nnx.LayerNorm: _layer_norm_rule,
    nn.LayerNorm: _layer_norm_rule,
    nnx.GroupNorm: _group_norm_rule,
    nn.GroupNorm: _group_norm_rule,
    nnx.InstanceNorm: _instance_norm_rule,
    nn.InstanceNorm: _instance_norm_rule,
    nnx.RMSNorm: _rms_norm_rule,
    nn.RMSNorm: _rms_norm_rule,
}

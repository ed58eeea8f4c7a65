"""Batch normalisation that keeps the statistics that torch keeps, in Flax NNX."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxclip.models._checks import check_channels, check_sizes


class Statistics(NamedTuple):
    """What is remembered of the batches so far; torch's buffers, by torch's names."""

    running_mean: jax.Array
    running_var: jax.Array
    num_batches_tracked: jax.Array


def fresh_statistics(num_features: int, dtype: Any) -> Statistics:
    """Return the statistics before the first batch."""
    return Statistics(
        jnp.zeros(num_features, dtype),
        jnp.ones(num_features, dtype),
        jnp.zeros((), jnp.int32),
    )


class Moments(NamedTuple):
    """The mean and the biased variance of each channel, and of how many values."""

    mean: jax.Array
    var: jax.Array
    values: int


def moments(x: jax.Array, axis_name: str | None) -> Moments:
    """Return the moments of a batch over all axes but the last.

    Raises:
        ValueError: If there is but one value for each channel.
    """
    count = math.prod(x.shape[:-1])
    if axis_name is not None:
        count *= jax.lax.axis_size(axis_name)
    if count < 2:
        raise ValueError(
            f"x has shape {x.shape}, {count} value(s) for each channel; a batch has a "
            "variance from 2 on. Use the running averages, or a larger batch."
        )

    def mean(values: jax.Array) -> jax.Array:
        inner = jnp.mean(values, axis=tuple(range(x.ndim - 1)))
        return inner if axis_name is None else jax.lax.pmean(inner, axis_name)

    # The squares of differences: at a large mean the mean of squares has no digits
    # left for the variance.
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    center = mean(x)
    return Moments(center, mean(jnp.square(x - center)), count)


def updated(
    statistics: Statistics, batch: Moments, momentum: float | None
) -> Statistics:
    """Return the statistics with one batch more in them."""
    number = statistics.num_batches_tracked + 1
    unbiased = batch.var * (batch.values / (batch.values - 1))

    def averaged(running: jax.Array, value: jax.Array) -> jax.Array:
        part = 1 / number.astype(value.dtype) if momentum is None else momentum
        value = jax.lax.stop_gradient(value)
        return ((1 - part) * running + part * value).astype(running.dtype)

    return Statistics(
        averaged(statistics.running_mean, batch.mean),
        averaged(statistics.running_var, unbiased),
        number,
    )


def normalize(
    x: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    epsilon: float,
    weight: jax.Array | None,
    bias: jax.Array | None,
) -> jax.Array:
    """Scale and shift every channel; the result has the dtype of ``x``."""
    y = (x - mean) * jax.lax.rsqrt(var + epsilon)
    if weight is not None and bias is not None:
        y = y * weight + bias
    return y.astype(x.dtype)


class BatchNorm(nnx.Module):
    r"""Batch normalisation, as ``torch.nn.BatchNorm1d``, ``2d``, ``3d``, channels last.

    .. math:: y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} w + b

    In training :math:`\mu` and :math:`\sigma^2` are the mean and the biased variance
    of the batch, and the running averages take in a part ``momentum`` of the mean and
    of the *unbiased* variance, :math:`\sigma^2 n / (n - 1)`.

    Differs from ``nnx.BatchNorm``: there the running variance is that of the biased
    ones, ``momentum`` is the part that is kept (``1 - momentum`` of torch's), and no
    batches are counted. The arguments that Flax has bear Flax's names, the others
    torch's.

    Args:
        num_features: The number of channels.
        use_running_average: Whether to normalise with the running averages, and to
            leave them as they are: torch's ``eval()``. ``model.eval()`` and
            ``model.train()`` set it.
        momentum: The part that a new batch has in the running averages; None for the
            mean of all batches so far.
        epsilon: What is added to the variance.
        affine: Whether there are a weight and a bias.
        track_running_stats: Whether there are running averages. If not, every batch
            is normalised with its own moments, in evaluation too.
        axis_name: A mapped axis (of ``vmap`` or ``shard_map``) over which the batch is
            spread: torch's ``SyncBatchNorm``. Not needed under ``jit``.
        param_dtype: The dtype of the parameters and of the running averages.
        rngs: Taken as Flax's layers take it; nothing is drawn.

    Attributes:
        weight: ``(num_features,)``, ones at first, or None.
        bias: ``(num_features,)``, zeros at first, or None.
        running_mean: ``(num_features,)``, zeros at first, or None.
        running_var: ``(num_features,)``, ones at first, or None.
        num_batches_tracked: How many batches were seen, int32, or None.

    Raises:
        ValueError: If ``num_features`` is less than 1.

    Example:
        >>> layer = BatchNorm(2)
        >>> y = layer(jnp.array([[1.0, 0.0], [3.0, 4.0]]))
        >>> layer.running_mean[...], layer.running_var[...]
        (Array([0.2, 0.2], dtype=float32), Array([1.1, 1.7], dtype=float32))
        >>> layer.eval()
        >>> layer(jnp.array([[0.2, 0.2]]))
        Array([[0., 0.]], dtype=float32)
    """

    def __init__(
        self,
        num_features: int,
        *,
        use_running_average: bool = False,
        momentum: float | None = 0.1,
        epsilon: float = 1e-5,
        affine: bool = True,
        track_running_stats: bool = True,
        axis_name: str | None = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs | None = None,
    ) -> None:
        """Make the parameters and the statistics; see the class for their shapes."""
        del rngs
        check_sizes(num_features=num_features)
        self.num_features = num_features
        self.use_running_average = use_running_average
        self.momentum = momentum
        self.epsilon = epsilon
        self.axis_name = axis_name
        ones = jnp.ones(num_features, param_dtype)
        self.weight = nnx.data(nnx.Param(ones) if affine else None)
        self.bias = nnx.data(nnx.Param(jnp.zeros_like(ones)) if affine else None)
        statistics = fresh_statistics(num_features, param_dtype)
        for name, value in statistics._asdict().items():
            kept = nnx.BatchStat(value) if track_running_stats else None
            setattr(self, name, nnx.data(kept))

    def __call__(
        self, x: jax.Array, *, use_running_average: bool | None = None
    ) -> jax.Array:
        """Normalise ``x``, of shape ``(..., num_features)``.

        Args:
            x: The batch, channels last.
            use_running_average: Instead of the layer's own.

        Returns:
            An array of the shape and dtype of ``x``.

        Raises:
            ValueError: If the last axis is not the channels, or the moments of a
                batch are needed that has one value for each channel.
        """
        check_channels(x, self.num_features)
        if use_running_average is None:
            use_running_average = self.use_running_average
        weight = None if self.weight is None else self.weight[...]
        bias = None if self.bias is None else self.bias[...]
        variables = [getattr(self, name) for name in Statistics._fields]
        if variables[0] is None:
            batch = moments(x, self.axis_name)
            return normalize(x, batch.mean, batch.var, self.epsilon, weight, bias)
        statistics = Statistics(*(variable[...] for variable in variables))
        if use_running_average:
            mean, var = statistics.running_mean, statistics.running_var
        else:
            mean, var, _ = batch = moments(x, self.axis_name)
            statistics = updated(statistics, batch, self.momentum)
            for variable, value in zip(variables, statistics, strict=True):
                variable[...] = value
        return normalize(x, mean, var, self.epsilon, weight, bias)

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Take the arguments that ``nnx.view`` hands to every layer of a model."""
        if use_running_average is not None:
            self.use_running_average = use_running_average

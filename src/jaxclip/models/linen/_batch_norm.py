"""Batch normalisation that keeps the statistics that torch keeps, in Flax Linen."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxclip.models._batch_norm import (
    Statistics,
    fresh_statistics,
    moments,
    normalize,
    updated,
)
from jaxclip.models._checks import check_channels, check_sizes


class BatchNorm(nn.Module):
    """Batch normalisation, as ``torch.nn.BatchNorm1d``, ``2d``, ``3d``, channels last.

    See ``jaxclip.models.BatchNorm`` for the formula, for what differs from Flax's own
    layer, and for the names and shapes of the parameters and statistics, which are
    torch's. The statistics are in the collection "batch_stats".

    Attributes:
        num_features: The number of channels.
        use_running_average: Whether to normalise with the running averages, and to
            leave them as they are. None if the call says it.
        momentum: The part that a new batch has in the running averages; None for the
            mean of all batches so far.
        epsilon: What is added to the variance.
        affine: Whether there are a weight and a bias.
        track_running_stats: Whether there are running averages.
        axis_name: A mapped axis over which the batch is spread.
        param_dtype: The dtype of the parameters and of the running averages.

    Example:
        >>> layer, x = BatchNorm(2), jnp.array([[1.0, 0.0], [3.0, 4.0]])
        >>> variables = layer.init(jax.random.key(0), x, use_running_average=True)
        >>> y, updates = layer.apply(
        ...     variables, x, use_running_average=False, mutable=["batch_stats"]
        ... )
        >>> updates["batch_stats"]["running_var"]
        Array([1.1, 1.7], dtype=float32)
    """

    num_features: int
    use_running_average: bool | None = None
    momentum: float | None = 0.1
    epsilon: float = 1e-5
    affine: bool = True
    track_running_stats: bool = True
    axis_name: str | None = None
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        """Make the parameters and the statistics."""
        features, dtype = self.num_features, self.param_dtype
        check_sizes(num_features=features)
        self.weight = self.bias = None
        if self.affine:
            init = nn.initializers
            self.weight = self.param("weight", init.ones, (features,), dtype)
            self.bias = self.param("bias", init.zeros, (features,), dtype)
        fresh = fresh_statistics(features, dtype) if self.track_running_stats else None
        self.statistics = {
            name: self.variable("batch_stats", name, lambda value: value, value)
            for name, value in (fresh._asdict() if fresh else {}).items()
        }

    def __call__(
        self, x: jax.Array, *, use_running_average: bool | None = None
    ) -> jax.Array:
        """Normalise ``x``, of shape ``(..., num_features)``.

        Args:
            x: The batch, channels last.
            use_running_average: As the attribute; one of the two says it.

        Returns:
            An array of the shape and dtype of ``x``.

        Raises:
            ValueError: If the last axis is not the channels, or the moments of a
                batch are needed that has one value for each channel.
        """
        check_channels(x, self.num_features)
        use_running_average = nn.merge_param(
            "use_running_average", self.use_running_average, use_running_average
        )
        known = {name: kept.value for name, kept in self.statistics.items()}
        if known and use_running_average:
            mean, var = known["running_mean"], known["running_var"]
        else:
            mean, var, _ = batch = moments(x, self.axis_name)
            if known and not self.is_initializing():
                after = updated(Statistics(**known), batch, self.momentum)
                for name, value in after._asdict().items():
                    self.statistics[name].value = value
        return normalize(x, mean, var, self.epsilon, self.weight, self.bias)

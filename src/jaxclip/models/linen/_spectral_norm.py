"""A layer whose weights have a largest singular value of 1, in Flax Linen."""

from typing import cast

import jax
from flax import linen as nn

from jaxclip.models._checks import check_sizes
from jaxclip.models._spectral_norm import (
    Vectors,
    as_matrix,
    first_vectors,
    iterated,
    normalized,
)


class SpectralNorm(nn.Module):
    """A layer of spectral norm 1, as torch's ``parametrizations.spectral_norm``.

    See ``jaxclip.models.SpectralNorm`` for the formula, and for what differs from
    Flax's own layer. The vectors are in the collection "batch_stats".

    Attributes:
        layer: An ``nn.Dense`` or ``nn.Conv``.
        n_power_iterations: How many steps a call in training takes.
        epsilon: The least length that a vector is divided by.
        use_running_average: Whether the vectors stay as they are. None if the call
            says it.

    Example:
        >>> import jax.numpy as jnp
        >>> module = SpectralNorm(nn.Dense(2), use_running_average=True)
        >>> y, variables = module.init_with_output(jax.random.key(0), jnp.eye(3))
        >>> jnp.linalg.norm(y, ord=2).round(3)
        Array(1., dtype=float32)
        >>> {name: vector.shape for name, vector in variables["batch_stats"].items()}
        {'u': (2,), 'v': (3,)}
    """

    layer: nn.Module
    n_power_iterations: int = 1
    epsilon: float = 1e-12
    use_running_average: bool | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, *, use_running_average: bool | None = None
    ) -> jax.Array:
        """Call the layer with the normalised weights.

        Args:
            x: What the layer takes.
            use_running_average: As the attribute; one of the two says it.
        """
        check_sizes(n_power_iterations=self.n_power_iterations)
        use_running_average = nn.merge_param(
            "use_running_average", self.use_running_average, use_running_average
        )
        if self.is_initializing():
            self.layer(x)
        variables = self.layer.variables
        kernel = variables["params"]["kernel"]

        drawn = None
        if self.is_initializing():
            drawn = first_vectors(self.make_rng("params"), kernel, self.epsilon)
        u, v = (
            self.variable("batch_stats", name, getattr, drawn, name) for name in "uv"
        )
        vectors = Vectors(u.value, v.value)
        if not use_running_average:
            matrix = as_matrix(kernel)
            vectors = iterated(matrix, vectors, self.n_power_iterations, self.epsilon)
            if not self.is_initializing():
                u.value, v.value = vectors
        params = {**variables["params"], "kernel": normalized(kernel, vectors)}
        layer = self.layer.clone(parent=None, name=None)
        return cast(jax.Array, layer.apply({"params": params}, x))

"""A layer whose weights have a largest singular value of 1, in Flax NNX."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxclip.models._checks import check_sizes
from jaxclip.models._weight_norm import Layer


class Vectors(NamedTuple):
    """The singular vectors of the largest singular value, as far as they are known."""

    u: jax.Array
    v: jax.Array


def as_matrix(kernel: jax.Array) -> jax.Array:
    """Return a kernel as torch sees it: a row for each output, of its inputs.

    Args:
        kernel: ``(*window, in, out)``.

    Returns:
        ``(out, in * window)``.
    """
    window = range(kernel.ndim - 2)
    return kernel.transpose(-1, -2, *window).reshape(kernel.shape[-1], -1)


def iterated(matrix: jax.Array, vectors: Vectors, steps: int, eps: float) -> Vectors:
    """Bring the vectors nearer by steps of the power method."""
    u, v = vectors
    matrix = jax.lax.stop_gradient(matrix)
    for _ in range(steps):
        u = _unit(matrix @ v, eps)
        v = _unit(matrix.T @ u, eps)
    return Vectors(u, v)


def first_vectors(key: jax.Array, kernel: jax.Array, eps: float) -> Vectors:
    """Draw vectors and iterate 15 times, as torch does."""
    matrix = as_matrix(kernel)
    keys = jax.random.split(key)
    drawn = (
        _unit(jax.random.normal(key, (size,), matrix.dtype), eps)
        for key, size in zip(keys, matrix.shape, strict=True)
    )
    return iterated(matrix, Vectors(*drawn), 15, eps)


def normalized(kernel: jax.Array, vectors: Vectors) -> jax.Array:
    """Divide a kernel by its largest singular value."""
    return kernel / (vectors.u @ (as_matrix(kernel) @ vectors.v))


def _unit(vector: jax.Array, eps: float) -> jax.Array:
    return vector / jnp.maximum(jnp.linalg.norm(vector), eps)


class SpectralNorm(nnx.Module):
    r"""A layer of spectral norm 1, as torch's ``parametrizations.spectral_norm``.

    .. math:: \hat W = \frac{W}{u^T W v}

    where ``u`` and ``v`` are kept, and brought nearer to the singular vectors by the
    power method on every call in training. In evaluation they stay as they are.

    Differs from ``nnx.SpectralNorm``: that keeps one of the vectors, iterates in
    evaluation too, and overwrites the kernel on every call.

    Args:
        layer: An ``nnx.Linear`` or ``nnx.Conv``.
        n_power_iterations: How many steps a call in training takes.
        epsilon: The least length that a vector is divided by.
        use_running_average: Whether the vectors stay as they are: torch's ``eval()``.
            ``model.eval()`` and ``model.train()`` set it.
        rngs: Where the vectors are drawn from at first.

    Attributes:
        layer: The layer, whose kernel is ``W``.
        u: ``(outputs,)``.
        v: ``(inputs * window,)``.

    Raises:
        ValueError: If ``n_power_iterations`` is less than 1.

    Example:
        >>> layer = SpectralNorm(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))
        >>> layer.eval()
        >>> kernel = layer(jnp.eye(3)) - layer.layer.bias[...]
        >>> jnp.linalg.norm(kernel, ord=2).round(3)
        Array(1., dtype=float32)
    """

    def __init__(
        self,
        layer: Layer,
        *,
        n_power_iterations: int = 1,
        epsilon: float = 1e-12,
        use_running_average: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        """Draw the vectors."""
        check_sizes(n_power_iterations=n_power_iterations)
        self.layer = layer
        self.n_power_iterations = n_power_iterations
        self.epsilon = epsilon
        self.use_running_average = use_running_average
        vectors = first_vectors(rngs.params(), layer.kernel[...], epsilon)
        self.u, self.v = map(nnx.BatchStat, vectors)

    def __call__(
        self, x: jax.Array, *, use_running_average: bool | None = None
    ) -> jax.Array:
        """Call the layer with the normalised weights.

        Args:
            x: What the layer takes.
            use_running_average: Instead of the layer's own.
        """
        if use_running_average is None:
            use_running_average = self.use_running_average
        kernel = self.layer.kernel[...]
        vectors = Vectors(self.u[...], self.v[...])
        if not use_running_average:
            matrix = as_matrix(kernel)
            vectors = iterated(matrix, vectors, self.n_power_iterations, self.epsilon)
            self.u[...], self.v[...] = vectors
        layer = nnx.clone(self.layer)
        layer.kernel[...] = normalized(kernel, vectors)
        return layer(x)

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Take the arguments that ``nnx.view`` hands to every layer of a model."""
        if use_running_average is not None:
            self.use_running_average = use_running_average

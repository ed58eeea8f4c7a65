"""An embedding whose row for padding does not learn, in Flax NNX."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxclip.models import _init


def padding_row(padding_idx: int | None, num_embeddings: int) -> int | None:
    """Return the row that stands for padding, counted from the first.

    Raises:
        ValueError: If there is no such row.
    """
    if padding_idx is None:
        return None
    if not -num_embeddings <= padding_idx < num_embeddings:
        raise ValueError(
            f"padding_idx is {padding_idx}; it must be one of the {num_embeddings} "
            "rows, from 0 on, or from -1 on counted from the end."
        )
    return padding_idx % num_embeddings


def embedding_init(row: int | None) -> _init.Initializer:
    """Return what torch draws an embedding from: zeros for padding."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        drawn = _init.normal()(key, shape, dtype)
        return drawn if row is None else drawn.at[row].set(0)

    return init


def without_gradient(
    rows: jax.Array, tokens: jax.Array, padding: int | None
) -> jax.Array:
    """Return the rows as they are; those of padding are taken for constants."""
    if padding is None:
        return rows
    is_padding = (jnp.asarray(tokens) == padding)[..., None]
    return jnp.where(is_padding, jax.lax.stop_gradient(rows), rows)


class Embed(nnx.Embed):
    """An embedding that may have a row for padding, as ``torch.nn.Embedding``.

    The row for padding is an ordinary one in the output, but its gradient is zero, so
    that no optimizer moves it, unless by weight decay. ``attend`` takes it for an
    ordinary row, as torch does where the weight is tied to a ``Linear``.

    Differs from ``nnx.Embed``: that has no ``padding_idx``, and draws from another
    distribution.

    Args:
        num_embeddings: The number of rows.
        features: The length of a row.
        padding_idx: The row that stands for padding; negative from the end.
        param_dtype: The dtype of the parameter, and of the output.
        rngs: Where the rows are drawn from: the standard normal distribution, but
            zeros for padding.

    Attributes:
        embedding: ``(num_embeddings, features)``.

    Raises:
        ValueError: If there is no row ``padding_idx``.

    Example:
        >>> layer = Embed(5, 3, padding_idx=0, rngs=nnx.Rngs(0))
        >>> tokens = jnp.array([0, 2, 2])
        >>> grads = nnx.grad(lambda layer: layer(tokens).sum())(layer)
        >>> grads.embedding[..., 0]
        Array([0., 0., 2., 0., 0.], dtype=float32)
    """

    def __init__(
        self,
        num_embeddings: int,
        features: int,
        *,
        padding_idx: int | None = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Draw the rows; see the class."""
        self.padding_idx = padding_row(padding_idx, num_embeddings)
        super().__init__(
            num_embeddings,
            features,
            param_dtype=param_dtype,
            embedding_init=embedding_init(self.padding_idx),
            rngs=rngs,
        )

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        """Return the row of each token.

        Args:
            inputs: Integers in ``[0, num_embeddings)``, of any shape.
            out_sharding: As ``nnx.Embed`` takes it.

        Returns:
            The rows, ``(*inputs.shape, features)``.
        """
        rows = super().__call__(inputs, out_sharding)
        return without_gradient(rows, inputs, self.padding_idx)

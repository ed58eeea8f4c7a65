"""An embedding whose row for padding does not learn, in Flax Linen."""

import jax
from flax import linen as nn

from jaxclip.models._embed import embedding_init, padding_row, without_gradient


class Embed(nn.Embed):
    """An embedding that may have a row for padding, as ``torch.nn.Embedding``.

    See ``jaxclip.models.Embed`` for what differs from Flax's own layer.

    Attributes:
        num_embeddings: The number of rows.
        features: The length of a row.
        padding_idx: The row that stands for padding; negative from the end.
        param_dtype: The dtype of the parameter, and of the output.

    Example:
        >>> import jax.numpy as jnp
        >>> layer, tokens = Embed(5, 3, padding_idx=0), jnp.array([0, 2, 2])
        >>> variables = layer.init(jax.random.key(0), tokens)
        >>> grads = jax.grad(lambda v: layer.apply(v, tokens).sum())(variables)
        >>> grads["params"]["embedding"][:, 0]
        Array([0., 0., 2., 0., 0.], dtype=float32)
    """

    padding_idx: int | None = None

    def setup(self) -> None:
        """Make the rows."""
        self.padding = padding_row(self.padding_idx, self.num_embeddings)
        shape = (self.num_embeddings, self.features)
        init = embedding_init(self.padding)
        self.embedding = self.param("embedding", init, shape, self.param_dtype)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Return the row of each token.

        Args:
            inputs: Integers in ``[0, num_embeddings)``, of any shape.

        Returns:
            The rows, ``(*inputs.shape, features)``.
        """
        return without_gradient(super().__call__(inputs), inputs, self.padding)

"""Stacks of the layers of transformers, in Flax NNX."""

from collections.abc import Callable

import jax
from flax import nnx

from jaxclip.models._checks import check_sizes


class _Stack(nnx.Module):
    """What the stacks of encoders and of decoders share."""

    def __init__(
        self,
        make_layer: Callable[[], nnx.Module],
        num_layers: int,
        norm: nnx.LayerNorm | None = None,
    ) -> None:
        """Make the layers."""
        check_sizes(num_layers=num_layers)
        self.layers = nnx.List([make_layer() for _ in range(num_layers)])
        self.norm = norm


class TransformerEncoder(_Stack):
    """A stack of encoder layers, as ``torch.nn.TransformerEncoder``.

    Differs from ``torch.nn.TransformerEncoder``: it takes a function that makes a
    layer, not a layer to copy, so that every layer starts from numbers of its own.

    Args:
        make_layer: Called once for each layer.
        num_layers: How many layers are stacked.
        norm: What is applied last, with torch's ``epsilon=1e-5``; None for nothing.

    Attributes:
        layers: The layers, first to last.
        norm: As given.

    Raises:
        ValueError: If ``num_layers`` is less than 1.

    Example:
        >>> from functools import partial
        >>> import jax.numpy as jnp
        >>> from jaxclip.models import TransformerEncoderLayer
        >>> rngs = nnx.Rngs(0)
        >>> make_layer = partial(TransformerEncoderLayer, 8, 2, 32, rngs=rngs)
        >>> norm = nnx.LayerNorm(8, epsilon=1e-5, rngs=rngs)
        >>> stack = TransformerEncoder(make_layer, 3, norm)
        >>> stack(jnp.ones((5, 3, 8))).shape
        (5, 3, 8)
    """

    def __call__(
        self,
        src: jax.Array,
        *,
        mask: jax.Array | None = None,
        src_key_padding_mask: jax.Array | None = None,
    ) -> jax.Array:
        """Apply the layers one after another.

        Args:
            src: ``(B, T, E)``, or ``(T, B, E)`` if the layers are not ``batch_first``.
            mask: The ``src_mask`` of every layer.
            src_key_padding_mask: That of every layer.

        Returns:
            An array of the shape of ``src``.
        """
        for layer in self.layers:
            src = layer(src, src_mask=mask, src_key_padding_mask=src_key_padding_mask)
        return src if self.norm is None else self.norm(src)


class TransformerDecoder(_Stack):
    """A stack of decoder layers, as ``torch.nn.TransformerDecoder``.

    Differs from ``torch.nn.TransformerDecoder``: it takes a function that makes a
    layer, not a layer to copy, so that every layer starts from numbers of its own.

    Args:
        make_layer: Called once for each layer.
        num_layers: How many layers are stacked.
        norm: What is applied last, with torch's ``epsilon=1e-5``; None for nothing.

    Attributes:
        layers: The layers, first to last.
        norm: As given.

    Raises:
        ValueError: If ``num_layers`` is less than 1.

    Example:
        >>> from functools import partial
        >>> import jax.numpy as jnp
        >>> from jaxclip.models import TransformerDecoderLayer
        >>> rngs = nnx.Rngs(0)
        >>> make_layer = partial(TransformerDecoderLayer, 8, 2, 32, rngs=rngs)
        >>> norm = nnx.LayerNorm(8, epsilon=1e-5, rngs=rngs)
        >>> stack = TransformerDecoder(make_layer, 3, norm)
        >>> stack(jnp.ones((5, 3, 8)), jnp.ones((5, 4, 8))).shape
        (5, 3, 8)
    """

    def __call__(
        self,
        tgt: jax.Array,
        memory: jax.Array,
        *,
        tgt_mask: jax.Array | None = None,
        memory_mask: jax.Array | None = None,
        tgt_key_padding_mask: jax.Array | None = None,
        memory_key_padding_mask: jax.Array | None = None,
    ) -> jax.Array:
        """Apply the layers one after another.

        Args:
            tgt: ``(B, T, E)``, or ``(T, B, E)`` if the layers are not ``batch_first``.
            memory: What an encoder returned.
            tgt_mask: That of every layer.
            memory_mask: That of every layer.
            tgt_key_padding_mask: That of every layer.
            memory_key_padding_mask: That of every layer.

        Returns:
            An array of the shape of ``tgt``.
        """
        for layer in self.layers:
            tgt = layer(
                tgt,
                memory,
                tgt_mask=tgt_mask,
                memory_mask=memory_mask,
                tgt_key_padding_mask=tgt_key_padding_mask,
                memory_key_padding_mask=memory_key_padding_mask,
            )
        return tgt if self.norm is None else self.norm(tgt)

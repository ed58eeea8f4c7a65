"""The layers of transformers, holding exactly what torch's hold, in Flax Linen."""

from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxclip.models import _init
from jaxclip.models._blocks import ACTIVATIONS, residual
from jaxclip.models._checks import check_choice, check_sizes
from jaxclip.models.linen._multihead_attention import MultiheadAttention


class _Layer(nn.Module):
    """What the layers of encoders and of decoders share: all but the order."""

    d_model: int
    nhead: int
    dim_feedforward: int = 2048
    dropout: float = 0.1
    activation: str = "relu"
    layer_norm_eps: float = 1e-5
    batch_first: bool = True
    norm_first: bool = False
    bias: bool = True
    param_dtype: Any = jnp.float32

    attentions: ClassVar[tuple[str, ...]]

    def setup(self) -> None:
        """Make the submodules; see the class for their names."""
        check_choice(ACTIVATIONS, activation=self.activation)
        check_sizes(
            d_model=self.d_model,
            nhead=self.nhead,
            dim_feedforward=self.dim_feedforward,
        )
        for name in self.attentions:
            attention = MultiheadAttention(
                self.d_model,
                self.nhead,
                dropout=self.dropout,
                bias=self.bias,
                batch_first=self.batch_first,
                param_dtype=self.param_dtype,
            )
            setattr(self, name, attention)

        def linear(inputs: int, outputs: int) -> nn.Dense:
            return nn.Dense(
                outputs,
                use_bias=self.bias,
                param_dtype=self.param_dtype,
                **_init.linear(inputs),
            )

        self.linear1 = linear(self.d_model, self.dim_feedforward)
        self.linear2 = linear(self.dim_feedforward, self.d_model)
        # One for each attention, and one for the linear layers.
        for number in range(1, len(self.attentions) + 2):
            norm = nn.LayerNorm(
                epsilon=self.layer_norm_eps,
                use_bias=self.bias,
                use_fast_variance=False,
                param_dtype=self.param_dtype,
            )
            setattr(self, f"norm{number}", norm)
        self.drop = nn.Dropout(self.dropout)

    def _attend(
        self,
        attention: MultiheadAttention,
        attn_mask: jax.Array | None,
        key_padding_mask: jax.Array | None,
        deterministic: bool | None,
        x: jax.Array,
        memory: jax.Array | None = None,
    ) -> jax.Array:
        keys = x if memory is None else memory
        gathered, _ = attention(
            x,
            keys,
            keys,
            attn_mask=attn_mask,
            key_padding_mask=key_padding_mask,
            need_weights=False,
            deterministic=deterministic,
        )
        return self._dropped(deterministic, gathered)

    def _feed_forward(self, deterministic: bool | None, x: jax.Array) -> jax.Array:
        hidden = ACTIVATIONS[self.activation](self.linear1(x))  # (B, T, F)
        hidden = self._dropped(deterministic, hidden)
        return self._dropped(deterministic, self.linear2(hidden))

    def _dropped(self, deterministic: bool | None, x: jax.Array) -> jax.Array:
        # What drops nothing need not be told whether it is to.
        off = deterministic if self.dropout else True
        dropped: jax.Array = self.drop(x, deterministic=off)
        return dropped


class TransformerEncoderLayer(_Layer):
    """Self-attention and two linear layers, as ``torch.nn.TransformerEncoderLayer``.

    See ``jaxclip.models.TransformerEncoderLayer`` for the formula, for what differs
    from torch's, and for the names of the submodules, which are torch's.

    Attributes:
        d_model: ``E``, the length of a vector of a sequence.
        nhead: The number of heads, which divides ``E``.
        dim_feedforward: ``F``, the number of hidden units between two linear layers.
        dropout: The share of numbers that is set to zero, in a call that is not
            ``deterministic``, in the attention weights, behind the activation and
            behind every block.
        activation: "relu" or "gelu", the exact one.
        layer_norm_eps: What is added to the variance.
        batch_first: Whether sequences are ``(B, T, E)``, not ``(T, B, E)``.
        norm_first: Whether the input of a block is normalised, and not its sum with
            the output.
        bias: Whether attention, linear layers and norms have biases.
        param_dtype: The dtype of the parameters, and of the computation.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> layer = TransformerEncoderLayer(8, 2, 32, dropout=0.0)
        >>> x = jnp.ones((5, 3, 8))
        >>> y, variables = layer.init_with_output(jax.random.key(0), x)
        >>> y.shape, sorted(variables["params"])
        ((5, 3, 8), ['linear1', 'linear2', 'norm1', 'norm2', 'self_attn'])
    """

    attentions = ("self_attn",)

    def __call__(
        self,
        src: jax.Array,
        *,
        src_mask: jax.Array | None = None,
        src_key_padding_mask: jax.Array | None = None,
        deterministic: bool | None = None,
    ) -> jax.Array:
        """Let every position look at the others.

        Args:
            src: ``(B, T, E)``, or ``(T, B, E)`` if not ``batch_first``.
            src_mask: What no position may look at, as ``MultiheadAttention`` takes it:
                True blocks.
            src_key_padding_mask: Where sequences are padding, ``(B, T)``.
            deterministic: Whether dropout is off; must be given if there is dropout.

        Returns:
            An array of the shape of ``src``.

        Raises:
            TypeError: If a mask holds integers.
            ValueError: If an array has a shape or dtype that does not fit.
        """
        attend = partial(
            self._attend, self.self_attn, src_mask, src_key_padding_mask, deterministic
        )
        feed_forward = partial(self._feed_forward, deterministic)
        x = residual(src, attend, self.norm1, norm_first=self.norm_first)
        return residual(x, feed_forward, self.norm2, norm_first=self.norm_first)


class TransformerDecoderLayer(_Layer):
    """Attention to itself, to a memory, and linear layers, as torch's decoder layer.

    See ``jaxclip.models.TransformerDecoderLayer`` for the formula, for what differs
    from torch's, and for the names of the submodules, which are torch's.

    Attributes:
        d_model: ``E``, the length of a vector of a sequence.
        nhead: The number of heads, which divides ``E``.
        dim_feedforward: ``F``, the number of hidden units between two linear layers.
        dropout: The share of numbers that is set to zero, in a call that is not
            ``deterministic``, in the attention weights, behind the activation and
            behind every block.
        activation: "relu" or "gelu", the exact one.
        layer_norm_eps: What is added to the variance.
        batch_first: Whether sequences are ``(B, T, E)``, not ``(T, B, E)``.
        norm_first: Whether the input of a block is normalised, and not its sum with
            the output.
        bias: Whether attention, linear layers and norms have biases.
        param_dtype: The dtype of the parameters, and of the computation.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> layer = TransformerDecoderLayer(8, 2, 32, dropout=0.0)
        >>> x = jnp.ones((5, 3, 8))
        >>> y, variables = layer.init_with_output(jax.random.key(0), x, x)
        >>> y.shape, sorted(variables["params"])[1:3]
        ((5, 3, 8), ['linear2', 'multihead_attn'])
    """

    attentions = ("self_attn", "multihead_attn")

    def __call__(
        self,
        tgt: jax.Array,
        memory: jax.Array,
        *,
        tgt_mask: jax.Array | None = None,
        memory_mask: jax.Array | None = None,
        tgt_key_padding_mask: jax.Array | None = None,
        memory_key_padding_mask: jax.Array | None = None,
        deterministic: bool | None = None,
    ) -> jax.Array:
        """Let every position look at the others, and at the memory.

        Args:
            tgt: ``(B, T, E)``, or ``(T, B, E)`` if not ``batch_first``.
            memory: What an encoder returned, ``(B, S, E)`` or ``(S, B, E)``.
            tgt_mask: What no position of ``tgt`` may look at in it, as
                ``MultiheadAttention`` takes it: True blocks.
            memory_mask: What no position of ``tgt`` may look at in ``memory``.
            tgt_key_padding_mask: Where ``tgt`` is padding, ``(B, T)``.
            memory_key_padding_mask: Where ``memory`` is padding, ``(B, S)``.
            deterministic: Whether dropout is off; must be given if there is dropout.

        Returns:
            An array of the shape of ``tgt``.

        Raises:
            TypeError: If a mask holds integers.
            ValueError: If an array has a shape or dtype that does not fit.
        """
        attend = partial(
            self._attend, self.self_attn, tgt_mask, tgt_key_padding_mask, deterministic
        )
        look = partial(
            self._attend,
            self.multihead_attn,
            memory_mask,
            memory_key_padding_mask,
            deterministic,
            memory=memory,
        )
        feed_forward = partial(self._feed_forward, deterministic)
        x = residual(tgt, attend, self.norm1, norm_first=self.norm_first)
        x = residual(x, look, self.norm2, norm_first=self.norm_first)
        return residual(x, feed_forward, self.norm3, norm_first=self.norm_first)

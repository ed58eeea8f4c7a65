"""The layers of transformers, holding exactly what torch's hold, in Flax NNX."""

from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxclip.models import _init
from jaxclip.models._blocks import ACTIVATIONS, residual
from jaxclip.models._checks import check_choice, check_sizes
from jaxclip.models._dropout import make_dropout
from jaxclip.models._multihead_attention import MultiheadAttention


class _Layer(nnx.Module):
    """What the layers of encoders and of decoders share: all but the order."""

    attentions: ClassVar[tuple[str, ...]]

    self_attn: MultiheadAttention
    multihead_attn: MultiheadAttention
    norm1: nnx.LayerNorm
    norm2: nnx.LayerNorm
    norm3: nnx.LayerNorm

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        *,
        dropout: float = 0.1,
        activation: str = "relu",
        layer_norm_eps: float = 1e-5,
        batch_first: bool = True,
        norm_first: bool = False,
        bias: bool = True,
        rngs: nnx.Rngs,
        param_dtype: Any = jnp.float32,
    ) -> None:
        """Draw the parameters; see the class for their names."""
        check_choice(ACTIVATIONS, activation=activation)
        check_sizes(d_model=d_model, nhead=nhead, dim_feedforward=dim_feedforward)
        self.activation = activation
        self.norm_first = norm_first
        for name in self.attentions:
            attention = MultiheadAttention(
                d_model,
                nhead,
                dropout=dropout,
                bias=bias,
                batch_first=batch_first,
                rngs=rngs,
                param_dtype=param_dtype,
            )
            setattr(self, name, attention)

        def linear(inputs: int, outputs: int) -> nnx.Linear:
            return nnx.Linear(
                inputs,
                outputs,
                use_bias=bias,
                param_dtype=param_dtype,
                rngs=rngs,
                **_init.linear(inputs),
            )

        self.linear1 = linear(d_model, dim_feedforward)
        self.linear2 = linear(dim_feedforward, d_model)
        # One for each attention, and one for the linear layers.
        for number in range(1, len(self.attentions) + 2):
            norm = nnx.LayerNorm(
                d_model,
                epsilon=layer_norm_eps,
                use_bias=bias,
                use_fast_variance=False,
                param_dtype=param_dtype,
                rngs=rngs,
            )
            setattr(self, f"norm{number}", norm)
        self.dropout = make_dropout(dropout, rngs)

    def _attend(
        self,
        attention: MultiheadAttention,
        attn_mask: jax.Array | None,
        key_padding_mask: jax.Array | None,
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
        )
        return self.dropout(gathered)

    def _feed_forward(self, x: jax.Array) -> jax.Array:
        hidden = ACTIVATIONS[self.activation](self.linear1(x))  # (B, T, F)
        return self.dropout(self.linear2(self.dropout(hidden)))


class TransformerEncoderLayer(_Layer):
    r"""Self-attention and two linear layers, as ``torch.nn.TransformerEncoderLayer``.

    .. math::
        x' &= \operatorname{norm}_1(x + \operatorname{attention}(x)) \\
        y &= \operatorname{norm}_2(x' + W_2 \, \phi(W_1 x' + b_1) + b_2)

    with the activation :math:`\phi`; with ``norm_first`` it is
    ``x + attention(norm(x))`` and so on.

    Differs from ``torch.nn.TransformerEncoderLayer``: ``batch_first`` is the default;
    an ``is_causal`` hint beside the mask is not taken; what is padding is computed in
    evaluation too, where torch's fast path may leave zeros.

    Args:
        d_model: ``E``, the length of a vector of a sequence.
        nhead: The number of heads, which divides ``E``.
        dim_feedforward: ``F``, the number of hidden units between two linear layers.
        dropout: The share of numbers that is set to zero, in training mode, in the
            attention weights, behind the activation and behind every block.
        activation: "relu" or "gelu", the exact one.
        layer_norm_eps: What is added to the variance.
        batch_first: Whether sequences are ``(B, T, E)``, not ``(T, B, E)``.
        norm_first: Whether the input of a block is normalised, and not its sum with
            the output.
        bias: Whether attention, linear layers and norms have biases.
        rngs: Where the parameters are drawn from, as torch draws them.
        param_dtype: The dtype of the parameters, and of the computation.

    Attributes:
        self_attn: The ``MultiheadAttention``.
        linear1: The ``nnx.Linear(E, F)``.
        linear2: The ``nnx.Linear(F, E)``.
        norm1: The ``nnx.LayerNorm`` of the attention.
        norm2: The ``nnx.LayerNorm`` of the linear layers.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> layer = TransformerEncoderLayer(8, 2, 32, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((5, 3, 8))).shape
        (5, 3, 8)
    """

    attentions = ("self_attn",)

    def __call__(
        self,
        src: jax.Array,
        *,
        src_mask: jax.Array | None = None,
        src_key_padding_mask: jax.Array | None = None,
    ) -> jax.Array:
        """Let every position look at the others.

        Args:
            src: ``(B, T, E)``, or ``(T, B, E)`` if not ``batch_first``.
            src_mask: What no position may look at, as ``MultiheadAttention`` takes it:
                True blocks.
            src_key_padding_mask: Where sequences are padding, ``(B, T)``.

        Returns:
            An array of the shape of ``src``.

        Raises:
            TypeError: If a mask holds integers.
            ValueError: If an array has a shape or dtype that does not fit.
        """
        attend = partial(self._attend, self.self_attn, src_mask, src_key_padding_mask)
        x = residual(src, attend, self.norm1, norm_first=self.norm_first)
        return residual(x, self._feed_forward, self.norm2, norm_first=self.norm_first)


class TransformerDecoderLayer(_Layer):
    r"""Attention to itself, to a memory, and linear layers, as torch's decoder layer.

    .. math::
        x' &= \operatorname{norm}_1(x + \operatorname{attention}(x)) \\
        x'' &= \operatorname{norm}_2(x' + \operatorname{attention}(x', m)) \\
        y &= \operatorname{norm}_3(x'' + W_2 \, \phi(W_1 x'' + b_1) + b_2)

    with the memory :math:`m` and the activation :math:`\phi`; with ``norm_first`` it is
    ``x + attention(norm(x))`` and so on.

    Differs from ``torch.nn.TransformerDecoderLayer``: ``batch_first`` is the default;
    ``is_causal`` hints beside the masks are not taken.

    Args:
        d_model: ``E``, the length of a vector of a sequence.
        nhead: The number of heads, which divides ``E``.
        dim_feedforward: ``F``, the number of hidden units between two linear layers.
        dropout: The share of numbers that is set to zero, in training mode, in the
            attention weights, behind the activation and behind every block.
        activation: "relu" or "gelu", the exact one.
        layer_norm_eps: What is added to the variance.
        batch_first: Whether sequences are ``(B, T, E)``, not ``(T, B, E)``.
        norm_first: Whether the input of a block is normalised, and not its sum with
            the output.
        bias: Whether attention, linear layers and norms have biases.
        rngs: Where the parameters are drawn from, as torch draws them.
        param_dtype: The dtype of the parameters, and of the computation.

    Attributes:
        self_attn: The ``MultiheadAttention`` to the sequence itself.
        multihead_attn: The ``MultiheadAttention`` to the memory.
        linear1: The ``nnx.Linear(E, F)``.
        linear2: The ``nnx.Linear(F, E)``.
        norm1: The ``nnx.LayerNorm`` of ``self_attn``.
        norm2: The ``nnx.LayerNorm`` of ``multihead_attn``.
        norm3: The ``nnx.LayerNorm`` of the linear layers.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> layer = TransformerDecoderLayer(8, 2, 32, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((5, 3, 8)), jnp.ones((5, 4, 8))).shape
        (5, 3, 8)
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

        Returns:
            An array of the shape of ``tgt``.

        Raises:
            TypeError: If a mask holds integers.
            ValueError: If an array has a shape or dtype that does not fit.
        """
        attend = partial(self._attend, self.self_attn, tgt_mask, tgt_key_padding_mask)
        look = partial(
            self._attend,
            self.multihead_attn,
            memory_mask,
            memory_key_padding_mask,
            memory=memory,
        )
        x = residual(tgt, attend, self.norm1, norm_first=self.norm_first)
        x = residual(x, look, self.norm2, norm_first=self.norm_first)
        return residual(x, self._feed_forward, self.norm3, norm_first=self.norm_first)

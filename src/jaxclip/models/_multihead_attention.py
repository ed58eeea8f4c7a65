"""Multi-head attention that holds exactly what torch's holds, in Flax NNX."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxclip.models import _init
from jaxclip.models._attention import Attention
from jaxclip.models._dropout import make_dropout


class MultiheadAttention(nnx.Module):
    r"""Attention in several heads, as ``torch.nn.MultiheadAttention``.

    .. math::
        \operatorname{head}_n = \operatorname{softmax}\left(
            \frac{(Q W_n^Q) (K W_n^K)^\top}{\sqrt{E/N}} + M \right) V W_n^V

    The heads side by side, ``(..., E)``, go through ``out_proj``.

    A mask is torch's: True *blocks*, and a floating one is added to the scores. Of a
    query that may look nowhere torch's output is NaN, or the bias of ``out_proj`` with
    ``need_weights=False``, and so it is here.

    Differs from ``torch.nn.MultiheadAttention``: ``batch_first`` is the default; an
    ``is_causal`` hint beside the mask is not taken.

    Differs from ``nnx.MultiHeadAttention``: there True in a mask *keeps*.

    Args:
        embed_dim: ``E``, the length of a query and of an output.
        num_heads: ``N``, which divides ``E``.
        dropout: The share of attention weights that is set to zero, while the module
            is in training mode.
        bias: Whether the projections have biases.
        add_bias_kv: Whether a learned key and value are put behind the others.
        add_zero_attn: Whether a key and a value of zeros are put behind the others.
        kdim: The length of a key; None for ``E``.
        vdim: The length of a value; None for ``E``.
        batch_first: Whether inputs and outputs are ``(B, T, ...)``, not
            ``(T, B, ...)``.
        rngs: Where the parameters are drawn from, as torch draws them.
        param_dtype: The dtype of the parameters, and of the computation.

    Attributes:
        in_proj_weight: ``(3*E, E)``: rows for queries, for keys, for values. With
            another ``kdim`` or ``vdim`` there are ``q_proj_weight``, ``(E, E)``,
            ``k_proj_weight``, ``(E, kdim)``, and ``v_proj_weight``, ``(E, vdim)``.
        in_proj_bias: ``(3*E,)``.
        bias_k: ``(1, 1, E)``, the key that is put behind, and ``bias_v`` its value.
        out_proj: The ``nnx.Linear(E, E)``.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> attention = MultiheadAttention(8, 2, rngs=nnx.Rngs(0))
        >>> x = jnp.ones((5, 3, 8))
        >>> future = jnp.triu(jnp.ones((3, 3), bool), 1)  # True blocks
        >>> output, weights = attention(x, x, x, attn_mask=future)
        >>> output.shape, weights.shape, float(weights[0, 0, 1])
        ((5, 3, 8), (5, 3, 3), 0.0)
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = True,
        rngs: nnx.Rngs,
        param_dtype: Any = jnp.float32,
    ) -> None:
        """Draw the parameters; see the class for their shapes."""
        self.attention = Attention(
            embed_dim,
            num_heads,
            bias=bias,
            add_bias_kv=add_bias_kv,
            add_zero_attn=add_zero_attn,
            kdim=kdim,
            vdim=vdim,
            batch_first=batch_first,
        )
        for name, (init, shape) in self.attention.weights().items():
            setattr(self, name, nnx.Param(init(rngs.params(), shape, param_dtype)))
        self.out_proj = nnx.Linear(
            embed_dim,
            embed_dim,
            use_bias=bias,
            kernel_init=_init.uniform(embed_dim),
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.dropout = make_dropout(dropout, rngs)

    def __call__(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        *,
        key_padding_mask: jax.Array | None = None,
        need_weights: bool = True,
        attn_mask: jax.Array | None = None,
        average_attn_weights: bool = True,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Let every query gather values by how well it fits their keys.

        Args:
            query: ``(B, T, E)``, or ``(T, B, E)`` if not ``batch_first``.
            key: ``(B, S, kdim)`` or ``(S, B, kdim)``.
            value: ``(B, S, vdim)`` or ``(S, B, vdim)``.
            key_padding_mask: Which keys no query may look at, ``(B, S)``: bool, where
                True blocks, or floating, which is added to the scores.
            need_weights: Whether the attention weights are returned.
            attn_mask: Which keys a query may not look at, ``(T, S)``, or for every
                sequence and head ``(B*N, T, S)``: bool or floating, as above.
            average_attn_weights: Whether the weights are averaged over the heads.

        Returns:
            The output, in the shape of ``query``, and the weights, ``(B, T, S)``, or
            ``(B, N, T, S)`` if they are not averaged, or None.

        Raises:
            TypeError: If a mask holds integers.
            ValueError: If an array has a shape or dtype that does not fit.
        """
        names = self.attention.weights()
        gathered, weights = self.attention.run(
            {name: getattr(self, name)[...] for name in names},
            query,
            key,
            value,
            attn_mask=attn_mask,
            key_padding_mask=key_padding_mask,
            need_weights=need_weights,
            dropout=self.dropout,
        )
        output = self.out_proj(gathered)
        if not need_weights:
            return output, None
        return output, weights.mean(axis=1) if average_attn_weights else weights

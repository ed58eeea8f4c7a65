"""Multi-head attention that holds exactly what torch's holds, in Flax Linen."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxclip.models import _init
from jaxclip.models._attention import Attention
from jaxclip.models._checks import check_rate


class MultiheadAttention(nn.Module):
    """Attention in several heads, as ``torch.nn.MultiheadAttention``.

    See ``jaxclip.models.MultiheadAttention`` for the formula, for the masks, and for
    the names and shapes of the parameters, which are torch's.

    Differs from ``nn.MultiHeadDotProductAttention``: there True in a mask *keeps*.

    Attributes:
        embed_dim: ``E``, the length of a query and of an output.
        num_heads: ``N``, which divides ``E``.
        dropout: The share of attention weights that is set to zero in a call that is
            not ``deterministic``.
        bias: Whether the projections have biases.
        add_bias_kv: Whether a learned key and value are put behind the others.
        add_zero_attn: Whether a key and a value of zeros are put behind the others.
        kdim: The length of a key; None for ``E``.
        vdim: The length of a value; None for ``E``.
        batch_first: Whether inputs and outputs are ``(B, T, ...)``, not
            ``(T, B, ...)``.
        param_dtype: The dtype of the parameters, and of the computation.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> attention, x = MultiheadAttention(8, 2), jnp.ones((5, 3, 8))
        >>> (output, weights), variables = attention.init_with_output(
        ...     jax.random.key(0), x, x, x
        ... )
        >>> output.shape, weights.shape, variables["params"]["in_proj_weight"].shape
        ((5, 3, 8), (5, 3, 3), (24, 8))
    """

    embed_dim: int
    num_heads: int
    dropout: float = 0.0
    bias: bool = True
    add_bias_kv: bool = False
    add_zero_attn: bool = False
    kdim: int | None = None
    vdim: int | None = None
    batch_first: bool = True
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        """Make the parameters; see the class for their shapes."""
        check_rate(dropout=self.dropout)
        self.attention = Attention(
            self.embed_dim,
            self.num_heads,
            bias=self.bias,
            add_bias_kv=self.add_bias_kv,
            add_zero_attn=self.add_zero_attn,
            kdim=self.kdim,
            vdim=self.vdim,
            batch_first=self.batch_first,
        )
        self.weights = {
            name: self.param(name, init, shape, self.param_dtype)
            for name, (init, shape) in self.attention.weights().items()
        }
        self.out_proj = nn.Dense(
            self.embed_dim,
            use_bias=self.bias,
            kernel_init=_init.uniform(self.embed_dim),
            param_dtype=self.param_dtype,
        )
        self.drop = nn.Dropout(self.dropout)

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
        deterministic: bool | None = None,
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
            deterministic: Whether dropout is off; must be given if there is dropout.

        Returns:
            The output, in the shape of ``query``, and the weights, ``(B, T, S)``, or
            ``(B, N, T, S)`` if they are not averaged, or None.

        Raises:
            TypeError: If a mask holds integers.
            ValueError: If an array has a shape or dtype that does not fit.
        """
        # What drops nothing need not be told whether it is to.
        off = deterministic if self.dropout else True
        gathered, weights = self.attention.run(
            self.weights,
            query,
            key,
            value,
            attn_mask=attn_mask,
            key_padding_mask=key_padding_mask,
            need_weights=need_weights,
            dropout=partial(self.drop, deterministic=off),
        )
        output = self.out_proj(gathered)
        if not need_weights:
            return output, None
        return output, weights.mean(axis=1) if average_attn_weights else weights

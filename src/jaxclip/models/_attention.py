r"""Multi-head attention as torch computes it, as pure functions.

Letters: ``B`` sequences, ``T`` queries and ``S`` keys in each, ``E`` features, ``N``
heads of ``E/N`` features each.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxclip.models import _init
from jaxclip.models._cells import affine
from jaxclip.models._checks import (
    check_divides,
    check_dtype,
    check_sequences,
    check_sizes,
)
from jaxclip.models._init import Initializer


@dataclass(frozen=True)
class Attention:
    """What a multi-head attention computes between its inputs and ``out_proj``.

    Attributes:
        embed_dim: ``E``.
        num_heads: ``N``.
        bias: Whether queries, keys and values are projected with a bias.
        add_bias_kv: Whether one learned key and value are put behind the others.
        add_zero_attn: Whether a key and a value of zeros are put behind the others.
        kdim: The length of a key; None for ``E``.
        vdim: The length of a value; None for ``E``.
        batch_first: Whether sequences are ``(B, T, ...)``, not ``(T, B, ...)``.

    Raises:
        ValueError: If a size is less than 1, or ``num_heads`` does not divide
            ``embed_dim``.
    """

    embed_dim: int
    num_heads: int
    bias: bool = True
    add_bias_kv: bool = False
    add_zero_attn: bool = False
    kdim: int | None = None
    vdim: int | None = None
    batch_first: bool = True

    def __post_init__(self) -> None:
        """Check the sizes."""
        check_sizes(embed_dim=self.embed_dim, num_heads=self.num_heads)
        check_sizes(kdim=self.key_size, vdim=self.value_size)
        check_divides(num_heads=self.num_heads, embed_dim=self.embed_dim)

    @property
    def key_size(self) -> int:
        """The length of a key before projection."""
        return self.embed_dim if self.kdim is None else self.kdim

    @property
    def value_size(self) -> int:
        """The length of a value before projection."""
        return self.embed_dim if self.vdim is None else self.vdim

    def weights(self) -> dict[str, tuple[Initializer, tuple[int, ...]]]:
        """Return how each weight is drawn and its shape, by torch's name for it."""
        size, xavier = self.embed_dim, _init.xavier_uniform()
        weights: dict[str, tuple[Initializer, tuple[int, ...]]]
        if self.key_size == self.value_size == size:
            weights = {"in_proj_weight": (xavier, (3 * size, size))}
        else:
            weights = {
                "q_proj_weight": (xavier, (size, size)),
                "k_proj_weight": (xavier, (size, self.key_size)),
                "v_proj_weight": (xavier, (size, self.value_size)),
            }
        if self.bias:
            weights["in_proj_bias"] = (_init.zeros, (3 * size,))
        if self.add_bias_kv:
            normal = _init.normal(size**-0.5)
            weights["bias_k"] = (normal, (1, 1, size))
            weights["bias_v"] = (normal, (1, 1, size))
        return weights

    def run(
        self,
        weights: Mapping[str, jax.Array],
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        *,
        attn_mask: jax.Array | None = None,
        key_padding_mask: jax.Array | None = None,
        need_weights: bool = True,
        dropout: Callable[[jax.Array], jax.Array],
    ) -> tuple[jax.Array, jax.Array]:
        """Let every query gather values by how well it fits their keys.

        Args:
            weights: The arrays that ``weights`` lists.
            query: ``(B, T, E)``, or ``(T, B, E)`` if not ``batch_first``.
            key: ``(B, S, kdim)`` or ``(S, B, kdim)``.
            value: ``(B, S, vdim)`` or ``(S, B, vdim)``.
            attn_mask: As ``MultiheadAttention`` takes it.
            key_padding_mask: As ``MultiheadAttention`` takes it.
            need_weights: Whether a query that may look nowhere gives NaN, as torch
                has it if it is asked for the weights, and zeros if not.
            dropout: What is applied to the attention weights.

        Returns:
            What the queries gathered, in the shape of ``query``, and with which
            weights, ``(B, N, T, S)``, where ``S`` counts the keys put behind too.

        Raises:
            TypeError: If a mask holds integers.
            ValueError: If an array has a shape or dtype that does not fit.
        """
        some_weight = next(iter(weights.values()))
        query, key, value = (
            self._checked(name, array, size, some_weight.dtype)
            for name, array, size in (
                ("query", query, self.embed_dim),
                ("key", key, self.key_size),
                ("value", value, self.value_size),
            )
        )  # (B, T, E), (B, S, kdim), (B, S, vdim)
        batch, queries, keys = query.shape[0], query.shape[1], key.shape[1]
        _check_lengths(query, key, value)
        masks = [
            *_masks("attn_mask", attn_mask, query.dtype, self._mask_shapes(query, key)),
            *_masks(
                "key_padding_mask",
                key_padding_mask,
                query.dtype,
                {(batch, keys): (batch, 1, 1, keys)},
            ),
        ]

        q, k, v = self._project(weights, query, key, value)  # (B, T, E), 2 x (B, S, E)
        if self.add_bias_kv:
            k, v = _append(k, weights["bias_k"]), _append(v, weights["bias_v"])
        if self.add_zero_attn:
            zeros = jnp.zeros((1, 1, self.embed_dim), q.dtype)
            k, v = _append(k, zeros), _append(v, zeros)
        added = k.shape[1] - keys
        q, k, v = (x.reshape(*x.shape[:2], self.num_heads, -1) for x in (q, k, v))

        scale = (self.embed_dim // self.num_heads) ** -0.5
        scores = jnp.einsum("btnd,bsnd->bnts", q * scale, k)
        for mask in masks:
            # Whatever is put behind the keys can always be seen.
            scores += jnp.pad(mask, [(0, 0)] * 3 + [(0, added)])
        attention = jax.nn.softmax(scores) if need_weights else _safe_softmax(scores)
        attention = dropout(attention)
        gathered = jnp.einsum("bnts,bsnd->btnd", attention, v)
        gathered = gathered.reshape(batch, queries, self.embed_dim)
        return self._transposed(gathered), attention

    def _transposed(self, x: jax.Array) -> jax.Array:
        """Change between batch first and what the user passes."""
        return x if self.batch_first else x.swapaxes(0, 1)

    def _checked(
        self, name: str, x: jax.Array, size: int, dtype: jnp.dtype
    ) -> jax.Array:
        """Return an input batch first."""
        x = check_sequences(x, size, dtype, batch_first=self.batch_first, name=name)
        return self._transposed(x)

    def _mask_shapes(
        self, query: jax.Array, key: jax.Array
    ) -> dict[tuple[int, ...], tuple[int, ...]]:
        """Return the shapes that a mask may have, and what each is reshaped to."""
        batch, heads, pairs = len(query), self.num_heads, (query.shape[1], key.shape[1])
        return {pairs: (1, 1, *pairs), (batch * heads, *pairs): (batch, heads, *pairs)}

    def _project(
        self,
        weights: Mapping[str, jax.Array],
        *inputs: jax.Array,
    ) -> list[jax.Array]:
        """Project queries, keys and values, each ``(B, T, ...)``, to ``(B, T, E)``."""
        if "in_proj_weight" in weights:
            matrices = jnp.split(weights["in_proj_weight"], 3)
        else:
            matrices = [weights[f"{name}_proj_weight"] for name in "qkv"]
        biases = jnp.split(weights["in_proj_bias"], 3) if self.bias else [None] * 3
        return [*map(affine, inputs, matrices, biases)]


def _check_lengths(query: jax.Array, key: jax.Array, value: jax.Array) -> None:
    if key.shape[0] != query.shape[0] or value.shape[:2] != key.shape[:2]:
        raise ValueError(
            f"query, key and value hold {query.shape[0]}, {key.shape[0]} and "
            f"{value.shape[0]} sequences, key and value of {key.shape[1]} and "
            f"{value.shape[1]} steps; all three must hold as many sequences, and every "
            "key needs a value."
        )


def _masks(
    name: str,
    mask: jax.Array | None,
    dtype: jnp.dtype,
    shapes: Mapping[tuple[int, ...], tuple[int, ...]],
) -> list[jax.Array]:
    """Return what is added to the scores, ``(B, N, T, S)`` but for broadcasting."""
    if mask is None:
        return []
    mask = jnp.asarray(mask)
    if mask.shape not in shapes:
        listed = " or ".join(map(str, shapes))
        raise ValueError(f"{name} has shape {mask.shape}; it must be {listed}.")
    if mask.dtype == bool:
        mask = jnp.where(mask, jnp.array(-jnp.inf, dtype), jnp.array(0, dtype))
    elif not jnp.issubdtype(mask.dtype, jnp.floating):
        raise TypeError(
            f"{name} has dtype {mask.dtype}; it must be bool, where True blocks (a "
            "mask of Flax's is the reverse: pass ~mask), or floating, which is added."
        )
    check_dtype(name, mask, dtype)
    return [mask.reshape(shapes[mask.shape])]


def _append(x: jax.Array, last: jax.Array) -> jax.Array:
    """Put one more step, ``(1, 1, E)``, behind every sequence."""
    repeated = jnp.broadcast_to(last, (x.shape[0], 1, x.shape[2]))
    return jnp.concatenate([x, repeated], axis=1)


def _safe_softmax(scores: jax.Array) -> jax.Array:
    """Return the softmax of each row, and zeros where all of a row is blocked."""
    blocked = jnp.all(scores == -jnp.inf, axis=-1, keepdims=True)
    # The gradient of a softmax of nothing but -inf would be NaN.
    return jnp.where(blocked, 0, jax.nn.softmax(jnp.where(blocked, 0, scores)))

"""A small GPT with tied embeddings, in Flax Linen."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxclip.models import _init
from jaxclip.models._blocks import causal_attention
from jaxclip.models._checks import check_divides, check_sizes, check_tokens
from jaxclip.models._gpt import STD, residual_std


class CausalSelfAttention(nn.Module):
    """Attention in several heads of every position to itself and those before it.

    The counterpart of ``torchref.gpt.CausalSelfAttention``, with an ``nn.Dense`` named
    "c_attn" and one named "c_proj".

    Attributes:
        n_embd: ``E``.
        n_head: The number of heads, which divides ``E``.
        n_layer: How many blocks the model has, on which the first weights depend.
        param_dtype: The dtype of the parameters, and of the computation.

    Raises:
        ValueError: If ``n_head`` does not divide ``n_embd``.

    Example:
        >>> layer, x = CausalSelfAttention(8, 2), jnp.ones((5, 3, 8))
        >>> y, variables = layer.init_with_output(jax.random.key(0), x)
        >>> y.shape, sorted(variables["params"])
        ((5, 3, 8), ['c_attn', 'c_proj'])
    """

    n_embd: int
    n_head: int
    n_layer: int = 1
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        """Make the linear layers."""
        check_divides(n_head=self.n_head, n_embd=self.n_embd)
        self.c_attn = _dense(3 * self.n_embd, STD, self.param_dtype)
        std = residual_std(self.n_layer)
        self.c_proj = _dense(self.n_embd, std, self.param_dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``x``, of shape ``(B, T, E)``, to the same shape."""
        return self.c_proj(causal_attention(self.c_attn(x), self.n_head))


class MLP(nn.Module):
    """Two linear layers with GPT-2's GELU, the approximation by tanh, between them.

    The counterpart of ``torchref.gpt.MLP``, with an ``nn.Dense`` named "c_fc" and one
    named "c_proj".

    Attributes:
        n_embd: ``E``.
        n_layer: How many blocks the model has, on which the first weights depend.
        param_dtype: The dtype of the parameters, and of the computation.

    Example:
        >>> layer, x = MLP(8), jnp.ones((5, 3, 8))
        >>> y, variables = layer.init_with_output(jax.random.key(0), x)
        >>> y.shape, sorted(variables["params"])
        ((5, 3, 8), ['c_fc', 'c_proj'])
    """

    n_embd: int
    n_layer: int = 1
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        """Make the linear layers."""
        self.c_fc = _dense(4 * self.n_embd, STD, self.param_dtype)
        std = residual_std(self.n_layer)
        self.c_proj = _dense(self.n_embd, std, self.param_dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``x``, of shape ``(..., E)``, to the same shape."""
        return self.c_proj(jax.nn.gelu(self.c_fc(x), approximate=True))


class Block(nn.Module):
    """Attention and two linear layers, each added to what was normalised for it.

    The counterpart of ``torchref.gpt.Block``, with submodules named "ln_1", "attn",
    "ln_2" and "mlp".

    Attributes:
        n_embd: ``E``.
        n_head: The number of heads.
        n_layer: How many blocks the model has, on which the first weights depend.
        param_dtype: The dtype of the parameters, and of the computation.

    Example:
        >>> layer, x = Block(8, 2), jnp.ones((5, 3, 8))
        >>> y, variables = layer.init_with_output(jax.random.key(0), x)
        >>> y.shape, sorted(variables["params"])
        ((5, 3, 8), ['attn', 'ln_1', 'ln_2', 'mlp'])
    """

    n_embd: int
    n_head: int
    n_layer: int = 1
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        """Make the layers."""
        sizes, dtype = (self.n_embd, self.n_head, self.n_layer), self.param_dtype
        self.ln_1 = _layer_norm(dtype)
        self.attn = CausalSelfAttention(*sizes, param_dtype=dtype)
        self.ln_2 = _layer_norm(dtype)
        self.mlp = MLP(self.n_embd, self.n_layer, param_dtype=dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``x``, of shape ``(B, T, E)``, to the same shape."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """A transformer that predicts the next token, with the names of GPT-2.

    See ``jaxclip.models.GPT``; the parameters are those of ``torchref.gpt.GPT``, in
    submodules named "wte", "wpe", "h_0" and so on, and "ln_f". The output layer
    "lm_head" is "wte" once more, and has no parameters of its own.

    Attributes:
        vocab_size: ``V``, the number of different tokens.
        block_size: The greatest number of tokens in a sequence.
        n_embd: ``E``.
        n_head: The number of heads, which divides ``E``.
        n_layer: How many blocks are stacked.
        param_dtype: The dtype of the parameters, and of the computation.

    Raises:
        ValueError: If a size is less than 1, or ``n_head`` does not divide ``n_embd``.

    Example:
        >>> model = GPT(5, 4, n_embd=8, n_head=2, n_layer=2)
        >>> tokens = jnp.array([[0, 1, 4], [2, 2, 3]])
        >>> logits, variables = model.init_with_output(jax.random.key(0), tokens)
        >>> logits.shape, sorted(variables["params"])
        ((2, 3, 5), ['h_0', 'h_1', 'ln_f', 'wpe', 'wte'])
    """

    vocab_size: int
    block_size: int
    n_embd: int
    n_head: int
    n_layer: int
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        """Make the layers."""
        check_sizes(
            vocab_size=self.vocab_size,
            block_size=self.block_size,
            n_embd=self.n_embd,
            n_head=self.n_head,
            n_layer=self.n_layer,
        )
        sizes, dtype = (self.n_embd, self.n_head, self.n_layer), self.param_dtype
        self.wte, self.wpe = (
            nn.Embed(
                rows,
                self.n_embd,
                embedding_init=_init.normal(STD),
                param_dtype=dtype,
            )
            for rows in (self.vocab_size, self.block_size)
        )
        self.h = [Block(*sizes, param_dtype=dtype) for _ in range(self.n_layer)]
        self.ln_f = _layer_norm(dtype)
        self.lm_head = self.wte

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Predict, at every position, the token that comes next.

        Args:
            tokens: Integers in ``[0, V)``, of shape ``(B, T)``. A token of ``V`` or
                more is no error in JAX: its logits are NaN.

        Returns:
            The logits, ``(B, T, V)``.

        Raises:
            TypeError: If ``tokens`` are not integers.
            ValueError: If ``tokens`` has another shape.
        """
        tokens = check_tokens(tokens, longest=self.block_size)
        x = self.wte(tokens) + self.wpe(jnp.arange(tokens.shape[1]))  # (B, T, E)
        for block in self.h:
            x = block(x)
        return self.lm_head.attend(self.ln_f(x))


def _dense(features: int, std: float, param_dtype: Any) -> nn.Dense:
    return nn.Dense(features, kernel_init=_init.normal(std), param_dtype=param_dtype)


def _layer_norm(param_dtype: Any) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, param_dtype=param_dtype)

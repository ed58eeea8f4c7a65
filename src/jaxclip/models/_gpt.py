"""A small GPT with tied embeddings, in Flax NNX."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxclip.models import _init
from jaxclip.models._blocks import causal_attention
from jaxclip.models._checks import check_divides, check_sizes, check_tokens

STD = 0.02
"""The deviation of GPT-2's weights at first."""


def residual_std(n_layer: int) -> float:
    """Return the deviation of what is added to the residual stream, twice a block."""
    return float(STD / (2 * n_layer) ** 0.5)


class CausalSelfAttention(nnx.Module):
    """Attention in several heads of every position to itself and those before it.

    The counterpart of ``torchref.gpt.CausalSelfAttention``.

    Args:
        n_embd: ``E``.
        n_head: The number of heads, which divides ``E``.
        n_layer: How many blocks the model has, on which the first weights depend.
        rngs: Where the parameters are drawn from, as GPT-2's are drawn.
        param_dtype: The dtype of the parameters, and of the computation.

    Attributes:
        c_attn: ``nnx.Linear(E, 3*E)``, to queries, keys and values.
        c_proj: ``nnx.Linear(E, E)``.

    Raises:
        ValueError: If ``n_head`` does not divide ``n_embd``.

    Example:
        >>> CausalSelfAttention(8, 2, rngs=nnx.Rngs(0))(jnp.ones((5, 3, 8))).shape
        (5, 3, 8)
    """

    def __init__(
        self,
        n_embd: int,
        n_head: int,
        n_layer: int = 1,
        *,
        rngs: nnx.Rngs,
        param_dtype: Any = jnp.float32,
    ) -> None:
        """Make the linear layers."""
        check_divides(n_head=n_head, n_embd=n_embd)
        self.n_head = n_head
        self.c_attn = _linear(n_embd, 3 * n_embd, STD, rngs, param_dtype)
        std = residual_std(n_layer)
        self.c_proj = _linear(n_embd, n_embd, std, rngs, param_dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``x``, of shape ``(B, T, E)``, to the same shape."""
        return self.c_proj(causal_attention(self.c_attn(x), self.n_head))


class MLP(nnx.Module):
    """Two linear layers with GPT-2's GELU, the approximation by tanh, between them.

    The counterpart of ``torchref.gpt.MLP``.

    Args:
        n_embd: ``E``.
        n_layer: How many blocks the model has, on which the first weights depend.
        rngs: Where the parameters are drawn from, as GPT-2's are drawn.
        param_dtype: The dtype of the parameters, and of the computation.

    Attributes:
        c_fc: ``nnx.Linear(E, 4*E)``.
        c_proj: ``nnx.Linear(4*E, E)``.

    Example:
        >>> MLP(8, rngs=nnx.Rngs(0))(jnp.ones((5, 3, 8))).shape
        (5, 3, 8)
    """

    def __init__(
        self,
        n_embd: int,
        n_layer: int = 1,
        *,
        rngs: nnx.Rngs,
        param_dtype: Any = jnp.float32,
    ) -> None:
        """Make the linear layers."""
        self.c_fc = _linear(n_embd, 4 * n_embd, STD, rngs, param_dtype)
        std = residual_std(n_layer)
        self.c_proj = _linear(4 * n_embd, n_embd, std, rngs, param_dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``x``, of shape ``(..., E)``, to the same shape."""
        return self.c_proj(jax.nn.gelu(self.c_fc(x), approximate=True))


class Block(nnx.Module):
    """Attention and two linear layers, each added to what was normalised for it.

    The counterpart of ``torchref.gpt.Block``.

    Args:
        n_embd: ``E``.
        n_head: The number of heads.
        n_layer: How many blocks the model has, on which the first weights depend.
        rngs: Where the parameters are drawn from, as GPT-2's are drawn.
        param_dtype: The dtype of the parameters, and of the computation.

    Attributes:
        ln_1: The ``nnx.LayerNorm(E)`` before the attention.
        attn: The ``CausalSelfAttention``.
        ln_2: The ``nnx.LayerNorm(E)`` before the linear layers.
        mlp: The ``MLP``.

    Example:
        >>> Block(8, 2, rngs=nnx.Rngs(0))(jnp.ones((5, 3, 8))).shape
        (5, 3, 8)
    """

    def __init__(
        self,
        n_embd: int,
        n_head: int,
        n_layer: int = 1,
        *,
        rngs: nnx.Rngs,
        param_dtype: Any = jnp.float32,
    ) -> None:
        """Make the layers."""
        dtype = param_dtype
        self.ln_1 = _layer_norm(n_embd, rngs, dtype)
        self.attn = CausalSelfAttention(
            n_embd, n_head, n_layer, rngs=rngs, param_dtype=dtype
        )
        self.ln_2 = _layer_norm(n_embd, rngs, dtype)
        self.mlp = MLP(n_embd, n_layer, rngs=rngs, param_dtype=dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``x``, of shape ``(B, T, E)``, to the same shape."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nnx.Module):
    """A transformer that predicts the next token, with the names of GPT-2.

    The counterpart of ``torchref.gpt.GPT``. The embedding is the output layer too:
    one ``nnx.Embed`` under two names, and so is its weight in torch's state dict.

    Args:
        vocab_size: ``V``, the number of different tokens.
        block_size: The greatest number of tokens in a sequence.
        n_embd: ``E``.
        n_head: The number of heads, which divides ``E``.
        n_layer: How many blocks are stacked.
        rngs: Where the parameters are drawn from, as GPT-2's are drawn.
        param_dtype: The dtype of the parameters, and of the computation.

    Attributes:
        wte: The ``nnx.Embed(V, E)`` of tokens.
        wpe: The ``nnx.Embed(block_size, E)`` of positions.
        h: The blocks.
        ln_f: The ``nnx.LayerNorm(E)``.
        lm_head: ``wte`` once more.

    Raises:
        ValueError: If a size is less than 1, or ``n_head`` does not divide ``n_embd``.

    Example:
        >>> model = GPT(5, 4, n_embd=8, n_head=2, n_layer=2, rngs=nnx.Rngs(0))
        >>> model(jnp.array([[0, 1, 4], [2, 2, 3]])).shape
        (2, 3, 5)
        >>> model.lm_head is model.wte
        True

    References:
        Radford et al., *Language Models are Unsupervised Multitask Learners* (2019).
    """

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        n_embd: int,
        n_head: int,
        n_layer: int,
        *,
        rngs: nnx.Rngs,
        param_dtype: Any = jnp.float32,
    ) -> None:
        """Make the layers."""
        check_sizes(
            vocab_size=vocab_size,
            block_size=block_size,
            n_embd=n_embd,
            n_head=n_head,
            n_layer=n_layer,
        )

        def embed(rows: int) -> nnx.Embed:
            return nnx.Embed(
                rows,
                n_embd,
                embedding_init=_init.normal(STD),
                param_dtype=param_dtype,
                rngs=rngs,
            )

        self.wte, self.wpe = embed(vocab_size), embed(block_size)
        self.h = nnx.List(
            [
                Block(n_embd, n_head, n_layer, rngs=rngs, param_dtype=param_dtype)
                for _ in range(n_layer)
            ]
        )
        self.ln_f = _layer_norm(n_embd, rngs, param_dtype)
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
        tokens = check_tokens(tokens, longest=self.wpe.num_embeddings)
        x = self.wte(tokens) + self.wpe(jnp.arange(tokens.shape[1]))  # (B, T, E)
        for block in self.h:
            x = block(x)
        return self.lm_head.attend(self.ln_f(x))


def _linear(
    inputs: int, outputs: int, std: float, rngs: nnx.Rngs, param_dtype: Any
) -> nnx.Linear:
    return nnx.Linear(
        inputs,
        outputs,
        kernel_init=_init.normal(std),
        param_dtype=param_dtype,
        rngs=rngs,
    )


def _layer_norm(n_embd: int, rngs: nnx.Rngs, param_dtype: Any) -> nnx.LayerNorm:
    return nnx.LayerNorm(
        n_embd,
        epsilon=1e-5,
        use_fast_variance=False,
        param_dtype=param_dtype,
        rngs=rngs,
    )

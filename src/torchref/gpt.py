"""A small GPT: a causal transformer whose embeddings are tied to its output.

Tokens are integers of shape ``(B, T)`` and logits have shape ``(B, T, V)``, for a batch
of ``B`` sequences of ``T`` tokens out of a vocabulary of ``V``, and ``E`` features.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchref._checks import at_least

_STD = 0.02
"""The deviation of GPT-2's weights at first."""


class CausalSelfAttention(nn.Module):
    """Attention in several heads of every position to itself and those before it.

    Args:
        n_embd: ``E``.
        n_head: The number of heads, which divides ``E``.

    Attributes:
        c_attn: ``nn.Linear(E, 3*E)``, to queries, keys and values.
        c_proj: ``nn.Linear(E, E)``.

    Example:
        >>> CausalSelfAttention(8, 2)(torch.ones(5, 3, 8)).shape
        torch.Size([5, 3, 8])
    """

    def __init__(self, n_embd: int, n_head: int) -> None:
        """Make the linear layers."""
        super().__init__()
        if n_embd % n_head:
            raise ValueError(f"n_head is {n_head}; it must divide n_embd = {n_embd}.")
        self.n_head = n_head
        self.c_attn = nn.Linear(n_embd, 3 * n_embd)
        self.c_proj = nn.Linear(n_embd, n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x``, of shape ``(B, T, E)``, to the same shape."""
        q, k, v = (
            part.unflatten(-1, (self.n_head, -1)).transpose(1, 2)  # (B, N, T, E/N)
            for part in self.c_attn(x).chunk(3, dim=-1)
        )
        gathered = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        output: Tensor = self.c_proj(gathered.transpose(1, 2).flatten(-2))
        return output


class MLP(nn.Module):
    """Two linear layers with GPT-2's GELU, the approximation by tanh, between them.

    Args:
        n_embd: ``E``.

    Attributes:
        c_fc: ``nn.Linear(E, 4*E)``.
        c_proj: ``nn.Linear(4*E, E)``.

    Example:
        >>> MLP(8)(torch.ones(5, 3, 8)).shape
        torch.Size([5, 3, 8])
    """

    def __init__(self, n_embd: int) -> None:
        """Make the linear layers."""
        super().__init__()
        self.c_fc = nn.Linear(n_embd, 4 * n_embd)
        self.c_proj = nn.Linear(4 * n_embd, n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x``, of shape ``(..., E)``, to the same shape."""
        output: Tensor = self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))
        return output


class Block(nn.Module):
    """Attention and two linear layers, each added to what was normalised for it.

    Args:
        n_embd: ``E``.
        n_head: The number of heads.

    Attributes:
        ln_1: ``nn.LayerNorm(E)``.
        attn: The ``CausalSelfAttention``.
        ln_2: ``nn.LayerNorm(E)``.
        mlp: The ``MLP``.

    Example:
        >>> Block(8, 2)(torch.ones(5, 3, 8)).shape
        torch.Size([5, 3, 8])
    """

    def __init__(self, n_embd: int, n_head: int) -> None:
        """Make the layers."""
        super().__init__()
        self.ln_1 = nn.LayerNorm(n_embd)
        self.attn = CausalSelfAttention(n_embd, n_head)
        self.ln_2 = nn.LayerNorm(n_embd)
        self.mlp = MLP(n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x``, of shape ``(B, T, E)``, to the same shape."""
        x = x + self.attn(self.ln_1(x))
        output: Tensor = x + self.mlp(self.ln_2(x))
        return output


class GPT(nn.Module):
    """A transformer that predicts the next token, with the names of GPT-2.

    The weight of the output layer is that of the embedding: one parameter, under two
    names in the state dict.

    Args:
        vocab_size: ``V``, the number of different tokens.
        block_size: The greatest ``T``.
        n_embd: ``E``.
        n_head: The number of heads, which divides ``E``.
        n_layer: How many blocks are stacked.

    Attributes:
        wte: ``nn.Embedding(V, E)`` of tokens.
        wpe: ``nn.Embedding(block_size, E)`` of positions.
        h: The blocks.
        ln_f: ``nn.LayerNorm(E)``.
        lm_head: ``nn.Linear(E, V)`` without a bias, whose weight is that of ``wte``.

    Raises:
        ValueError: If a size is less than 1, or ``n_head`` does not divide ``n_embd``.

    Example:
        >>> model = GPT(vocab_size=5, block_size=4, n_embd=8, n_head=2, n_layer=2)
        >>> model(torch.tensor([[0, 1, 4], [2, 2, 3]])).shape
        torch.Size([2, 3, 5])
        >>> model.lm_head.weight is model.wte.weight
        True

    References:
        Radford et al., *Language Models are Unsupervised Multitask Learners* (2019).
    """

    def __init__(
        self, vocab_size: int, block_size: int, n_embd: int, n_head: int, n_layer: int
    ) -> None:
        """Make the layers, and draw their weights as GPT-2's are drawn."""
        super().__init__()
        at_least(
            1,
            vocab_size=vocab_size,
            block_size=block_size,
            n_embd=n_embd,
            n_head=n_head,
            n_layer=n_layer,
        )
        self.wte = nn.Embedding(vocab_size, n_embd)
        self.wpe = nn.Embedding(block_size, n_embd)
        self.h = nn.ModuleList(Block(n_embd, n_head) for _ in range(n_layer))
        self.ln_f = nn.LayerNorm(n_embd)
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)
        self.lm_head.weight = self.wte.weight
        for name, param in self.named_parameters():
            if name.endswith("c_proj.weight"):
                # Two of them add to the residual stream in every block.
                nn.init.normal_(param, std=_STD / (2 * n_layer) ** 0.5)
            elif param.ndim == 2:
                nn.init.normal_(param, std=_STD)
            elif name.endswith("bias"):
                nn.init.zeros_(param)

    def forward(self, tokens: Tensor) -> Tensor:
        """Predict, at every position, the token that comes next.

        Args:
            tokens: Integers in ``[0, V)``, of shape ``(B, T)``.

        Returns:
            The logits, ``(B, T, V)``.

        Raises:
            ValueError: If ``tokens`` has another shape.
        """
        if tokens.ndim != 2 or not 1 <= tokens.shape[1] <= self.wpe.num_embeddings:
            raise ValueError(
                f"tokens has shape {tuple(tokens.shape)}; it must be (B, T) with T "
                f"from 1 to {self.wpe.num_embeddings}, the block size."
            )
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.wte(tokens.long()) + self.wpe(positions)  # (B, T, E)
        for block in self.h:
            x = block(x)
        logits: Tensor = self.lm_head(self.ln_f(x))
        return logits

"""BERT as a sentence encoder, in torch, under the names that its files use.

It is here because the package ships the weights alone, and leaves the network to
libraries that would bring a dozen others.
"""

import torch
from torch import nn
from torch.nn import functional as F

VOCABULARY, POSITIONS, KINDS = 30_522, 512, 2
WIDTH, HEADS, HIDDEN, LAYERS = 384, 12, 1536, 6
EPSILON = 1e-12


class SelfAttention(nn.Module):
    """Attention without the projection of what it gathers."""

    def __init__(self) -> None:
        """Make the three projections."""
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Gather values where the mask, ``(B, T)``, is True."""
        heads = (
            projection(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)  # (B, N, T, D)
            for projection in (self.query, self.key, self.value)
        )
        gathered = F.scaled_dot_product_attention(*heads, mask[:, None, None, :])
        return gathered.transpose(1, 2).flatten(2)


class Output(nn.Module):
    """The end of a block: a projection, the sum with the block's input, a norm."""

    def __init__(self, features: int) -> None:
        """Make the layers."""
        super().__init__()
        self.dense = nn.Linear(features, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, eps=EPSILON)

    def forward(self, hidden: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Add what a block has made of ``x`` to it."""
        return self.LayerNorm(self.dense(hidden) + x)


class Layer(nn.Module):
    """Attention and two linear layers."""

    def __init__(self) -> None:
        """Make the blocks."""
        super().__init__()
        self.attention = nn.ModuleDict(
            {"self": SelfAttention(), "output": Output(WIDTH)}
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(WIDTH, HIDDEN)})
        self.output = Output(HIDDEN)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Let every position look at those where the mask is True."""
        x = self.attention["output"](self.attention["self"](x, mask), x)
        return self.output(F.gelu(self.intermediate["dense"](x)), x)


class SentenceEncoder(nn.Module):
    """A unit vector for each sentence: the mean of what BERT makes of its words."""

    def __init__(self) -> None:
        """Make embeddings and layers."""
        super().__init__()
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(VOCABULARY, WIDTH),
                "position_embeddings": nn.Embedding(POSITIONS, WIDTH),
                "token_type_embeddings": nn.Embedding(KINDS, WIDTH),
                "LayerNorm": nn.LayerNorm(WIDTH, eps=EPSILON),
            }
        )
        layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.encoder = nn.ModuleDict({"layer": layers})

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Encode tokens, ``(B, T)``, of which those where the mask is False pad."""
        words, positions, kinds, norm = self.embeddings.values()
        here = torch.arange(tokens.shape[1])
        x = norm(words(tokens) + positions(here) + kinds(torch.zeros_like(tokens)))
        for layer in self.encoder["layer"]:
            x = layer(x, mask)
        kept = mask[..., None].to(x.dtype)
        return F.normalize((x * kept).sum(dim=1) / kept.sum(dim=1), dim=1)

"""Recurrent language models: one written out by hand, one on torch's own cells.

Both are batch first: tokens are integers of shape ``(B, T)`` and logits have shape
``(B, T, V)``, for a batch of ``B`` sequences of ``T`` tokens out of a vocabulary of
``V``, and ``H`` hidden units.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchref._checks import at_least

_CELLS: dict[str, Callable[..., nn.RNNBase]] = {
    "rnn": nn.RNN,
    "gru": nn.GRU,
    "lstm": nn.LSTM,
}

State = Tensor | tuple[Tensor, Tensor]
"""What a model remembers between batches: one tensor, or ``(h, c)`` for an LSTM."""


class RNNLMScratch:
    r"""A character model whose recurrence is written out step by step.

    .. math::
        h_t = \tanh(x_t W_{xh} + h_{t-1} W_{hh} + b_h), \qquad
        o_t = h_t W_{hq} + b_q

    where ``x_t`` is the one-hot vector of token ``t``. This is the model of the
    from-scratch chapter of *Dive into Deep Learning*: no ``nn.Module``, only a list
    of tensors that require gradients.

    Batch first: tokens ``(B, T)``, logits ``(B, T, V)``, state ``(B, H)``.

    Args:
        vocab_size: ``V``, the number of different tokens.
        hidden_size: ``H``, the number of hidden units.

    Attributes:
        vocab_size: As given.
        hidden_size: As given.
        W_xh: Input to hidden, of shape ``(V, H)``, drawn from normal(0, 0.01).
        W_hh: Hidden to hidden, of shape ``(H, H)``, drawn from normal(0, 0.01).
        b_h: Bias of the hidden units, of shape ``(H,)``, zero.
        W_hq: Hidden to output, of shape ``(H, V)``, drawn from normal(0, 0.01).
        b_q: Bias of the outputs, of shape ``(V,)``, zero.

    Raises:
        ValueError: If a size is less than 1.

    Example:
        >>> model = RNNLMScratch(vocab_size=5, hidden_size=8)
        >>> logits, state = model(torch.tensor([[0, 1, 4], [2, 2, 3]]))
        >>> logits.shape, state.shape
        (torch.Size([2, 3, 5]), torch.Size([2, 8]))

    References:
        Zhang et al., *Dive into Deep Learning*, section 9.5, "Recurrent Neural
        Network Implementation from Scratch".
    """

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        """Draw the parameters; see the class for their shapes."""
        at_least(1, vocab_size=vocab_size, hidden_size=hidden_size)
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.W_xh = (torch.randn(vocab_size, hidden_size) * 0.01).requires_grad_()
        self.W_hh = (torch.randn(hidden_size, hidden_size) * 0.01).requires_grad_()
        self.b_h = torch.zeros(hidden_size, requires_grad=True)
        self.W_hq = (torch.randn(hidden_size, vocab_size) * 0.01).requires_grad_()
        self.b_q = torch.zeros(vocab_size, requires_grad=True)

    def __call__(
        self, tokens: Tensor, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Predict, at every position, the token that comes next.

        Args:
            tokens: Integers in ``[0, V)``, of shape ``(B, T)``, batch first.
            state: The hidden state to go on from, ``(B, H)``; zeros if None.

        Returns:
            The logits, ``(B, T, V)``, and the hidden state after the last token,
            ``(B, H)``.

        Raises:
            ValueError: If ``tokens`` or ``state`` has another shape.
        """
        _check_tokens(tokens)
        batch_size = tokens.shape[0]
        hidden = self.begin_state(batch_size) if state is None else state
        if hidden.shape != (batch_size, self.hidden_size):
            raise ValueError(
                f"state has shape {tuple(hidden.shape)}; for this batch it must be "
                f"(B, H) = ({batch_size}, {self.hidden_size}). Pass the state that "
                "the previous batch returned, or None to start from zeros."
            )
        inputs = F.one_hot(tokens.long(), self.vocab_size)  # (B, T, V)
        logits = []
        for x in inputs.to(self.W_xh.dtype).unbind(dim=1):  # (B, V), T times
            hidden = torch.tanh(x @ self.W_xh + hidden @ self.W_hh + self.b_h)
            logits.append(hidden @ self.W_hq + self.b_q)
        return torch.stack(logits, dim=1), hidden

    def begin_state(self, batch_size: int) -> Tensor:
        """Return the state before the first token: zeros of shape ``(B, H)``."""
        return self.W_xh.new_zeros(batch_size, self.hidden_size)

    @property
    def params(self) -> list[Tensor]:
        """The parameters: ``[W_xh, W_hh, b_h, W_hq, b_q]``."""
        return [self.W_xh, self.W_hh, self.b_h, self.W_hq, self.b_q]

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each parameter with its name, in the order of ``params``."""
        yield from zip(("W_xh", "W_hh", "b_h", "W_hq", "b_q"), self.params, strict=True)

    def parameters(self) -> Iterator[Tensor]:
        """Yield each parameter, as an optimizer wants them."""
        yield from self.params

    def state_dict(self) -> dict[str, Tensor]:
        """Return the parameters by name, detached; they share the model's memory."""
        return {name: param.detach() for name, param in self.named_parameters()}

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Copy values into the parameters, cast to the model's dtype.

        Differs from ``nn.Module.load_state_dict``: always strict, and where anything
        is wrong nothing at all is loaded.

        Args:
            state_dict: One tensor for each name in ``state_dict()``.

        Raises:
            RuntimeError: If names are missing or unexpected, or a shape differs; all
                such problems are listed.
        """
        own = dict(self.named_parameters())
        problems = [f"missing: {name}" for name in own if name not in state_dict]
        problems += [f"unexpected: {name}" for name in state_dict if name not in own]
        problems += [
            f"wrong shape: {name} is {tuple(state_dict[name].shape)}, "
            f"the model's is {tuple(param.shape)}"
            for name, param in own.items()
            if name in state_dict and state_dict[name].shape != param.shape
        ]
        if problems:
            listed = "\n".join(f"  {problem}" for problem in problems)
            raise RuntimeError(f"state_dict does not fit {self!r}:\n{listed}")
        with torch.no_grad():
            for name, param in own.items():
                param.copy_(state_dict[name])

    def to(self, dtype: torch.dtype) -> Self:
        """Cast the parameters and their gradients in place, and return the model.

        The tensors stay the same objects and stay leaves, so an optimizer that was
        built before the cast still updates them.
        """
        for param in self.params:
            grad, param.grad = param.grad, None
            param.data = param.data.to(dtype)
            param.grad = None if grad is None else grad.to(dtype)
        return self

    def __repr__(self) -> str:
        """Say the class and the sizes."""
        sizes = f"vocab_size={self.vocab_size}, hidden_size={self.hidden_size}"
        return f"{type(self).__name__}({sizes})"


class RNNLM(nn.Module):
    """A character model on ``nn.RNN``, ``nn.GRU`` or ``nn.LSTM``.

    An embedding of ``H`` numbers per token, the recurrent layers, and a linear map
    from each hidden state to ``V`` logits.

    Batch first: tokens ``(B, T)``, logits ``(B, T, V)``. The state is torch's own,
    whose first axis is the layer even so: ``(num_layers, B, H)``, and for an LSTM a
    pair ``(h, c)`` of such tensors.

    Args:
        vocab_size: ``V``, the number of different tokens.
        hidden_size: ``H``, the number of hidden units of each layer, and the length
            of an embedding.
        cell: "rnn", "gru" or "lstm".
        num_layers: How many recurrent layers are stacked.

    Attributes:
        embedding: The ``nn.Embedding(V, H)``.
        rnn: The ``nn.RNN``, ``nn.GRU`` or ``nn.LSTM``, with ``batch_first=True``.
        output: The ``nn.Linear(H, V)``.

    Raises:
        ValueError: If ``cell`` is none of the three, or a size is less than 1.

    Example:
        >>> model = RNNLM(5, 8, cell="lstm", num_layers=2)
        >>> logits, (h, c) = model(torch.tensor([[0, 1, 4], [2, 2, 3], [1, 1, 1]]))
        >>> logits.shape, h.shape, c.shape
        (torch.Size([3, 3, 5]), torch.Size([2, 3, 8]), torch.Size([2, 3, 8]))
    """

    def __init__(
        self, vocab_size: int, hidden_size: int, cell: str = "rnn", num_layers: int = 1
    ) -> None:
        """Draw the parameters as torch draws them."""
        super().__init__()
        if cell not in _CELLS:
            known = ", ".join(map(repr, _CELLS))
            raise ValueError(f"cell is {cell!r}; it must be one of {known}.")
        at_least(
            1, vocab_size=vocab_size, hidden_size=hidden_size, num_layers=num_layers
        )
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.rnn = _CELLS[cell](hidden_size, hidden_size, num_layers, batch_first=True)
        self.output = nn.Linear(hidden_size, vocab_size)

    def forward(
        self, tokens: Tensor, state: State | None = None
    ) -> tuple[Tensor, State]:
        """Predict, at every position, the token that comes next.

        Args:
            tokens: Integers in ``[0, V)``, of shape ``(B, T)``, batch first.
            state: The state to go on from, ``(num_layers, B, H)``, or a pair
                ``(h, c)`` of that shape for an LSTM; zeros if None.

        Returns:
            The logits, ``(B, T, V)``, and the state after the last token.

        Raises:
            ValueError: If ``tokens`` is not of shape ``(B, T)``.
        """
        _check_tokens(tokens)
        embedded = self.embedding(tokens)  # (B, T, H)
        hidden, state = self.rnn(embedded, state)  # (B, T, H)
        return self.output(hidden), state  # (B, T, V)


def _check_tokens(tokens: Tensor) -> None:
    # torch's recurrent layers would take one axis for an unbatched sequence.
    if tokens.ndim != 2 or tokens.shape[1] == 0:
        raise ValueError(
            f"tokens has shape {tuple(tokens.shape)}; it must be (B, T), batch first, "
            "with T at least 1. A single sequence is tokens[None]."
        )

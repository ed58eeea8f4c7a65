"""Training with clipping, weight decay, and a hidden state that is carried along.

Losses of language models are in nats per token; the perplexity is ``exp(loss)``.

Weight decay is left to the optimizer, which adds ``weight_decay * p`` to the gradient
of each parameter ``p``: once, after ``backward()`` and after clipping.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from torchref._checks import at_least
from torchref.grad_clipping import HasParams, trainable_parameters
from torchref.rnn import State

Array = Tensor | NDArray[Any]
Batch = tuple[Array, Array]
"""What goes in and what should come out; for language models ``(B, T)`` tokens each."""


class ScratchModel(HasParams, Protocol):
    """A net made from scratch that can be called."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the net."""


Model = nn.Module | ScratchModel
LossFn = Callable[[Model, Batch, State | None], tuple[Tensor, State | None]]
"""Maps ``(model, batch, state)`` to the loss, 0-d, and the state to go on from."""


@dataclass(frozen=True)
class StepResult:
    """What one step of training did.

    Attributes:
        loss: The loss before the step; of a language model, in nats per token.
        grad_norm: The L2 norm of all gradients before clipping.
        clipped_norm: Their norm after clipping; ``grad_norm`` if nothing clips.
        state: The state after the batch, detached; None if the loss carries none.
    """

    loss: float
    grad_norm: float
    clipped_norm: float
    state: State | None


def detach_state(state: State | None) -> State | None:
    """Cut a state off the graph that made it; the values stay.

    Without the cut, the next ``backward()`` would run through every batch so far.

    Args:
        state: ``(num_layers, B, H)``, a pair ``(h, c)`` of that shape, ``(B, H)``
            from a model made from scratch, or None.

    Returns:
        The same state, detached.

    Example:
        >>> detach_state(torch.zeros(2, 3, requires_grad=True)).requires_grad
        False
    """
    if state is None:
        return None
    if isinstance(state, Tensor):
        return state.detach()
    h, c = state
    return h.detach(), c.detach()


def next_token_loss(
    model: Model, batch: Batch, state: State | None
) -> tuple[Tensor, State | None]:
    r"""Return the mean cross entropy of a language model on a batch.

    .. math:: -\frac{1}{BT} \sum_{b,t} \log \operatorname{softmax}(o_{bt})_{y_{bt}}

    Args:
        model: Maps ``(tokens, state)`` to ``(logits, state)``, batch first: tokens
            ``(B, T)``, logits ``o`` of shape ``(B, T, V)``.
        batch: Inputs and targets ``y``, integers of shape ``(B, T)`` each.
        state: The state to go on from, or None.

    Returns:
        The loss in nats per token, 0-d, and the state after the batch.

    Example:
        >>> from torchref.rnn import RNNLMScratch
        >>> model = RNNLMScratch(vocab_size=10, hidden_size=4)
        >>> batch = torch.tensor([[1, 2, 3]]), torch.tensor([[2, 3, 4]])
        >>> loss, _ = next_token_loss(model, batch, None)
        >>> round(torch.exp(loss).item())  # the perplexity of guessing at random
        10
    """
    inputs, targets = map(_as_tensor, batch)
    logits, state = model(inputs, state)  # (B, T, V)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten().long()), state


def cross_entropy_loss(
    model: Model, batch: Batch, state: State | None
) -> tuple[Tensor, None]:
    """Return the mean cross entropy of a net that carries no state.

    Args:
        model: Maps ``x`` to logits, ``(..., V)``.
        batch: ``x``, and integers of the shape of the logits but for the last axis.
        state: Ignored; the net has none.

    Returns:
        The loss in nats, 0-d, and None.

    Example:
        >>> batch = torch.zeros(8, 10), torch.arange(8)
        >>> loss, _ = cross_entropy_loss(nn.Identity(), batch, None)
        >>> round(torch.exp(loss).item())  # one of ten
        10
    """
    del state
    x, y = map(_as_tensor, batch)
    logits = model(x)
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), y.flatten()), None


def squared_error_loss(
    model: Model, batch: Batch, state: State | None
) -> tuple[Tensor, None]:
    """Return the mean squared error of a feed-forward net on a batch.

    Args:
        model: Maps ``x`` to an array of the shape of ``y``.
        batch: ``(x, y)``, in the dtype of the model.
        state: Ignored; a feed-forward net has none.

    Returns:
        The loss, 0-d, and None.

    Raises:
        ValueError: If the output of the model has another shape than ``y``.

    Example:
        >>> batch = torch.ones(8, 2), torch.zeros(8, 2)
        >>> squared_error_loss(nn.Identity(), batch, None)
        (tensor(1.), None)
    """
    del state
    x, y = map(_as_tensor, batch)
    prediction = model(x)
    if prediction.shape != y.shape:
        raise ValueError(
            f"y has shape {tuple(y.shape)}, and the model's output has shape "
            f"{tuple(prediction.shape)}; they must be equal."
        )
    return F.mse_loss(prediction, y), None


def train_step(
    model: Model,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    state: State | None = None,
    *,
    loss_fn: LossFn = next_token_loss,
    max_norm: float | None = None,
) -> StepResult:
    """Take one step: forward, backward, clip, update.

    The gradients that are clipped are those of the parameters that the optimizer
    updates, so that no other net's can be clipped in their stead.

    Args:
        model: The model to train.
        optimizer: The optimizer of its parameters; see ``sgd``.
        batch: Numpy arrays or tensors, as ``loss_fn`` wants them.
        state: The state to go on from, or None; it is detached first.
        loss_fn: Maps ``(model, batch, state)`` to ``(loss, state)``.
        max_norm: The threshold of ``nn.utils.clip_grad_norm_``; None clips nothing.

    Returns:
        The loss and the norms of the step, and the state after the batch.

    Raises:
        ValueError: If ``max_norm`` is negative or NaN, or the loss gave none of the
            optimizer's parameters a gradient.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.ones_(model.weight)
        >>> batch = torch.ones(1, 1), torch.zeros(1, 1)
        >>> result = train_step(
        ...     model, sgd(model, 0.5), batch, loss_fn=squared_error_loss, max_norm=1.0
        ... )
        >>> result.loss, result.grad_norm, round(result.clipped_norm, 3)
        (1.0, 2.0, 1.0)
        >>> round(model.weight.item(), 3)
        0.5
    """
    optimizer.zero_grad()
    loss, state = loss_fn(model, batch, detach_state(state))
    loss.backward()  # type: ignore[no-untyped-call]
    grad_norm, clipped_norm = _clip(optimizer, max_norm)
    optimizer.step()
    return StepResult(loss.item(), grad_norm, clipped_norm, detach_state(state))


def sgd(
    model: nn.Module | HasParams,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
) -> torch.optim.SGD:
    """Build torch's SGD for an ``nn.Module`` or for anything with ``.params``.

    Args:
        model: The model whose parameters are to be updated.
        lr: The learning rate.
        momentum: The share of the last update's direction that is kept.
        weight_decay: How much of a parameter is added to its gradient. Nothing else
            may add it: ``train_step`` does not.

    Returns:
        The optimizer.

    Example:
        >>> optimizer = sgd(nn.Linear(2, 1), lr=0.1, weight_decay=1e-3)
        >>> optimizer.param_groups[0]["weight_decay"]
        0.001
    """
    return torch.optim.SGD(
        trainable_parameters(model),
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
    )


def train(
    model: Model,
    batches: Iterable[Batch],
    *,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    max_norm: float | None = None,
    keep_state: bool = True,
    loss_fn: LossFn = next_token_loss,
    on_step: Callable[[int, StepResult], object] | None = None,
) -> list[StepResult]:
    """Train with SGD, one step for each batch.

    Args:
        model: The model to train, in place.
        batches: Batch first; see ``corpus.sequential_batches``.
        lr: The learning rate.
        momentum: As in ``sgd``.
        weight_decay: As in ``sgd``.
        max_norm: As in ``train_step``.
        keep_state: Whether a batch goes on from the state of the batch before it,
            detached. Right for sequential batches, wrong for random ones.
        loss_fn: As in ``train_step``.
        on_step: Called after each step with its number, from 0, and its result.

    Returns:
        One result for each batch. The losses of a language model are in nats per
        token; the perplexity is ``exp(loss)``.

    Example:
        >>> from torchref.corpus import sequential_batches
        >>> from torchref.rnn import RNNLMScratch
        >>> _ = torch.manual_seed(0)
        >>> batches = sequential_batches([0, 1, 2] * 500, 4, 10, seed=0)
        >>> results = train(RNNLMScratch(3, 8), batches, lr=1.0, max_norm=1.0)
        >>> results[0].loss > 1.0, results[-1].loss < 0.1
        (True, True)
    """
    optimizer = sgd(model, lr, momentum, weight_decay)
    results: list[StepResult] = []
    state = None
    for step, batch in enumerate(batches):
        result = train_step(
            model, optimizer, batch, state, loss_fn=loss_fn, max_norm=max_norm
        )
        state = result.state if keep_state else None
        results.append(result)
        if on_step is not None:
            on_step(step, result)
    return results


def _clip(
    optimizer: torch.optim.Optimizer, max_norm: float | None
) -> tuple[float, float]:
    """Clip what ``optimizer`` will apply; return the norms before and after."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    grads = [p.grad for p in params if p.grad is not None]
    if not grads:
        raise ValueError(
            "the loss gave no gradient to any parameter of the optimizer; build the "
            "optimizer from the parameters of the model that is trained."
        )
    if max_norm is None:
        norm = nn.utils.get_total_norm(grads).item()
        return norm, norm
    at_least(0, max_norm=max_norm)
    norm = nn.utils.clip_grad_norm_(params, max_norm).item()
    return norm, nn.utils.get_total_norm(grads).item()


def _as_tensor(array: Array) -> Tensor:
    # A copy, for `torch.as_tensor` warns of arrays that may not be written to.
    return array if isinstance(array, Tensor) else torch.tensor(array)

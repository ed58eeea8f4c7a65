"""Which random numbers a step drew, and what the masks of dropout were."""

import torch
from torch import Tensor, nn

MASKED = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
"""Modules that multiply their input by a mask that they draw."""

State = list[Tensor]


class Generators:
    """The generators that a model on some devices draws from.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        """Find the devices."""
        devices = {tensor.device for tensor in model.parameters()}
        self._cuda = sorted(d.index for d in devices if d.type == "cuda")

    def state(self) -> State:
        """Copy the states of the generators."""
        return [
            torch.get_rng_state(),
            *(torch.cuda.get_rng_state(index) for index in self._cuda),
        ]

    def set_state(self, state: State) -> None:
        """Put the generators into a state."""
        torch.set_rng_state(state[0])
        for index, other in zip(self._cuda, state[1:], strict=True):
            torch.cuda.set_rng_state(other, index)


def same_state(one: State, other: State) -> bool:
    """Say whether nothing was drawn between two states."""
    return all(map(torch.equal, one, other))


def dropout_mask(
    module: nn.Module,
    given: Tensor,
    returned: Tensor,
    generators: Generators,
    before: State,
) -> Tensor | None:
    """Draw the mask of a dropout once more: what it makes of ones.

    The zeros in what it returned do not show the mask where its input was 0.

    Args:
        module: A dropout in training mode.
        given: Its input.
        returned: Its output.
        generators: The generators, whose states are afterwards what they were.
        before: Their states before the dropout.

    Returns:
        The mask, 0 or ``1 / (1 - p)``; None if it is not what the module applied.
    """
    after = generators.state()
    generators.set_state(before)
    try:
        with torch.no_grad():
            mask: Tensor = module.forward(torch.ones_like(given))
            # The input may have been overwritten by the output, which has its zeros.
            agree = torch.equal(given * mask == 0, returned == 0)
        drew_alike = same_state(generators.state(), after)
    finally:
        generators.set_state(after)
    return mask if agree and drew_alike else None

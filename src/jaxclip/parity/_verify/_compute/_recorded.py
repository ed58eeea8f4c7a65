"""What a recorded step says, beyond its arrays."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxclip.parity._trace._step import Step

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]


def total_loss(step: Step) -> Array | None:
    """Return the loss of which the gradients are; None if none was recorded.

    ``backward`` adds gradients up: after several calls they are those of the sum.
    """
    if len(step.loss) < 2:
        return step.loss[0] if step.loss else None
    total = sum(loss.astype(np.float64) for loss in step.loss)
    return np.asarray(total, step.loss[0].dtype)


def named_state(state: Mapping[str, Arrays]) -> dict[str, Array]:
    """Return what an optimizer keeps by ``"name/key"``."""
    return {
        f"{name}/{key}": array
        for name, own in state.items()
        for key, array in own.items()
    }


AT_START = ", at the start"
"""What is added to the name of what an optimizer keeps before its first step."""


def state_at_start(step: Step) -> dict[str, Array]:
    """Return what an optimizer kept before its first step, if a step is that.

    Most of torch's keep nothing yet; Adagrad does.
    """
    counts = [own["step"] for own in step.opt_state.values() if "step" in own]
    if not counts or any(count.any() for count in counts):
        return {}
    kept = named_state(step.opt_state)
    return {f"{name}{AT_START}": array for name, array in kept.items()}


def took_step(step: Step) -> bool:
    """Say whether torch's optimizer took a step, and what it left is recorded."""
    took = any(event.kind == "optimizer_step" for event in step.events)
    digests = step.digests
    after = step.params_after or digests.get("params_after")
    grads = step.grads or digests.get("grads")
    return took and bool(after and grads)


def steps_taken(step: Step) -> int:
    """Return how many steps the optimizer had taken before a recorded one."""
    counts = [
        int(own["step"])
        for own in step.opt_state.values()
        if "step" in own and own["step"].ndim == 0
    ]
    return max(counts, default=step.number)


def as_precise(step: Step, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return what torch's optimizer made of parameters, as precise as it can be.

    torch's NAdam and ASGD keep numbers in float32 by which they step, of parameters in
    float64 too. What is known by a digest alone stays as it is.
    """
    coarse = {
        name
        for name, own in step.opt_state_after.items()
        for key, array in own.items()
        # torch counts steps in float32, and a count is exact.
        if key != "step" and array.dtype == np.float32
    }
    return {
        name: array.astype(np.float32)
        if name in coarse and isinstance(array, np.ndarray) and array.dtype == "float64"
        else array
        for name, array in arrays.items()
    }

"""The runs of the language model: with clipping in both frameworks, and without."""

from dataclasses import dataclass

import numpy as np

from jaxclip.demo._history import History, Watch
from jaxclip.demo._language_model import Task, train_jax, train_torch


@dataclass(frozen=True)
class Trainings:
    """The runs.

    Attributes:
        torch: torch with clipping, in float32.
        jax: JAX with clipping, in float32, from the same weights on the same batches.
        unclipped: torch, unclipped, otherwise the same.
        max_norm: The norm to which gradients were clipped.
    """

    torch: History
    jax: History
    unclipped: History
    max_norm: float

    @property
    def runs(self) -> dict[str, History]:
        """The runs, by name."""
        return {
            "torch": self.torch,
            "JAX": self.jax,
            "torch, unclipped": self.unclipped,
        }


def train_all(task: Task, watch: Watch) -> Trainings:
    """Train in torch, in JAX, and in torch without clipping.

    Args:
        task: The model, what it learns, and how.
        watch: Shows the progress of each run.

    Returns:
        The runs.
    """
    steps, max_norm = task.settings.steps, task.settings.max_norm
    kept = {*np.geomspace(1, steps, 24).round().astype(int).tolist()}
    with watch("torch", steps) as on_step:
        torch = train_torch(task, steps, max_norm=max_norm, keep=kept, on_step=on_step)
    with watch("JAX", steps) as on_step:
        jax = train_jax(task, steps, max_norm=max_norm, keep=kept, on_step=on_step)
    with watch("torch, unclipped", steps) as on_step:
        unclipped = train_torch(task, steps, max_norm=None, on_step=on_step)
    return Trainings(torch, jax, unclipped, max_norm)

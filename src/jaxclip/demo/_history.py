"""What a training run leaves behind."""

import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Weights = dict[str, Array]
"""The parameters of a model, under torch's names and in torch's layout."""

OnStep = Callable[[int, float], object]
"""Called after each step with how many there have been, and the loss."""

Watch = Callable[[str, int], AbstractContextManager[OnStep]]
"""Maps a run's name and the number of its steps to what shows its progress."""


@dataclass(frozen=True)
class History:
    """A training run, step by step.

    Attributes:
        losses: The loss before each step, in nats per character, ``(steps,)``, in
            the dtype of the run.
        grad_norms: The norm of the gradients before clipping, ``(steps,)``.
        clipped_norms: Their norm after clipping, ``(steps,)``.
        seconds: The time that each step took, ``(steps,)``. The first one includes
            what is done once: of JAX, the compilation.
        weights: The parameters after some of the steps, by the number of steps.
    """

    losses: Array
    grad_norms: Array
    clipped_norms: Array
    seconds: Array
    weights: Mapping[int, Weights]

    @property
    def last_loss(self) -> float:
        """The mean loss of the last twentieth of the steps; of one step, at least."""
        last = max(1, len(self.losses) // 20)
        return float(np.mean(self.losses[-last:]))

    @property
    def first_nonfinite(self) -> int | None:
        """The first step, from 1, whose loss is NaN or infinite; None if none is."""
        wrong = np.flatnonzero(~np.isfinite(self.losses))
        return int(wrong[0]) + 1 if wrong.size else None

    def clipped_share(self, max_norm: float) -> float:
        """The share of steps whose gradients were longer than ``max_norm``."""
        return float(np.mean(self.grad_norms > max_norm))


class Recorder:
    """Makes a `History`, one step at a time.

    The clock runs between the calls of ``record``, not during them.

    Args:
        dtype: The dtype of the run.
        keep: After how many steps the weights are kept.
        on_step: Called after each step.
    """

    def __init__(self, dtype: str, keep: Collection[int], on_step: OnStep) -> None:
        """Start the clock."""
        self._dtype = dtype
        self._keep = keep
        self._on_step = on_step
        self._rows: list[tuple[float, float, float, float]] = []
        self._weights: dict[int, Weights] = {}
        self._started = time.perf_counter()

    def record(
        self,
        loss: float,
        grad_norm: float,
        clipped_norm: float,
        weights: Callable[[], Weights],
    ) -> None:
        """Add a step; ``weights`` is called if they are to be kept."""
        seconds = time.perf_counter() - self._started
        self._rows.append((loss, grad_norm, clipped_norm, seconds))
        steps = len(self._rows)
        if steps in self._keep:
            self._weights[steps] = weights()
        self._on_step(steps, loss)
        self._started = time.perf_counter()

    def history(self) -> History:
        """Return what was recorded."""
        losses, grad_norms, clipped_norms, seconds = np.array(self._rows).T
        return History(
            losses.astype(self._dtype),
            grad_norms,
            clipped_norms,
            seconds,
            self._weights,
        )

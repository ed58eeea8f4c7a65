"""The runs of the language model: with clipping in both frameworks, and without."""

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from jaxclip.demo._agreement import Agreement, checkpoints, judge
from jaxclip.demo._history import History, OnStep
from jaxclip.demo._language_model import Task, make_task, train_jax, train_torch
from jaxclip.demo._settings import Settings
from jaxclip.demo._text import Corpus

Watch = Callable[[str, int], AbstractContextManager[OnStep]]
"""Maps a run's name and the number of its steps to what shows its progress."""


@dataclass(frozen=True)
class Trainings:
    """The runs, and the verdict on them.

    Attributes:
        torch: torch with clipping, in float32.
        jax: JAX with clipping, in float32, from the same weights on the same batches.
        unclipped: torch, unclipped, otherwise the same.
        torch64: The first steps of ``torch`` in float64.
        jax64: The first steps of ``jax`` in float64.
        max_norm: The norm to which gradients were clipped.
        agreement: Whether torch and JAX differ by rounding alone.
    """

    torch: History
    jax: History
    unclipped: History
    torch64: History
    jax64: History
    max_norm: float
    agreement: Agreement

    @property
    def runs(self) -> dict[str, History]:
        """The three runs in float32, by name."""
        return {
            "torch": self.torch,
            "JAX": self.jax,
            "torch, unclipped": self.unclipped,
        }


def train_all(settings: Settings, corpus: Corpus, watch: Watch) -> Trainings:
    """Train in torch, in JAX, and in torch without clipping; compare the first two.

    Args:
        settings: Sizes, learning rate and so on.
        corpus: The text.
        watch: Shows the progress of each run.

    Returns:
        The runs and the verdict.
    """
    task = make_task(settings, corpus)
    compared = checkpoints(settings.steps)
    few, all_ = compared[-1], settings.steps
    kept = {*compared, *np.geomspace(1, all_, 24).round().astype(int).tolist()}
    clip = settings.max_norm
    in_torch = functools.partial(_watched, train_torch, task, watch)
    in_jax = functools.partial(_watched, train_jax, task, watch)
    with _one_torch_thread():
        torch32 = in_torch("torch", all_, max_norm=clip, keep=kept)
        jax32 = in_jax("JAX", all_, max_norm=clip, keep=kept)
        unclipped = in_torch("torch, unclipped", all_, max_norm=None)
        exact = {"max_norm": clip, "keep": compared, "dtype": "float64"}
        torch64 = in_torch("torch in float64", few, **exact)
        jax64 = in_jax("JAX in float64", few, **exact)
    verdict = judge(clip, torch32=torch32, torch64=torch64, jax32=jax32, jax64=jax64)
    return Trainings(torch32, jax32, unclipped, torch64, jax64, clip, verdict)


def _watched(
    train: Callable[..., History],
    task: Task,
    watch: Watch,
    name: str,
    steps: int,
    **options: Any,
) -> History:
    """Train while ``watch`` shows how far it is."""
    with watch(name, steps) as on_step:
        return train(task, steps, on_step=on_step, **options)


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Let torch use one thread: on small steps its threads wait for each other.

    With two threads on two cores that others use as well, a run took 3 to 70 seconds
    where it takes 3 with one.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

"""The report of a verification."""

import itertools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxclip._files import write_whole
from jaxclip.parity._comparison import ParityError
from jaxclip.parity._html import _page
from jaxclip.parity._trace._records import LoopWarning, Run
from jaxclip.parity._verify._free_run import FreeRun
from jaxclip.parity._verify._report import _json, _table, _text
from jaxclip.parity._verify._report._difference import Difference
from jaxclip.parity._verify._report._results import (
    BATCH,
    STAGES,
    NotCompared,
    StageResult,
    TensorResult,
)
from jaxclip.parity._verify._report._words import TORCH, Words

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Report:
    """Whether a port trains as a recorded run did, and where the two part first.

    True exactly if all that was compared is the same.

    Attributes:
        trace: The path of the recording.
        dtype: The dtype of the recorded parameters.
        rule: By how much tensors may differ, in words.
        stages: The stages of every step, in the order in which they come about.
        free_run: The port training on by itself; None if it was not asked for.
        warnings: The mistakes of the recorded loop.
        notes: What else there is to say of the recording or of the port.
        run: What holds for the whole recorded run.
        difference: How the first divergent tensor differs, if its values could be
            compared.
        words: What the two sides are called.
    """

    trace: str
    dtype: str
    rule: str
    stages: tuple[StageResult, ...]
    free_run: FreeRun | None = None
    warnings: tuple[LoopWarning, ...] = ()
    notes: tuple[str, ...] = ()
    run: Run | None = None
    difference: Difference | None = None
    words: Words = TORCH

    # Where users import it from, which is what they should see.
    __module__ = "jaxclip.parity"

    def __post_init__(self) -> None:
        """Refuse to speak of nothing.

        Raises:
            ParityError: If nothing was compared but the weights, which were loaded,
                or the batch.
        """
        given = (BATCH, "weights")
        compared = (s for s in self.stages if s.tensors and s.stage not in given)
        if not any(compared) and self.first is None:
            reasons = {
                str(left) for stage in self.stages for left in stage.not_compared
            }
            raise ParityError(
                f"nothing was compared: of {self.trace!r} no stage could be held "
                f"against {self.words.port}. {'; '.join(sorted(reasons))}"
            )

    @property
    def passed(self) -> bool:
        """Whether all that was compared is the same."""
        return self.first is None and (self.free_run is None or self.free_run.passed)

    def __bool__(self) -> bool:
        """Whether all that was compared is the same."""
        return self.passed

    @property
    def verdict(self) -> str:
        """``"same"`` or ``"different"``."""
        return "same" if self.passed else "different"

    @property
    def failures(self) -> tuple[TensorResult, ...]:
        """All tensors that differ, the first divergent one first."""
        return tuple(tensor for stage in self.stages for tensor in stage.failures)

    @property
    def first(self) -> TensorResult | None:
        """The tensor with which the two part, with its step, stage and module."""
        return next(iter(self.failures), None)

    @property
    def last_same(self) -> TensorResult | None:
        """What a module returned last before the first divergence, and is the same.

        A fault in what the modules compute lies after it. None if nothing came before,
        or if the first divergence comes after the loss.
        """
        first = self.first
        if first is None or first.stage not in ("activations", "output", "loss"):
            return None
        own = (s for s in self.of_stage("activations") if s.step == first.step)
        tensors = (tensor for stage in own for tensor in stage.tensors)
        same = [*itertools.takewhile(lambda tensor: tensor.passed, tensors)]
        return same[-1] if same else None

    @property
    def steps(self) -> tuple[int, ...]:
        """The numbers of the steps that were compared."""
        return tuple(dict.fromkeys(stage.step for stage in self.stages))

    @property
    def kinks(self) -> tuple[tuple[int, str], ...]:
        """The kinks that rounding decided otherwise in the two, with their steps."""
        return tuple(
            (stage.step, kink) for stage in self.stages for kink in stage.kinks
        )

    @property
    def not_compared(self) -> tuple[tuple[str, NotCompared], ...]:
        """What was compared in no step, with its stage."""
        found = dict.fromkeys(
            (stage.stage, left) for stage in self.stages for left in stage.not_compared
        )
        return tuple(sorted(found, key=lambda item: self.stage_names.index(item[0])))

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The names of the stages, in order."""
        both_given = any(stage.stage == BATCH for stage in self.stages)
        return (BATCH, *STAGES) if both_given else STAGES

    def of_stage(self, stage: str) -> tuple[StageResult, ...]:
        """Return what was found of a stage, step by step.

        Args:
            stage: One of ``"weights"``, ``"activations"``, ``"output"``, ``"loss"``,
                ``"gradients"``, ``"total norm"``, ``"clipped gradients"``,
                ``"update"``, ``"optimizer state"``, ``"parameters after"`` and
                ``"buffers after"``; and ``"batch"``, where two recordings were
                compared.
        """
        if stage not in (BATCH, *STAGES):
            raise ValueError(
                f"stage is {stage!r}; it must be one of {', '.join((BATCH, *STAGES))}."
            )
        return tuple(each for each in self.stages if each.stage == stage)

    def raise_if_different(self) -> None:
        """Raise a `ParityError` that holds the report, if anything differs."""
        __tracebackhide__ = True
        if not self.passed:
            raise ParityError(str(self))

    def __str__(self) -> str:
        """Write the report as plain text."""
        return _text.text(self)

    def __rich__(self) -> "RenderableType":
        """Draw the report for a terminal."""
        return _table.table(self)

    def print(self) -> None:
        """Print the report with colours, if the terminal has them.

        Raises:
            ImportError: If rich is not installed.
        """
        _table.show(self)

    def to_json(self) -> dict[str, Any]:
        """Return the report as what JSON has: dicts, lists, strings and numbers.

        ``format`` and ``version`` come first; a number that JSON lacks is a string,
        ``"nan"``, ``"inf"`` or ``"-inf"``. The rest is: ``verdict``; ``first``, a
        tensor or null; ``last_same``, a name or null; ``trace``, ``dtype``, ``rule``,
        ``steps``; ``stages``, each with ``step``, ``stage``, ``verdict``, ``tensors``,
        ``not_compared``, ``notes``, ``kinks``; ``free_run``, with ``passed``,
        ``growth``, ``steps``, or null; ``warnings`` and ``notes``; ``run``, with the
        fields of ``Run``, or null; ``difference``, with those of ``Difference``, or
        null. A tensor has ``step``, ``stage``, ``name``, ``module``, ``passed``,
        ``detail``, ``hint`` and its figures, as ``TensorResult`` names them, with
        ``share``, the ratio over what is allowed. The version counts up when a field
        is taken away or changes its meaning, not when one is added.
        """
        return _json.plain(self)

    def save_json(self, path: str | os.PathLike[str]) -> None:
        """Write the report as a JSON file, whole or not at all."""
        text = _json.dumps(self)
        write_whole(Path(path), lambda file: file.write(text.encode()))

    def to_html(self) -> str:
        """Return the report as a page of HTML, complete in itself.

        It has what the JSON has, drawn: the stages, the modules, the tensors in a table
        that sorts and filters, how the first divergent tensor differs, and the free
        run. It asks for nothing from anywhere, and does not need JavaScript to say the
        verdict and the first divergence.
        """
        return _page.page(self)

    def save_html(self, path: str | os.PathLike[str]) -> None:
        """Write the report as a page of HTML, whole or not at all."""
        text = self.to_html()
        write_whole(Path(path), lambda file: file.write(text.encode()))

"""The first steps of the training in torch, recorded, and computed anew in JAX.

In float32 the recording is held against the rounding noise of the port. A recording in
float64 settles it: rounding is 2**29 times finer there, and a mistake is not.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxclip.demo._history import OnStep, Watch
from jaxclip.demo._language_model import Task, port, record_torch
from jaxclip.parity import Report, Trace, open_trace, verify

STEPS = 10
"""How many steps are recorded. Each is compared by itself, from torch's own state."""


@dataclass(frozen=True)
class Proof:
    """Whether JAX takes the steps that torch took.

    Attributes:
        float32: The report on the recording in float32.
        float64: The same in float64.
        clipped: How many of the recorded steps were clipped.
    """

    float32: Report
    float64: Report
    clipped: int

    @property
    def reports(self) -> Mapping[str, Report]:
        """The reports, by the dtype of the recording."""
        return {"float32": self.float32, "float64": self.float64}

    @property
    def equal(self) -> bool:
        """Whether torch and JAX differ by rounding alone."""
        return all(self.reports.values())

    @property
    def report(self) -> Report:
        """The report to read: that in float32, unless float64 alone shows something."""
        return self.float64 if self.float32 and not self.float64 else self.float32

    def __str__(self) -> str:
        """Say the verdict, and what it rests on."""
        steps = len(self.float32.steps)
        recorded = f"{steps} recorded step{'s' * (steps != 1)}"
        differing = [name for name, report in self.reports.items() if not report]
        if differing:
            return (
                f"NOT equal: of {recorded}, torch's and JAX's differ in "
                f"{' and in '.join(differing)}; see the report"
            )
        worst = {name: greatest(report) for name, report in self.reports.items()}
        return (
            f"equal, up to rounding: in {recorded}, {self.clipped} of them clipped, "
            "no activation, gradient, update or parameter of torch's differs from "
            f"JAX's by more than {worst['float32']:.1e} in float32 and "
            f"{worst['float64']:.1e} in float64, relative to its norm"
        )


def prove(task: Task, folder: Path, watch: Watch) -> Proof:
    """Record torch's first steps in both dtypes, and verify them in JAX.

    Args:
        task: The model and what it learns.
        folder: Where the recordings go: ``float32.trace`` and ``float64.trace``, in
            the place of recordings that are there.
        watch: Shows the progress.

    Returns:
        What was found.

    Raises:
        OSError: If a recording cannot be written.
    """
    steps = min(STEPS, task.settings.steps)
    traces: dict[str, Trace] = {}
    reports: dict[str, Report] = {}
    for dtype in ("float32", "float64"):
        path = folder / f"{dtype}.trace"
        with watch(f"record, {dtype}", steps) as on_step:
            record_torch(task, steps, path, dtype=dtype, on_step=on_step)
        traces[dtype] = open_trace(path)
        with watch(f"verify, {dtype}", steps) as on_step:
            reports[dtype] = _verified(traces[dtype], task, on_step)
    norms = [step.total_norm for step in traces["float32"]]
    max_norm = task.settings.max_norm
    clipped = sum(norm is not None and float(norm) > max_norm for norm in norms)
    return Proof(**reports, clipped=clipped)


def _verified(trace: Trace, task: Task, on_step: OnStep) -> Report:
    losses = [float(step.loss[0]) for step in trace]

    def show(done: int, total: int) -> None:
        on_step(done, losses[done - 1])

    # Without a bound on the learning rate both may end in NaN, and are the same.
    return verify(trace, port(task), equal_nan=True, on_step=show)


def greatest(report: Report) -> float:
    """Return the greatest relative L2 difference of a tensor."""
    return max(
        tensor.relative_l2
        for stage in report.stages
        for tensor in stage.tensors
        if tensor.relative_l2 == tensor.relative_l2
    )

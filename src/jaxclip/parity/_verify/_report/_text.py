"""A report as plain text."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from jaxclip.parity._verify._report._results import (
    NotCompared,
    StageResult,
    TensorResult,
)
from jaxclip.parity._verify._report._words import TORCH, Words

if TYPE_CHECKING:
    from jaxclip.parity._verify._report._report import Report

MOST = 20
"""How many tensors that differ are written out; all of them are in the JSON."""


SHOWN = 3
"""How many of those that were not compared for the same reason are named."""


def text(report: "Report") -> str:
    """Write the verdict, the first divergence, the stages, and what differs."""
    lines = [*headline(report), "", f"{'stage':<18}  {'verdict':<12}  worst"]
    for stage in report.stage_names:
        lines.append(_row(stage, report.of_stage(stage), report.words))
    if report.free_run is not None:
        lines.append(f"{'free run':<18}  {_free(report):<12}  {report.free_run}")
    failures = report.failures
    if failures:
        lines += ["", f"What differs, {len(failures)} tensors:"]
        lines += [f"  {place(t)}: {t}" for t in failures[:MOST]]
        if len(failures) > MOST:
            lines.append(f"  ... and {len(failures) - MOST} more (see to_json)")
    lines += remarks(report)
    return "\n".join(lines)


def headline(report: "Report") -> Iterator[str]:
    """Yield the verdict, and where the two part first."""
    steps = f"{len(report.steps)} step{'s' * (len(report.steps) != 1)}"
    if report.passed:
        count = len(report.kinks)
        but = f", up to {count} kink{'s' * (count > 1)}" if count else ""
        yield (
            f"SAME in all that was compared{but}: {report.trace}, {steps}, "
            f"{report.dtype}"
        )
    else:
        yield f"DIFFERENT: {report.trace}, {steps}, {report.dtype}"
    first = report.first
    if first is not None:
        yield f"First divergence: {place(first)}: {first.name}"
        yield f"  {first.detail}" + (f"; {first.hint}" if first.hint else "")
        if report.last_same is not None:
            yield f"  the last before it that is the same: {report.last_same.name}"
    elif not report.passed:
        yield f"First divergence: the free run: {report.free_run}"
    yield f"Allowed: {report.rule}"


def place(tensor: TensorResult) -> str:
    """Say in which step, stage and module a tensor is."""
    module = f", module {tensor.module!r}" if tensor.module else ""
    return f"step {tensor.step}, {tensor.stage}{module}"


def remarks(report: "Report") -> list[str]:
    """Say what was not compared, what to know, and what the loop did wrong."""
    lines = []
    if report.not_compared:
        lines += ["", "Not compared:"]
        for stage, reason, names in by_reason(report.not_compared):
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            listed = f"{', '.join(names[:SHOWN])}{more}: " if names else ""
            lines.append(f"  {stage}: {listed}{reason}")
    if report.kinks:
        lines += ["", "Kinks that rounding decided otherwise in the two:"]
        lines += [f"  step {step}: {kink}" for step, kink in report.kinks]
    notes = dict.fromkeys(
        [*report.notes, *(note for stage in report.stages for note in stage.notes)]
    )
    if notes:
        lines += ["", "Notes:", *(f"  {note}" for note in notes)]
    if report.warnings:
        lines += ["", "Mistakes of the recorded loop:"]
        lines += [f"  {warning}" for warning in report.warnings]
    return lines


def by_reason(
    left: Iterable[tuple[str, NotCompared]],
) -> Iterator[tuple[str, str, list[str]]]:
    """Yield stages, reasons, and what was not compared there for that reason.

    Example:
        >>> left = [NotCompared("fc1", "unknown"), NotCompared("fc2", "unknown")]
        >>> [*by_reason(("activations", each) for each in left)]
        [('activations', 'unknown', ['fc1', 'fc2'])]
    """
    found: dict[tuple[str, str], list[str]] = {}
    for stage, each in left:
        names = found.setdefault((stage, each.reason), [])
        if each.name:
            names.append(each.name)
    for (stage, reason), names in found.items():
        yield stage, reason, names


def summary(stages: tuple[StageResult, ...], words: Words = TORCH) -> tuple[str, str]:
    """Return the verdict on a stage over all steps, and its worst tensor."""
    tensors = [tensor for stage in stages for tensor in stage.tensors]
    failed = [tensor for tensor in tensors if not tensor.passed]
    if not tensors:
        reasons = dict.fromkeys(left.reason for s in stages for left in s.not_compared)
        return "not compared", "; ".join(reasons)
    worst = max(failed or tensors, key=lambda tensor: tensor.ratio)
    counts = f"{len(failed)} of {len(tensors)} differ" if failed else "same"
    if worst.relative_l2 != worst.relative_l2:  # NaN: there are no figures
        return counts, f"{worst.name}: {worst.detail}"
    said = f"{worst.name} (step {worst.step}): relative L2 {worst.relative_l2:.2g}"
    if worst.torch_error == worst.torch_error:
        recorded, port = words.labels
        said += (
            f", from float64 {recorded} {worst.torch_error:.2g} and {port} "
            f"{worst.port_error:.2g}"
        )
    return counts, said


def _row(stage: str, stages: tuple[StageResult, ...], words: Words) -> str:
    verdict, worst = summary(stages, words)
    verdict = verdict if verdict in ("same", "not compared") else "DIFFERENT"
    return f"{stage:<18}  {verdict:<12}  {worst}"


def _free(report: "Report") -> str:
    run = report.free_run
    if run is None or not run.steps:
        return "not compared"
    return "same" if run.passed else "DIFFERENT"

"""The public function: a recording against another one."""

import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from jaxclip.convert._names import target_names
from jaxclip.parity._arrays import is_float
from jaxclip.parity._trace._reader import Trace, open_trace
from jaxclip.parity._trace._step import Step
from jaxclip.parity._verify._judge._rules import Rule
from jaxclip.parity._verify._report._report import Report
from jaxclip.parity._verify._report._results import StageResult
from jaxclip.parity._verify._report._words import TRACES
from jaxclip.parity._verify._traces._held import Names
from jaxclip.parity._verify._traces._trace_rules import TraceRule
from jaxclip.parity._verify._traces._trajectories import Trajectories

AnyTrace = str | os.PathLike[str] | Trace


def compare_traces(
    reference: AnyTrace,
    candidate: AnyTrace,
    *,
    exact: AnyTrace | None = None,
    steps: int | Iterable[int] | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    factor: float = 4.0,
    equal_nan: bool = False,
    rename: Any = None,
) -> Report:
    """Compare two recordings of the same training, step by step; run nothing.

    Both are of torch, or both of JAX: of two versions or devices, of a loop before and
    after it was changed. Stage by stage, the candidate is held against the reference:
    the batch first, then the weights and the optimizer's state that the two begin
    with, and all that follows.

    Differs from ``verify``, which computes each step anew from the recorded state: here
    each run goes on from what it had made itself, so that what parts once stays apart.
    It is the first divergence that counts.

    By how much they may differ cannot be told from two recordings, which do not say
    what rounding does. So they are to be equal to the bit, unless there is a third:
    ``exact``, of the same run in float64, from the same weights and batches. The
    rounding noise is then the distance of the reference from that, or 4 ulps, and the
    candidate may be ``factor`` times as far; 250 times more in a step that the two
    began with other weights, and where an optimizer was given other gradients, as there
    the distances are those of whole runs. Both the L2 norm and the greatest element
    are asked. Or ``rtol`` and ``atol`` say it.

    Args:
        reference: The recording to go by, or its path.
        candidate: The recording that is to be the same.
        exact: A recording of the reference's run in float64.
        steps: The numbers of the steps to compare, or how many of the first; by
            default all that both have.
        rtol: A relative tolerance for all stages; with ``atol``.
        atol: An absolute tolerance, with ``rtol``.
        factor: How many times the noise is allowed, with ``exact``.
        equal_nan: Whether NaN equals NaN.
        rename: How the reference's names of modules and parameters become the
            candidate's, as ``Port`` takes it.

    Returns:
        The report; true if all that was compared is the same. Its ``torch_error`` and
        ``port_error`` are those of the reference and of the candidate.

    Raises:
        ParityError: If there is nothing to compare.
        FileNotFoundError: If there is no such recording.
        ValueError: If a recording is damaged; if the two have no step in common, or
            are of two frameworks; if ``exact`` is no run of the same in float64; if a
            tolerance is none.

    Example:
        >>> import tempfile, torch
        >>> from jaxclip.parity import compare_traces, record
        >>> def run(lr, dtype=torch.float32):
        ...     generator = torch.Generator().manual_seed(0)
        ...     model = torch.nn.Linear(3, 1).to(dtype)
        ...     torch.nn.init.ones_(model.weight)
        ...     torch.nn.init.zeros_(model.bias)
        ...     optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        ...     path = tempfile.mkdtemp()
        ...     with record(path, model, optimizer) as run:
        ...         for _ in range(2):
        ...             x = torch.randn(4, 3, generator=generator).to(dtype)
        ...             with run.step(x=x):
        ...                 optimizer.zero_grad()
        ...                 model(x).square().mean().backward()
        ...                 optimizer.step()
        ...     return path
        >>> bool(compare_traces(run(0.1), run(0.1)))
        True
        >>> report = compare_traces(run(0.1), run(0.2), exact=run(0.1, torch.float64))
        >>> report.first.stage, report.first.hint
        ('update', 'the candidate has 2 times what the reference has')
    """
    rule = TraceRule(exact is not None, Rule(factor, equal_nan, rtol, atol))
    if exact is not None and rtol is not None:
        raise ValueError(
            "compare_traces(exact=..., rtol=...): the one measures the rounding noise, "
            "the other says what is allowed; give one of them."
        )
    traces = _opened(reference), _opened(candidate)
    ours, theirs = traces
    frameworks = [trace.run.framework for trace in traces]
    if frameworks[0] != frameworks[1]:
        raise ValueError(
            f"reference is a run of {frameworks[0]}, and candidate one of "
            f"{frameworks[1]}, whose names and layouts are others: verify() holds a "
            "port against a recording."
        )
    third = None if exact is None else _opened(exact)
    numbers = _numbers(ours, theirs, third, steps)
    names = Names(rename)
    exact_names = Names(None)
    found: list[StageResult] = []
    for number in numbers:
        step, other = _step(ours, number), _step(theirs, number)
        precise = None if third is None else _step(third, number)
        first = number == numbers[0]
        if first:
            _check_names(names, step)
        if precise is not None:
            if first:
                exact_names = _exact_names(step, precise, names)
                _check_dtypes(step, precise)
            _check_exact(step, precise, exact_names, first=first)
        found += Trajectories(
            *(step, other, precise, (ours.run, theirs.run), rule, names, exact_names),
            fresh=first or number - 1 not in numbers,
        ).stages()
    return Report(
        trace=f"{ours.path} and {theirs.path}",
        dtype=", ".join(ours.run.dtypes),
        rule=str(rule),
        stages=tuple(found),
        warnings=tuple(dict.fromkeys((*ours.warnings, *theirs.warnings))),
        notes=tuple(_notes(ours, theirs, rule, found)),
        run=ours.run,
        words=TRACES,
    )


def _opened(trace: AnyTrace) -> Trace:
    return trace if isinstance(trace, Trace) else open_trace(trace)


def _step(trace: Trace, number: int) -> Step:
    return trace[trace.numbers.index(number)]


def _numbers(
    ours: Trace, theirs: Trace, exact: Trace | None, steps: int | Iterable[int] | None
) -> list[int]:
    """Return the numbers of the steps to compare."""
    common = [number for number in ours.numbers if number in theirs.numbers]
    if not common:
        raise ValueError(
            f"there is no step to compare: {str(ours.path)!r} has the steps "
            f"{_listed(ours.numbers)}, and {str(theirs.path)!r} "
            f"{_listed(theirs.numbers)}."
        )
    if isinstance(steps, int):
        if steps < 1:
            raise ValueError(f"compare_traces(steps={steps}): compare 1 step at least.")
        common = common[:steps]
    elif steps is not None:
        wanted = sorted({*steps})
        missing = [number for number in wanted if number not in common]
        if missing or not wanted:
            raise ValueError(
                f"compare_traces(steps={wanted}): both have the steps "
                f"{_listed(common)}."
            )
        common = wanted
    if exact is not None:
        lacking = [number for number in common if number not in exact.numbers]
        if lacking:
            raise ValueError(
                f"exact has no step {_listed(lacking)}: record as many steps in "
                "float64, or compare fewer (steps=)."
            )
    return common


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"


def _check_names(names: Names, step: Step) -> None:
    """Raise an error if a rename is none."""
    _, problems = target_names([*step.params, *step.buffers], names.rename, ())
    if problems:
        raise ValueError(f"compare_traces(rename=...): {' '.join(problems)}")


def _exact_names(step: Step, precise: Step, names: Names) -> Names:
    """Say whose names the run in float64 has: the reference's, or the candidate's."""
    return Names(None) if {*step.params} == {*precise.params} else names


def _check_dtypes(step: Step, precise: Step) -> None:
    """Raise an error if a run leaves nothing to measure, or is not in float64."""
    wide = {str(a.dtype) for a in precise.params.values() if is_float(a)}
    if wide - {"float64"} or not precise.params:
        raise ValueError(
            f"exact is a run in {', '.join(sorted(wide)) or 'no known dtype'}; it must "
            "be one in float64, with its parameters."
        )
    if any(a.dtype == np.float64 for a in step.params.values()):
        raise ValueError(
            "reference is in float64, which has no rounding noise that exact= could "
            "measure: give rtol and atol, or neither."
        )


def _check_exact(step: Step, precise: Step, names: Names, *, first: bool) -> None:
    """Raise an error if a run in float64 is of something else."""
    given = {"batch": (step.batch, precise.batch)}
    if first:
        given |= {
            "params": (step.params, precise.params),
            "buffers": (step.buffers, precise.buffers),
        }
    for stage, (ours, its) in given.items():
        for name, array in ours.items():
            own = name if stage == "batch" else names("weights", name)
            other = its.get(own)
            if other is None and stage == "batch" and not its:
                continue
            if (
                other is None
                or other.shape != array.shape
                or not np.array_equal(
                    other.astype(array.dtype), array, equal_nan=is_float(array)
                )
            ):
                raise ValueError(
                    f"exact is not the reference's run in float64: in step "
                    f"{step.number} its {stage} {own!r} is another. Start both from "
                    "the same weights, and give them the same batches."
                )


def _notes(
    ours: Trace, theirs: Trace, rule: TraceRule, found: Iterable[StageResult]
) -> Iterator[str]:
    """Say what is to be known of the recordings."""
    for word, trace in zip(TRACES, (ours, theirs), strict=True):
        if not trace.finished:
            yield f"{word}'s run did not come to its end"
    for word, trace, other in ((TRACES[0], ours, theirs), (TRACES[1], theirs, ours)):
        alone = [number for number in trace.numbers if number not in other.numbers]
        if alone:
            yield f"steps that {word} alone has: {_listed(alone)}"
    for what in ("versions", "settings"):
        mine, others = getattr(ours.run, what), getattr(theirs.run, what)
        for key in dict.fromkeys((*mine, *others)):
            if mine.get(key) != others.get(key):
                yield (
                    f"{key}: {mine.get(key)} in the reference, {others.get(key)} in "
                    "the candidate"
                )
    if ours.run.optimizer != theirs.run.optimizer:
        yield (
            f"optimizer: {ours.run.optimizer} in the reference, "
            f"{theirs.run.optimizer} in the candidate"
        )
    differs = any(stage.failures for stage in found)
    if differs and not rule.exact and rule.rule.rtol is None:
        yield (
            "Two recordings do not tell rounding from a fault: exact=, a recording of "
            "the run in float64, does."
        )

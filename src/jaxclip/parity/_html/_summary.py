"""The verdict, the first divergence, and what was compared."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from jaxclip.parity._html._figures import count, level, number
from jaxclip.parity._html._markup import Markup, el, join, name_of
from jaxclip.parity._verify._report._results import TensorResult
from jaxclip.parity._verify._report._words import TRACES, Words

if TYPE_CHECKING:
    from jaxclip.parity._verify._report._report import Report


def recorded_side(report: "Report") -> str:
    """Return what the recorded side is called."""
    return report.words.recorded


def verdict(report: "Report") -> Markup:
    """Build the verdict, with where the two part, as the head of the page."""
    said = ["Same in all that was compared"] if report.passed else ["Different"]
    if report.passed and report.kinks:
        counted = count(len(report.kinks), "kink")
        said += [", up to ", el("a", counted, href="#kinks")]
    return el(
        "div",
        el("p", "jaxclip parity report", class_="eyebrow"),
        el("h1", icon(report.passed), el("span", *said)),
        el("p", _lead(report), class_="lead"),
        class_=f"verdict {report.verdict}",
    )


def icon(passed: bool | None) -> Markup:
    """Draw a tick, a cross, or a dash for what was not compared."""
    shape = {True: "tick", False: "cross", None: "dash"}[passed]
    use = el("use", href=f"#{shape}")
    return el(
        "svg", use, class_=f"icon {shape}", viewBox="0 0 16 16", aria_hidden="true"
    )


def _lead(report: "Report") -> Markup:
    first, run, port = report.first, report.free_run, report.words.port
    if first is not None:
        return join(
            f"{port[0].upper()}{port[1:]} and {recorded_side(report)} part at step "
            f"{first.step}, in ",
            el("strong", first.stage),
            *(
                (" of ", name_of(first.module))
                if first.module
                else (": ", name_of(first.name))
            ),
            ".",
        )
    if run is not None and not run.passed:
        return join("Every step is right by itself, and the free run parts.")
    tensors = count(sum(len(stage.tensors) for stage in report.stages), "tensor")
    return join(
        f"{tensors} over {count(len(report.steps), 'step')}, each as near to "
        f"{recorded_side(report)} as rounding lets it be."
        if "noise" in report.rule
        else f"{tensors} over {count(len(report.steps), 'step')}, within {report.rule}."
    )


def first_divergence(report: "Report") -> Markup:
    """Build what is known of the first tensor that differs."""
    first, run = report.first, report.free_run
    if first is not None:
        heading, parts = "First divergence", [*_of_tensor(report, first)]
    elif run is not None and not run.passed:
        heading = "First divergence"
        parts = [el("p", "The free run: ", str(run), class_="detail")]
    else:
        heading, parts = "Nearest to the limit", [*_nearest(report)]
    return el(
        "section",
        el("h2", heading, id="h-first"),
        *parts,
        id="first",
        aria_labelledby="h-first",
    )


def _of_tensor(report: "Report", first: TensorResult) -> Iterator[Markup]:
    yield _place(first)
    yield el("p", first.detail, class_="detail")
    if first.hint:
        yield el("p", el("b", "Looks like: "), first.hint, class_="hint")
    if report.last_same is not None:
        said = "The last before it that is the same: "
        yield el("p", said, el("b", report.last_same.name), class_="aside")
    yield from _stats(first, report.words)
    others = len(report.failures) - 1
    if others:
        yield el(
            "p",
            f"{count(others, 'more tensor')} differ{'s' * (others == 1)}: ",
            el("a", "all of them", href="#tensors"),
            ". Each run goes on from what it made itself, so that it is the first that "
            "counts."
            if report.words == TRACES
            else ". Each stage is given what the recording has, so that a fault shows "
            "where it is.",
            class_="aside",
        )


def _nearest(report: "Report") -> Iterator[Markup]:
    tensors = [t for stage in report.stages for t in stage.tensors]
    nearest = max(tensors, key=lambda t: t.share if t.share == t.share else 0.0)
    yield _place(nearest)
    yield el("p", nearest.detail, class_="detail")
    yield from _stats(nearest, report.words)


def _place(tensor: TensorResult) -> Markup:
    steps = [
        ("Step", f"{tensor.step}"),
        ("Stage", tensor.stage),
        ("Module", name_of(tensor.module) if tensor.module else "the model itself"),
        ("Tensor", name_of(tensor.name)),
    ]
    return el(
        "dl",
        *(el("div", el("dt", term), el("dd", value)) for term, value in steps),
        class_="place",
    )


def _stats(tensor: TensorResult, words: Words) -> Iterator[Markup]:
    if math.isnan(tensor.relative_l2):  # nothing was measured
        return
    found = tensor.comparison
    rows: list[tuple[str, str, str]] = [
        ("Times what is allowed", number(tensor.share), ""),
        ("Relative L2", number(tensor.relative_l2), ""),
        ("Cosine", number(tensor.cosine, 7), ""),
        (
            "Greatest difference",
            number(found.max_abs_diff),
            f"at {index(found.max_abs_index)}" if found.max_abs_index else "",
        ),
        ("Elements that differ", f"{tensor.mismatched:,}", f"of {tensor.size:,}"),
        (
            "Ulps apart",
            "—" if found.max_ulps is None else number(float(found.max_ulps)),
            "at most",
        ),
        ("From float64", number(tensor.torch_error), words.recorded),
        ("From float64", number(tensor.port_error), words.port),
    ]
    of = level(tensor.share, tensor.passed)
    yield el(
        "dl",
        *(
            el(
                "div",
                el("dt", term),
                el(
                    "dd",
                    el("b", value, class_="" if at else of),
                    el("span", " ", more) if more else None,
                ),
            )
            for at, (term, value, more) in enumerate(rows)
        ),
        class_="stats",
    )


def index(of: tuple[int, ...]) -> str:
    """Write an index as NumPy takes it."""
    return f"[{', '.join(map(str, of))}]"


def facts(report: "Report") -> Markup:
    """Build what was compared, and with what."""
    return el(
        "section",
        el("h2", "What was compared", id="h-facts"),
        el(
            "dl",
            *(
                el("div", el("dt", term), el("dd", value))
                for term, value in _facts(report)
            ),
            class_="facts",
        ),
        id="facts",
        aria_labelledby="h-facts",
    )


def _facts(report: "Report") -> Iterator[tuple[str, str]]:
    run = report.run
    yield "Recording", name_of(report.trace)
    if run is not None:
        others = [f"{name} {version}" for name, version in run.versions.items()]
        yield "Recorded with", ", ".join(others) or run.framework
        if run.modules:
            kind = run.modules[0].type
            named = count(len(run.modules), "module")
            yield "Model", f"{kind}, {named}" if kind else named
        yield "Optimizer", run.optimizer.rpartition(".")[2]
        if run.schedulers:
            names = (name.rpartition(".")[2] for name in run.schedulers)
            yield "Scheduler", ", ".join(names)
    yield "Parameters", report.dtype
    yield "Steps", steps_in_words(report.steps)
    yield "Tensors", f"{sum(len(stage.tensors) for stage in report.stages):,}"
    yield "Allowed", report.rule


def steps_in_words(steps: tuple[int, ...]) -> str:
    """Say which steps there are.

    Example:
        >>> steps_in_words((0, 1, 2, 5, 7, 8))
        '0 to 2, 5, 7 and 8'
    """
    ranges: list[list[int]] = []
    for step in steps:
        if ranges and step == ranges[-1][-1] + 1:
            ranges[-1].append(step)
        else:
            ranges.append([step])
    words = []
    for numbers in ranges:
        if len(numbers) > 2:
            words.append(f"{numbers[0]} to {numbers[-1]}")
        else:
            words += map(str, numbers)
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last

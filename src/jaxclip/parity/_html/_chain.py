"""The step as a chain of stages, and every stage of every step."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxclip.parity._html._figures import LEGEND, brief, level, number
from jaxclip.parity._html._markup import Markup, el, join, name_of
from jaxclip.parity._html._summary import icon
from jaxclip.parity._verify._report._results import StageResult, TensorResult

if TYPE_CHECKING:
    from jaxclip.parity._verify._report._report import Report

_LEAST, _MOST = -3, 6
"""Between which powers of ten of what is allowed a bar is drawn."""


def worst(tensors: Sequence[TensorResult]) -> TensorResult | None:
    """Return the tensor furthest beyond what is allowed, of those that differ if any.

    Args:
        tensors: The tensors, of which there may be none.
    """
    failed = [tensor for tensor in tensors if not tensor.passed]
    return max(
        failed or tensors,
        key=lambda tensor: -1.0 if math.isnan(tensor.share) else tensor.share,
        default=None,
    )


def chain(report: "Report") -> Markup:
    """Build the chain of stages, each with its worst tensor of all steps."""
    rows = [_stage(stage, report.of_stage(stage)) for stage in report.stage_names]
    head = el(
        "tr",
        el("th", "Stage", scope="col"),
        el(
            "th",
            "Times what is allowed",
            el("span", " (log scale, with a mark at 1)"),
            scope="col",
        ),
        el("th", "Worst tensor", scope="col"),
    )
    parts = [
        el("h2", "The step, stage by stage", id="h-stages"),
        el(
            "table",
            el("caption", "The stages of a step, in order, over all steps"),
            el("thead", head),
            el("tbody", *rows),
            class_="chain",
        ),
    ]
    if len(report.steps) > 1:
        parts.append(_every_step(report))
    parts.append(legend())
    return el("section", *parts, id="stages", aria_labelledby="h-stages")


def legend() -> Markup:
    """Build the key to the levels."""
    return el(
        "div",
        el("span", "Times what is allowed:", class_="key"),
        el("ol", *(el("li", text, class_=name) for name, text in LEGEND)),
        class_="legend",
    )


def _stage(name: str, stages: tuple[StageResult, ...]) -> Markup:
    tensors = [tensor for stage in stages for tensor in stage.tensors]
    found = worst(tensors)
    if found is None:
        reasons = dict.fromkeys(str(n) for stage in stages for n in stage.not_compared)
        said = "; ".join(reasons)
        return el(
            "tr",
            _node(name, None, "none"),
            el("td", said, colspan=2, class_="why"),
            class_="none",
        )
    failed = sum(not tensor.passed for tensor in tensors)
    of = level(found.share, found.passed)
    counted = f"{failed:,} of {len(tensors):,} differ" if failed else "same"
    return el(
        "tr",
        _node(name, not failed, of, counted),
        el("td", bar(found), class_="measure"),
        el(
            "td",
            name_of(found.name),
            el("span", f" step {found.step}", class_="at"),
            class_="worst",
        ),
        class_="" if found.passed else "differs",
    )


def _node(name: str, passed: bool | None, of: str, counted: str = "") -> Markup:
    link = el("a", name, href="#h-tensors", data_stage=name) if counted else name
    return el(
        "th",
        el("span", icon(passed), class_=f"node {of}"),
        el("span", link, el("small", counted or "not compared"), class_="label"),
        scope="row",
    )


def bar(tensor: TensorResult) -> Markup:
    """Draw a share of what is allowed as a bar, with a mark at 1."""
    share = 0.0 if math.isnan(tensor.share) else tensor.share
    width = 90.0  # ten a power of ten
    power = math.log10(share) if 0 < share < math.inf else (_MOST if share else _LEAST)
    length = max(1.5, min(width, 10 * (power - _LEAST)))
    of = level(share, tensor.passed)
    drawn = el(
        "svg",
        el("rect", class_="track", width="90", height="6", rx="1"),
        el("rect", class_=f"fill {of}", width=f"{length:.1f}", height="6", rx="1"),
        el("line", class_="limit", x1="30", x2="30", y1="-2", y2="8"),
        viewBox="-1 -3 92 12",
        class_="bar",
        aria_hidden="true",
        preserveAspectRatio="none",
    )
    return join(drawn, el("span", number(tensor.share), class_="figure"))


def _every_step(report: "Report") -> Markup:
    by_place = {(stage.step, stage.stage): stage for stage in report.stages}
    head = el(
        "tr",
        el("th", "Step", scope="col"),
        *(el("th", f"{step}", scope="col") for step in report.steps),
    )
    rows = [
        el(
            "tr",
            el("th", stage, scope="row"),
            *(_cell(stage, step, by_place.get((step, stage))) for step in report.steps),
        )
        for stage in report.stage_names
    ]
    return join(
        el("h3", "Step by step", id="h-steps"),
        el(
            "div",
            el(
                "table",
                el(
                    "caption",
                    "The worst tensor of each stage in each step, as times what is "
                    "allowed. A cell leads to its tensors.",
                ),
                el("thead", head),
                el("tbody", *rows),
                class_="steps",
            ),
            class_="scroll",
            role="region",
            aria_labelledby="h-steps",
            tabindex=0,
        ),
    )


def _cell(name: str, step: int, stage: StageResult | None) -> Markup:
    found = worst(stage.tensors) if stage else None
    if found is None:
        return el("td", el("span", "–", title="not compared"), class_="none")  # noqa: RUF001
    passed = stage is not None and not stage.failures
    verdict = "same" if passed else "differs"
    link = el(
        "a",
        brief(found.share),
        el("span", f" times what is allowed: {verdict}", class_="hidden"),
        href="#h-tensors",
        data_stage=name,
        data_step=step,
    )
    marks = "" if passed else " differs"
    return el("td", link, class_=f"{level(found.share, passed)}{marks}")

"""The free run: the losses, and how the parameters stray."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxclip.parity._html._figures import count, number
from jaxclip.parity._html._markup import Markup, el
from jaxclip.parity._html._plot import HEIGHT, WIDTH, Plot
from jaxclip.parity._html._summary import recorded_side
from jaxclip.parity._verify._free_run import FreeRun

if TYPE_CHECKING:
    from jaxclip.parity._verify._report._report import Report


def trajectory(report: "Report") -> Markup | None:
    """Build the free run; None if there was none."""
    run = report.free_run
    if run is None:
        return None
    side = recorded_side(report)
    parts: list[Markup | None] = [
        el("h2", "The port trains by itself", id="h-free"),
        el("p", _said(run), class_="aside"),
    ]
    if run.steps:
        parts += [
            el("div", _losses(run, side), _straying(run, side), class_="pair"),
            el("details", el("summary", "Figures"), _figures(run, side)),
        ]
    return el("section", *parts, id="free", aria_labelledby="h-free")


def _said(run: FreeRun) -> str:
    text = str(run)
    return text[0].upper() + text[1:] + "."


def _losses(run: FreeRun, side: str) -> Markup:
    steps = [step.step for step in run.steps]
    theirs = [*zip(steps, (step.torch_loss for step in run.steps), strict=True)]
    own = [*zip(steps, (step.port_loss for step in run.steps), strict=True)]
    values = [y for _, y in (*theirs, *own) if math.isfinite(y)]
    spread = min(values, default=0) > 0 and max(values) > 20 * min(values)
    plot = Plot(steps, values, log=spread)
    return _figure(
        "Loss",
        f"of {side} and of the port" + (", on a log scale" if spread else ""),
        plot,
        [plot.line(theirs, "theirs"), plot.line(own, "own", dots=True)],
        [("theirs", side), ("own", "port")],
    )


def _straying(run: FreeRun, side: str) -> Markup:
    steps = [step.step for step in run.steps]
    apart = [(step.step, step.difference) for step in run.steps]
    noise = [(step.step, step.noise) for step in run.steps]
    values = [y for _, y in (*apart, *noise) if 0 < y < math.inf]
    plot = Plot(steps, values, log=True)
    return _figure(
        "Parameters",
        f"the port's distance from {side}, relative, and its rounding noise; log scale",
        plot,
        [plot.area(noise), plot.line(apart, "own", dots=True)],
        [("own", f"distance from {side}"), ("noise", "rounding noise")],
    )


def _figure(
    title: str,
    said: str,
    plot: Plot,
    drawn: Sequence[Markup],
    names: Sequence[tuple[str, str]],
) -> Markup:
    keys = (
        el(
            "li",
            el(
                "svg",
                el("line", x1=0, x2=22, y1=5, y2=5, class_=f"line {name}"),
                viewBox="0 0 22 10",
                width=22,
                height=10,
                aria_hidden="true",
            ),
            text,
        )
        for name, text in names
    )
    return el(
        "figure",
        el("figcaption", el("b", title), f" {said}"),
        el(
            "svg",
            el("title", title),
            el("desc", f"{title}: {said}. The table below has the figures."),
            el("g", *plot.axes(), class_="axis"),
            *drawn,
            viewBox=f"0 0 {WIDTH} {HEIGHT}",
            role="img",
            class_="plot",
        ),
        el("ul", *keys, class_="keys"),
    )


def _figures(run: FreeRun, side: str) -> Markup:
    heads = (
        *("Step", f"Loss of {side}", "Loss of the port", "Distance", "Noise"),
        *("Times the noise", "Worst parameter", "Verdict"),
    )
    rows = (
        el(
            "tr",
            el("th", str(step.step), scope="row"),
            *(
                el("td", number(value, digits))
                for value, digits in (
                    (step.torch_loss, 7),
                    (step.port_loss, 7),
                    (step.difference, 3),
                    (step.noise, 3),
                    (step.ratio, 3),
                )
            ),
            el("td", el("bdi", step.worst), class_="text"),
            el("td", _verdict(step.told, step.passed), class_="text"),
        )
        for step in run.steps
    )
    head = el("tr", *(el("th", text, scope="col") for text in heads))
    return el(
        "div",
        el(
            "table",
            el(
                "caption",
                f"The free run, {count(len(run.steps), 'step')}; up to "
                f"{number(run.allowed)} times the noise passes",
            ),
            el("thead", head),
            el("tbody", *rows),
            class_="plain",
        ),
        class_="scroll",
        role="region",
        aria_label="Figures of the free run",
        tabindex=0,
    )


def _verdict(told: bool, passed: bool) -> str:
    if not told:
        return "rounding is too large to tell"
    return "same" if passed else "different"

"""The free run: the losses, and how the parameters stray."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from jaxclip.parity._html._figures import count, number
from jaxclip.parity._html._markup import Markup, el, join
from jaxclip.parity._html._summary import framework
from jaxclip.parity._verify._free_run import FreeRun

if TYPE_CHECKING:
    from jaxclip.parity._verify._report import Report

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 520, 230, 64, 12, 12, 36

Points = Sequence[tuple[float, float]]


def trajectory(report: "Report") -> Markup | None:
    """Build the free run; None if there was none."""
    run = report.free_run
    if run is None:
        return None
    side = framework(report)
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
    plot = _Plot(steps, values, log=spread)
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
    plot = _Plot(steps, values, log=True)
    return _figure(
        "Parameters",
        f"the port's distance from {side}, relative, and its rounding noise; log scale",
        plot,
        [plot.area(noise), plot.line(apart, "own", dots=True)],
        [("own", f"distance from {side}"), ("noise", "rounding noise")],
    )


class _Plot:
    """Axes, and what is drawn on them.

    Args:
        xs: The steps.
        ys: All values that must have room.
        log: Whether the values are on a log scale.
    """

    def __init__(self, xs: Sequence[int], ys: Sequence[float], log: bool) -> None:
        """Choose the bounds."""
        self.log = log
        self.xs = xs
        scaled = [math.log10(y) if log else y for y in ys] or [0.0]
        low, high = min(scaled), max(scaled)
        if log:
            low, high = math.floor(low), max(math.ceil(high), math.floor(low) + 1)
        else:
            room = (high - low or abs(high) or 1.0) * 0.08
            low, high = low - room, high + room
        self.low, self.high = low, high

    def x(self, step: float) -> float:
        first, last = self.xs[0], self.xs[-1]
        share = (step - first) / (last - first) if last > first else 0.5
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        scaled = math.log10(value) if self.log else value
        share = (scaled - self.low) / (self.high - self.low)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    def points(self, of: Points) -> list[tuple[float, float]]:
        return [
            (self.x(x), self.y(y))
            for x, y in of
            if math.isfinite(y) and (y > 0 or not self.log)
        ]

    def line(self, of: Points, name: str, dots: bool = False) -> Markup:
        found = self.points(of)
        at = " ".join(f"{x:.1f},{y:.1f}" for x, y in found)
        marks = (
            el("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r="2.5", class_=f"dot {name}")
            for x, y in found
            if dots and len(found) <= 60 or len(found) == 1
        )
        return join(el("polyline", points=at, class_=f"line {name}"), *marks)

    def area(self, of: Points) -> Markup:
        found = self.points(of)
        if len(found) < 2:
            return self.line(of, "noise")
        base = _HEIGHT - _BOTTOM
        corners = [(found[0][0], base), *found, (found[-1][0], base)]
        at = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
        return join(
            el("polygon", points=at, class_="area"), self.line(of, "noise")
        )

    def axes(self) -> Iterator[Markup]:
        for value, text in self._marks():
            y = f"{value:.1f}"
            yield el("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_="grid")
            at = f"{value + 4:.1f}"
            yield el("text", text, x=_LEFT - 8, y=at, text_anchor="end")
        every = max(1, math.ceil(len(self.xs) / 8))
        for step in self.xs[::every]:
            yield el(
                "text",
                str(step),
                x=f"{self.x(step):.1f}",
                y=_HEIGHT - _BOTTOM + 18,
                text_anchor="middle",
            )
        yield el("text", "step", x=_WIDTH - _RIGHT, y=_HEIGHT - 3, text_anchor="end")

    def _marks(self) -> Iterator[tuple[float, str]]:
        scale: Callable[[float], float] = self.y
        if self.log:
            low, high = int(self.low), int(self.high)
            for power in range(low, high + 1, max(1, math.ceil((high - low) / 5))):
                yield scale(10.0**power), f"1e{power}"
            return
        step = _round_step((self.high - self.low) / 4)
        value = math.ceil(self.low / step) * step
        while value <= self.high:
            yield scale(value), number(value + 0.0, 4)
            value += step


def _round_step(step: float) -> float:
    """Round a step up to 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * k for k in (1, 2, 5, 10) if power * k >= step)


def _figure(
    title: str,
    said: str,
    plot: _Plot,
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
            viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
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
            el("caption", f"The free run, {count(len(run.steps), 'step')}; up to {number(run.allowed)} times the noise passes"),
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

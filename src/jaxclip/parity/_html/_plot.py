"""Lines over the steps of a run."""

import math
from collections.abc import Iterator, Sequence

from jaxclip.parity._html._figures import number
from jaxclip.parity._html._markup import Markup, el, join

WIDTH, HEIGHT = 520, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 12, 36

_MOST_DOTS = 60

Points = Sequence[tuple[float, float]]


class Plot:
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
        """Return where a step is."""
        first, last = self.xs[0], self.xs[-1]
        share = (step - first) / (last - first) if last > first else 0.5
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        """Return where a value is."""
        scaled = math.log10(value) if self.log else value
        share = (scaled - self.low) / (self.high - self.low)
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)

    def points(self, of: Points) -> list[tuple[float, float]]:
        """Return where points are, those left out that have no place."""
        return [
            (self.x(x), self.y(y))
            for x, y in of
            if math.isfinite(y) and (y > 0 or not self.log)
        ]

    def line(self, of: Points, name: str, dots: bool = False) -> Markup:
        """Draw a line."""
        found = self.points(of)
        at = " ".join(f"{x:.1f},{y:.1f}" for x, y in found)
        marks = (
            el("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r="2.5", class_=f"dot {name}")
            for x, y in found
            if (dots and len(found) <= _MOST_DOTS) or len(found) == 1
        )
        return join(el("polyline", points=at, class_=f"line {name}"), *marks)

    def area(self, of: Points) -> Markup:
        """Draw a line, and fill what is below it."""
        found = self.points(of)
        if len(found) < 2:
            return self.line(of, "noise")
        base = HEIGHT - _BOTTOM
        corners = [(found[0][0], base), *found, (found[-1][0], base)]
        at = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
        return join(el("polygon", points=at, class_="area"), self.line(of, "noise"))

    def axes(self) -> Iterator[Markup]:
        """Draw both axes."""
        for value, text in self._marks():
            y = f"{value:.1f}"
            yield el("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y, y2=y, class_="grid")
            at = f"{value + 4:.1f}"
            yield el("text", text, x=_LEFT - 8, y=at, text_anchor="end")
        every = max(1, math.ceil(len(self.xs) / 8))
        for step in self.xs[::every]:
            yield el(
                "text",
                str(step),
                x=f"{self.x(step):.1f}",
                y=HEIGHT - _BOTTOM + 18,
                text_anchor="middle",
            )
        yield el("text", "step", x=WIDTH - _RIGHT, y=HEIGHT - 3, text_anchor="end")

    def _marks(self) -> Iterator[tuple[float, str]]:
        if self.log:
            low, high = int(self.low), int(self.high)
            for power in range(low, high + 1, max(1, math.ceil((high - low) / 5))):
                yield self.y(10.0**power), f"1e{power}"
            return
        step = _round_step((self.high - self.low) / 4)
        value = math.ceil(self.low / step) * step
        while value <= self.high:
            yield self.y(value), number(value + 0.0, 4)
            value += step


def _round_step(step: float) -> float:
    """Round a step up to 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * k for k in (1, 2, 5, 10) if power * k >= step)

"""How many elements differ by how much."""

import math
from collections.abc import Iterator

from jaxclip.parity._html._figures import level, number
from jaxclip.parity._html._markup import Markup, el
from jaxclip.parity._verify._report._difference import Difference

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 560, 210, 44, 8, 12, 34

_BASE = _HEIGHT - _BOTTOM


def unit(found: Difference) -> str:
    """Say in which unit the differences are, after a number of them."""
    allowed = found.unit == "allowed"
    return "times what one element may differ by" if allowed else "in absolute terms"


def histogram(found: Difference) -> Markup | None:
    """Draw the histogram, with its figures; None if there is nothing to count."""
    if not found.counts:
        return None
    low, high = found.exponents[0], found.exponents[-1]
    said = f"How many elements differ by how much, {unit(found)}; both on a log scale"
    described = (
        f"From {number(10**low)} to {number(10**high)}, {unit(found)}. "
        "The table below has the figures."
    )
    return el(
        "figure",
        el("figcaption", el("b", "Distribution"), f" {said}"),
        el(
            "svg",
            el("title", "Distribution of the differences"),
            el("desc", described),
            el("g", *_axes(found), class_="axis"),
            el("g", *_bars(found)),
            _limit(found),
            _horizontal(_BASE, "base"),
            viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
            role="img",
            class_="plot",
        ),
        el("details", el("summary", "Figures"), _figures(found)),
    )


def _x(found: Difference, exponent: float) -> float:
    low, high = found.exponents[0], found.exponents[-1]
    return _LEFT + (exponent - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)


def _y(found: Difference, counted: int) -> float:
    # One element must be seen, so that none is not the logarithm of one.
    share = math.log10(counted + 1) / math.log10(max(found.counts) + 1)
    return _BASE - share * (_BASE - _TOP)


def _bins(found: Difference) -> Iterator[tuple[float, float, int]]:
    bounds = zip(found.exponents, found.exponents[1:], strict=False)
    for (start, end), counted in zip(bounds, found.counts, strict=True):
        if counted:
            yield start, end, counted


def _bars(found: Difference) -> Iterator[Markup]:
    for start, end, counted in _bins(found):
        left, right = _x(found, start), _x(found, end)
        middle = 10 ** ((start + end) / 2)
        of = level(middle) if found.unit == "allowed" else "b1"
        yield el(
            "rect",
            x=f"{left + 0.5:.1f}",
            y=f"{_y(found, counted):.1f}",
            width=f"{max(1.0, right - left - 1):.1f}",
            height=f"{_BASE - _y(found, counted):.1f}",
            class_=f"fill {of}",
        )


def _axes(found: Difference) -> Iterator[Markup]:
    low, high = found.exponents[0], found.exponents[-1]
    every = max(1, math.ceil((high - low) / 8))
    for power in range(math.ceil(low), math.floor(high) + 1):
        if power % every == 0:
            text = "1" if power == 0 else f"1e{power}"
            x = f"{_x(found, power):.1f}"
            yield el("text", text, x=x, y=_BASE + 18, text_anchor="middle")
    most = max(found.counts)
    counts = [10**power for power in range(math.floor(math.log10(most)) + 1)]
    for counted in counts + [most] * (most >= 2 * counts[-1]):
        y = _y(found, counted)
        text = f"{counted:,}" if counted < 1e5 else number(float(counted), 2)
        yield _horizontal(y, "grid")
        yield el("text", text, x=_LEFT - 6, y=f"{y + 4:.1f}", text_anchor="end")


def _limit(found: Difference) -> Markup | None:
    """Draw what is allowed, if it lies between what there is."""
    if found.unit != "allowed" or not found.exponents[0] <= 0 <= found.exponents[-1]:
        return None
    x = f"{_x(found, 0.0):.1f}"
    return el("line", x1=x, x2=x, y1=0, y2=_BASE, class_="limit")


def _horizontal(y: float, name: str) -> Markup:
    at = f"{y:.1f}"
    return el("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=at, y2=at, class_=name)


def _figures(found: Difference) -> Markup:
    heads = (f"From, to; {unit(found)}", "Elements")
    rows = (
        el(
            "tr",
            el("th", f"{number(10**start)} to {number(10**end)}", scope="row"),
            el("td", f"{counted:,}"),
        )
        for start, end, counted in _bins(found)
    )
    return el(
        "table",
        el("caption", "Distribution of the differences"),
        el("thead", el("tr", *(el("th", text, scope="col") for text in heads))),
        el("tbody", *rows),
        class_="plain",
    )

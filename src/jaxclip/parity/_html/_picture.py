"""How the first divergent tensor differs: a histogram, and a map of where."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from jaxclip.parity._html._chain import legend
from jaxclip.parity._html._figures import count, level, number
from jaxclip.parity._html._markup import Markup, el, join, name_of
from jaxclip.parity._verify._difference import Difference

if TYPE_CHECKING:
    from jaxclip.parity._verify._report import Report

_WIDTH, _HEIGHT = 560, 200


def picture(report: "Report") -> Markup | None:
    """Build how the first divergent tensor differs; None if nothing can be shown."""
    found, first = report.difference, report.first
    if found is None or first is None or first.size < 2:
        return None
    return el(
        "section",
        el("h2", "How it differs", id="h-picture"),
        el("p", name_of(first.name), ": ", *_said(found), class_="aside"),
        el("div", _histogram(found), _map(found), class_="pair"),
        id="picture",
        aria_labelledby="h-picture",
    )


def _said(found: Difference) -> Iterator[str]:
    total = math.prod(found.shape)
    yield f"{total - found.equal:,} of {count(total, 'element')} are not equal to the bit"
    if found.infinite:
        yield f", {found.infinite:,} of them infinitely far"
    if found.unit == "allowed":
        beyond = sum(
            counted
            for counted, low in zip(found.counts, found.exponents, strict=False)
            if low >= 0
        )
        beyond += found.infinite
        yield f"; {count(beyond, 'element')} alone would be too far"
        if not beyond:
            yield ", but all of them together are (in the L2 norm)"
    yield "."


def _unit(found: Difference) -> str:
    allowed = found.unit == "allowed"
    return "times what one element may differ by" if allowed else "absolute difference"


def _histogram(found: Difference) -> Markup | None:
    if not found.counts:
        return None
    left, bottom, top = 44, _HEIGHT - 34, 10
    low, high = found.exponents[0], found.exponents[-1]
    step = (_WIDTH - left - 8) / (high - low)
    tallest = math.log10(max(found.counts) + 1)

    def x(exponent: float) -> float:
        return left + (exponent - low) * step

    def y(counted: float) -> float:
        return bottom - (bottom - top) * math.log10(counted + 1) / tallest

    bars = []
    for counted, start, end in zip(
        found.counts, found.exponents, found.exponents[1:], strict=False
    ):
        of = level(10 ** ((start + end) / 2)) if found.unit == "allowed" else "b1"
        bars.append(
            el(
                "rect",
                x=f"{x(start) + 0.5:.1f}",
                y=f"{y(counted):.1f}",
                width=f"{max(1.0, x(end) - x(start) - 1):.1f}",
                height=f"{bottom - y(counted):.1f}",
                class_=f"fill {of}",
            )
            if counted
            else None
        )
    every = max(1, math.ceil((high - low) / 8))
    marks = []
    for power in range(math.ceil(low), math.floor(high) + 1):
        if power % every == 0:
            marks.append(_tick(x(power), bottom, power))
    for power in range(math.floor(tallest) + 1):
        at = y(10**power)
        marks += [
            el("line", x1=left, x2=_WIDTH - 8, y1=f"{at:.1f}", y2=f"{at:.1f}", class_="grid"),
            el(
                "text",
                f"{10**power:,}" if power < 5 else f"1e{power}",
                x=left - 6,
                y=f"{at + 4:.1f}",
                text_anchor="end",
            ),
        ]
    if found.unit == "allowed" and low <= 0 <= high:
        at = f"{x(0):.1f}"
        marks.append(el("line", x1=at, x2=at, y1=top - 6, y2=bottom, class_="limit"))
    table = el(
        "table",
        el("caption", "The same in figures"),
        el("thead", el("tr", el("th", _unit(found), scope="col"), el("th", "Elements", scope="col"))),
        el(
            "tbody",
            *(
                el(
                    "tr",
                    el("th", f"{number(10**start)} to {number(10**end)}", scope="row"),
                    el("td", f"{counted:,}"),
                )
                for counted, start, end in zip(
                    found.counts, found.exponents, found.exponents[1:], strict=False
                )
                if counted
            ),
        ),
        class_="plain",
    )
    return el(
        "figure",
        el("figcaption", el("b", "Distribution"), " Elements by their ", _unit(found), ", both on a log scale"),
        el(
            "svg",
            el("title", "Distribution of the differences"),
            el("desc", f"From {number(10**low)} to {number(10**high)}, {_unit(found)}. The table below has the figures."),
            *marks[:0],
            el("g", *marks, class_="axis"),
            el("g", *bars),
            el("line", x1=left, x2=_WIDTH - 8, y1=bottom, y2=bottom, class_="base"),
            viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
            role="img",
            class_="plot",
        ),
        el("details", el("summary", "Figures"), table),
    )


def _tick(x: float, bottom: float, power: int) -> Markup:
    text = "1" if power == 0 else f"1e{power}"
    return el("text", text, x=f"{x:.1f}", y=bottom + 18, text_anchor="middle")


def _map(found: Difference) -> Markup:
    height, width = len(found.cells), len(found.cells[0])
    size = max(3, min(28, 320 // max(height, width)))
    by_level: dict[str, list[str]] = {}
    top = max(max(row) for row in found.cells)
    for y, row in enumerate(found.cells):
        for x, value in enumerate(row):
            of = _level(found, value, top)
            by_level.setdefault(of, []).append(f"M{x} {y}h1v1h-1z")
    paths = (
        el("path", d="".join(parts), class_=f"fill {of}")
        for of, parts in sorted(by_level.items())
    )
    drawn = el(
        "svg",
        el("title", "Where the differences are"),
        el("desc", _worst_cell(found)),
        *paths,
        viewBox=f"0 0 {width} {height}",
        width=size * width,
        height=size * height,
        role="img",
        class_="map",
        shape_rendering="crispEdges",
        preserveAspectRatio="none",
    )
    return el(
        "figure",
        el("figcaption", el("b", "Where"), f" Shape {found.shape}; ", _fold(found)),
        drawn,
        el("p", _worst_cell(found), class_="aside"),
        legend() if found.unit == "allowed" else None,
    )


def _level(found: Difference, value: float, top: float) -> str:
    if not value:
        return "equal"
    if found.unit == "allowed":
        return level(value)
    return "b1" if value < top else "b3"


def _fold(found: Difference) -> Markup:
    high, wide = found.block

    def axes(of: tuple[int, ...]) -> str:
        if not of:
            return "one row"
        sizes = " × ".join(str(found.shape[axis]) for axis in of)
        names = " and ".join(map(str, of))
        return f"ax{'is' if len(of) == 1 else 'es'} {names} ({sizes})"

    said = f"rows: {axes(found.rows)}; columns: {axes(found.columns)}. "
    if high * wide > 1:
        return join(said, f"Each cell is the greatest of {high} × {wide} elements.")
    return join(said, "Each cell is one element.")


def _worst_cell(found: Difference) -> str:
    value, y, x = max(
        (value, -y, -x) for y, row in enumerate(found.cells) for x, value in enumerate(row)
    )
    high, wide = found.block
    rows, columns = -y * high, -x * wide
    where = f"row {rows}, column {columns}"
    if high * wide > 1:
        where = f"rows from {rows} on, columns from {columns} on"
    return f"The greatest, {number(value)} {_unit(found)}, is in {where}."

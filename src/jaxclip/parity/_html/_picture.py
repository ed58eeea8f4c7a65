"""How the first divergent tensor differs: by how much, and where."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from jaxclip.parity._html._figures import count
from jaxclip.parity._html._heat_map import heat_map
from jaxclip.parity._html._histogram import histogram
from jaxclip.parity._html._markup import Markup, el, name_of
from jaxclip.parity._verify._report._difference import Difference

if TYPE_CHECKING:
    from jaxclip.parity._verify._report._report import Report


def picture(report: "Report") -> Markup | None:
    """Build how the first divergent tensor differs; None if nothing can be shown."""
    found, first = report.difference, report.first
    if found is None or first is None or first.size < 2:
        return None
    return el(
        "section",
        el("h2", "How it differs", id="h-picture"),
        el("p", name_of(first.name), ": ", *_said(found), class_="aside"),
        el("div", histogram(found), heat_map(found), class_="pair"),
        id="picture",
        aria_labelledby="h-picture",
    )


def _said(found: Difference) -> Iterator[str]:
    total = math.prod(found.shape)
    unequal = total - found.equal
    yield f"{unequal:,} of {count(total, 'element')} are not equal to the bit"
    if found.infinite:
        yield f", {found.infinite:,} infinitely far"
    if found.unit == "allowed":
        bins = zip(found.exponents, found.counts, strict=False)
        beyond = sum(counted for low, counted in bins if low >= 0) + found.infinite
        yield f", {beyond:,} by more than one element may"
        if not beyond:
            yield ", and all together by more than they may (in the L2 norm)"
    yield "."

"""Kinks, what was not compared, what else to know, and what the loop did wrong."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from jaxclip.parity._html._markup import Markup, el, join, name_of
from jaxclip.parity._verify._report._text import by_reason

if TYPE_CHECKING:
    from jaxclip.parity._verify._report._report import Report


def mistakes(report: "Report") -> Markup | None:
    """Build the mistakes of the recorded loop; None if it made none."""
    items = [
        join(
            el("b", "Whole run" if w.step is None else f"Step {w.step}"),
            f": {w.message} ",
            el("code", w.code),
        )
        for w in report.warnings
    ]
    return _section("mistakes", "Mistakes of the recorded loop", items)


def kinks(report: "Report") -> Markup | None:
    """Build the kinks that rounding decided otherwise in the two; None without any."""
    items = [
        join(el("b", f"Step {stage.step}, {stage.stage}"), f": {kink}")
        for stage in report.stages
        for kink in stage.kinks
    ]
    return _section("kinks", "Kinks that rounding decided otherwise in the two", items)


def notes(report: "Report") -> Markup | None:
    """Build the notes; None if there are none."""
    said = [*report.notes, *(note for stage in report.stages for note in stage.notes)]
    return _section("notes", "Notes", dict.fromkeys(said))


def not_compared(report: "Report") -> Markup | None:
    """Build what was not compared, and why; None if all was."""
    items = []
    for stage, reason, names in by_reason(report.not_compared):
        shown = [part for name in names for part in (", ", name_of(name))][1:]
        listed = join(*shown, ": ") if names else None
        items.append(join(el("b", stage.capitalize()), ": ", listed, reason))
    return _section("left", "Not compared", items)


def _section(key: str, heading: str, items: Iterable[str]) -> Markup | None:
    found = [el("li", item) for item in items]
    if not found:
        return None
    return el(
        "section",
        el("h2", heading, id=f"h-{key}"),
        el("ul", *found, class_="remarks"),
        id=key,
        aria_labelledby=f"h-{key}",
    )

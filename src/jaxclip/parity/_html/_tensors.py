"""The table of all tensors, which the page's script sorts, filters and pages."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxclip.parity._html._figures import count, level, number
from jaxclip.parity._html._markup import Markup, data, el, name_of, visible
from jaxclip.parity._html._summary import icon, index
from jaxclip.parity._verify._report._results import BATCH, STAGES, TensorResult
from jaxclip.parity._verify._report._words import Words

if TYPE_CHECKING:
    from jaxclip.parity._verify._report._report import Report

PAGE = 25
"""How many rows are shown at once."""

_STAGES = (BATCH, *STAGES)
"""Every stage that a report may have, in order."""

_ORDER = "What differs comes first, in the order of the run."


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        key: What the script calls it.
        label: Its heading.
        kind: How it is written and sorted: ``"verdict"``, ``"stage"``, ``"name"``,
            ``"text"``, ``"share"``, ``"count"`` or ``"number"``.
        value: Takes it from a tensor.
        shown: Whether it is shown at once, and not only with all figures.
        digits: With how many digits it is written.
    """

    key: str
    label: str
    kind: str
    value: Callable[[TensorResult], Any]
    shown: bool = False
    digits: int = 3


def columns(words: Words) -> tuple[Column, ...]:
    """Return the columns of the table.

    Args:
        words: What the two sides are called.
    """
    recorded, port = words.recorded, words.labels[1].capitalize()
    return (
        Column("verdict", "Verdict", "verdict", lambda t: int(t.passed), shown=True),
        Column("step", "Step", "count", lambda t: t.step, shown=True),
        Column("stage", "Stage", "stage", lambda t: _STAGES.index(t.stage), shown=True),
        Column("name", "Tensor", "name", lambda t: t.name, shown=True),
        Column("share", "Times allowed", "share", lambda t: t.share, shown=True),
        Column("l2", "Relative L2", "number", lambda t: t.relative_l2, shown=True),
        Column(
            *("abs", "Greatest difference", "number"),
            lambda t: t.comparison.max_abs_diff,
            shown=True,
        ),
        Column(
            *("mismatched", "Elements that differ", "count"),
            lambda t: t.mismatched,
            shown=True,
        ),
        Column("size", "Elements", "count", lambda t: t.size, shown=True),
        Column("ulps", "Ulps", "number", lambda t: t.comparison.max_ulps, digits=4),
        Column("ratio", "Ratio", "number", lambda t: t.ratio),
        Column("allowed", "Ratio allowed", "number", lambda t: t.allowed),
        Column(
            "rel", "Greatest relative", "number", lambda t: t.comparison.max_rel_diff
        ),
        Column("at", "At", "text", lambda t: index(t.comparison.max_abs_index)),
        Column("cosine", "Cosine", "number", lambda t: t.cosine, digits=9),
        Column("tolerance", "rtol that passes", "number", lambda t: t.tolerance),
        Column("own", f"{recorded} from float64", "number", lambda t: t.torch_error),
        Column(
            "port",
            f"{port} from float64",
            "number",
            lambda t: t.port_error,
        ),
        Column("module", "Module", "text", lambda t: t.module),
        Column("shape", "Shape", "text", lambda t: _either(t.comparison.shapes)),
        Column("dtype", "Dtype", "text", lambda t: _either(t.comparison.dtypes)),
        Column("detail", "Why", "text", lambda t: t.detail),
        Column("hint", "Looks like", "text", lambda t: t.hint),
    )


def _either(sides: Sequence[Any]) -> str:
    """Say what both sides have, or what each has."""
    said = ["none" if side is None else str(side) for side in sides[:2]]
    return said[0] if len({*said}) == 1 else " and ".join(said)


def tensors(report: "Report") -> Markup:
    """Build the table: the first rows as HTML, and all of them as data."""
    found = [tensor for stage in report.stages for tensor in stage.tensors]
    found.sort(key=lambda tensor: tensor.passed)  # what differs first, in order
    own = columns(report.words)
    shown = [column for column in own if column.shown]
    head = el(
        "tr",
        *(
            el("th", column.label, scope="col", data_key=column.key, class_=column.kind)
            for column in shown
        ),
    )
    rest = len(found) - PAGE
    status = (
        f"{count(len(found), 'tensor')}, of which {len(report.failures):,} differ. "
        f"{_ORDER}"
    )
    return el(
        "section",
        el("h2", "Tensors", id="h-tensors", tabindex=-1),
        _controls(report),
        el("p", status, id="status", role="status"),
        el(
            "div",
            el(
                "table",
                el("caption", f"All tensors. {_ORDER}"),
                el("thead", head),
                el("tbody", *(_row(tensor, shown) for tensor in found[:PAGE])),
                id="table",
                class_="tensors",
            ),
            class_="scroll",
            role="region",
            aria_label="Table of tensors",
            tabindex=0,
        ),
        el(
            "noscript",
            el(
                "p",
                f"The other {count(rest, 'row')}, sorting and filters need JavaScript.",
            ),
        )
        if rest > 0
        else None,
        el(
            "nav",
            el("button", "Previous", type="button", id="previous"),
            el("span", id="page"),
            el("button", "Next", type="button", id="next"),
            class_="pages",
            aria_label="Pages of the table",
            hidden=True,
        ),
        data(_data(found, own, report), id="data"),
        id="tensors",
        aria_labelledby="h-tensors",
    )


def _controls(report: "Report") -> Markup:
    present = {stage.stage for stage in report.stages if stage.tensors}
    return el(
        "form",
        _control("text", "Find", el("input", type="search", id="text", size=20)),
        _select("verdict", "Verdict", [("0", "different"), ("1", "same")]),
        _select(
            "stage",
            "Stage",
            [(str(n), stage) for n, stage in enumerate(_STAGES) if stage in present],
        ),
        _select("step", "Step", [(str(step), str(step)) for step in report.steps]),
        el(
            "label",
            el("input", type="checkbox", id="all"),
            " All figures",
            class_="check",
        ),
        el("button", "Reset", type="reset"),
        class_="controls",
        role="search",
        aria_label="Filter the tensors",
        hidden=True,
    )


def _select(key: str, label: str, options: Iterable[tuple[str, str]]) -> Markup:
    every = el("option", "all", value="")
    others = (el("option", text, value=value) for value, text in options)
    return _control(key, label, el("select", every, *others, id=key))


def _control(key: str, label: str, control: Markup) -> Markup:
    return el("div", el("label", label, for_=key), control, class_="control")


def _row(tensor: TensorResult, shown: Sequence[Column]) -> Markup:
    cells = (_cell(tensor, column) for column in shown)
    return el("tr", *cells, class_="" if tensor.passed else "differs")


def _cell(tensor: TensorResult, column: Column) -> Markup:
    value = column.value(tensor)
    match column.kind:
        case "verdict":
            said = "same" if value else "different"
            return el(
                "td",
                icon(bool(value)),
                el("span", f" {said}", class_="said"),
                class_="verdict",
            )
        case "stage":
            return el("td", _STAGES[value], class_="stage")
        case "name":
            return el("th", name_of(value), scope="row", class_="name")
        case "share":
            chip = el(
                "span", number(value), class_=f"chip {level(value, tensor.passed)}"
            )
            return el("td", chip, class_="share")
        case "count":
            return el("td", f"{value:,}", class_="count")
    missing = math.nan if value is None else value
    return el("td", number(float(missing), column.digits), class_="number")


def _data(
    found: Sequence[TensorResult], own: Sequence[Column], report: "Report"
) -> dict[str, Any]:
    """Return all rows, column by column; of texts each but once."""
    texts: dict[str, int] = {}
    made: dict[str, list[Any]] = {}
    for column in own:
        values = map(column.value, found)
        if column.kind in ("name", "text"):
            known = (visible(value) for value in values)
            made[column.key] = [texts.setdefault(text, len(texts)) for text in known]
        else:
            made[column.key] = [_plain(value, column.digits) for value in values]
    return {
        "columns": [
            [column.key, column.label, column.kind, column.shown, column.digits]
            for column in own
        ],
        "stages": _STAGES,
        "texts": [*texts],
        "page": PAGE,
        "rows": made,
    }


def _plain(value: float | int | None, digits: int) -> float | int | str | None:
    """Return a number with more digits than are shown, to sort by."""
    if value is None or isinstance(value, int):
        return value
    if math.isfinite(value):
        return float(f"{value:.{digits + 3}g}")
    return None if math.isnan(value) else str(value)

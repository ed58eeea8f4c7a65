"""Where in a tensor the differences are."""

from jaxclip.parity._html._chain import legend
from jaxclip.parity._html._figures import level, number
from jaxclip.parity._html._histogram import unit
from jaxclip.parity._html._markup import Markup, el
from jaxclip.parity._verify._report._difference import Difference

_SIZE, _LARGEST_CELL, _SMALLEST_CELL = 400, 28, 4


def heat_map(found: Difference) -> Markup:
    """Draw the cells by their levels; say how the tensor lies in them."""
    height, width = len(found.cells), len(found.cells[0])
    greatest = max(map(max, found.cells))
    cells: dict[str, list[str]] = {}
    for y, row in enumerate(found.cells):
        for x, value in enumerate(row):
            of = _level(found, value, greatest)
            cells.setdefault(of, []).append(f"M{x} {y}h1v1h-1z")
    size = _SIZE // max(height, width)
    size = max(_SMALLEST_CELL, min(_LARGEST_CELL, size))
    top, left = _greatest(found)
    said = _said(found)
    return el(
        "figure",
        el("figcaption", el("b", "Where"), f" {_folded(found)}"),
        el(
            "svg",
            el("title", "Where the differences are"),
            el("desc", said),
            *(
                el("path", d="".join(parts), class_=f"fill {of}")
                for of, parts in sorted(cells.items())
            ),
            *(
                el("rect", x=left, y=top, width=1, height=1, class_=ring)
                for ring in ("ring under", "ring")
            ),
            viewBox=f"0 0 {width} {height}",
            width=size * width,
            height=size * height,
            role="img",
            class_="map",
            shape_rendering="crispEdges",
            preserveAspectRatio="none",
        ),
        el("p", said, class_="aside"),
        legend() if found.unit == "allowed" else None,
    )


def _level(found: Difference, value: float, greatest: float) -> str:
    if not value:
        return "equal"
    if found.unit == "allowed":
        return level(value)
    return "b1" if value < greatest else "b3"


def _folded(found: Difference) -> str:
    """Say how a tensor is folded to the picture."""
    high, wide = found.block
    cell = (
        f"each cell is the greatest of {high} × {wide} elements"
        if high * wide > 1
        else "each cell is one element"
    )
    rows, columns = _axes(found, found.rows), _axes(found, found.columns)
    return f"Shape {found.shape}: rows are {rows}, columns {columns}; {cell}"


def _axes(found: Difference, axes: tuple[int, ...]) -> str:
    if not axes:
        return "one"
    sizes = " × ".join(str(found.shape[axis]) for axis in axes)
    *most, last = map(str, axes)
    named = f"axes {', '.join(most)} and {last}" if most else f"axis {last}"
    return f"{named} ({sizes})"


def _greatest(found: Difference) -> tuple[int, int]:
    """Return the row and the column of the first of the greatest cells."""
    greatest = max(map(max, found.cells))
    row = next(y for y, values in enumerate(found.cells) if greatest in values)
    return row, found.cells[row].index(greatest)


def _said(found: Difference) -> str:
    (row, column), (high, wide) = _greatest(found), found.block
    where = f"row {row * high}, column {column * wide}"
    if high * wide > 1:
        where = f"the rows from {row * high} and the columns from {column * wide} on"
    value = number(found.cells[row][column])
    return f"The greatest, {value} {unit(found)}, is in {where}; it has a frame."

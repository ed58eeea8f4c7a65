"""A map as a table to read."""

from collections.abc import Iterator, Sequence

from jaxclip.convert._pieces import Piece, pieces
from jaxclip.convert._plan import Entry

_HEAD = ("torch", "shape", "layout", "Flax", "shape", "dtype")


def table(entries: Sequence[Entry], notes: Sequence[str]) -> str:
    """Show each tensor, how it is laid out in Flax, and in which variable."""
    rows = [_HEAD, *(row for entry in entries for row in _rows(entry))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(map(str.ljust, row, widths)).rstrip()
        for row in (rows[0], tuple("-" * width for width in widths), *rows[1:])
    ]
    return "\n".join([*lines, *(f"Note: {note}." for note in notes)])


def _rows(entry: Entry) -> Iterator[tuple[str, ...]]:
    """Yield a row for each tensor, or for each variable if there are more of those."""
    torch = [(name, str(spec.shape)) for name, spec in entry.expected.items()]
    flax = [
        (".".join(leaf.path), str(leaf.value.shape), str(leaf.value.dtype))
        for leaf in entry.leaves
    ]
    for row in range(max(len(torch), len(flax))):
        left = torch[row] if row < len(torch) else ("", "")
        right = flax[row] if row < len(flax) else ("", "", "")
        yield (*left, layout(entry) if row == 0 else "", *right)


def layout(entry: Entry) -> str:
    """Say in a word or two what a link does."""
    if not entry.leaves:
        return "constant"
    found = pieces(entry)
    if found is None:
        return "computed"
    if len(entry.names) == len(entry.leaves) == 1 and len(found) <= 1:
        return _whole(entry, found)
    if len(entry.leaves) == 1:
        return f"{len(entry.names)} joined"
    return f"split in {len(entry.leaves)}" if len(entry.names) == 1 else "rearranged"


def _whole(entry: Entry, found: list[Piece]) -> str:
    (spec,), (leaf,) = entry.expected.values(), entry.leaves
    if not found:
        return "same" if spec.shape == leaf.value.shape else "reshape"
    (piece,) = found
    order = sorted(
        range(len(piece.shape)), key=lambda axis: -abs(piece.flax.strides[axis])
    )
    if order == sorted(order) and min(piece.flax.strides, default=1) > 0:
        return "same" if spec.shape == leaf.value.shape else "reshape"
    ordered = tuple(piece.shape[axis] for axis in order)
    if piece.shape != spec.shape or ordered != leaf.value.shape:
        return "rearranged"
    if min(piece.flax.strides) < 0:
        return "flip"
    return "transpose" if order == [1, 0] else f"permute {tuple(order)}"

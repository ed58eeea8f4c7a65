"""A map as a table to read."""

from collections.abc import Iterator, Sequence
from itertools import permutations

from jaxclip.convert._modules import ModulePair
from jaxclip.convert._plan import Entry
from jaxclip.convert._rules.pieces import Piece, contiguous

_WHOLE = "(the model)"

_MOST_AXES = 6
"""Of arrays for which it is tried whether their axes are permuted."""

_HEAD = ("torch", "shape", "layout", "Flax", "shape", "dtype")
_MODULES_HEAD = ("torch module", "output", "Flax module", "type")


def table(
    entries: Sequence[Entry], notes: Sequence[str], modules: Sequence[ModulePair]
) -> str:
    """Show each tensor, how it is laid out in Flax, and in which variable.

    Below, each module and how its output is laid out, if there are any.
    """
    lines = _aligned([_HEAD, *(row for entry in entries for row in _rows(entry))])
    if modules:
        lines += ["", *_aligned([_MODULES_HEAD, *map(_module_row, modules)])]
    return "\n".join([*lines, *(f"Note: {note}." for note in notes)])


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(map(str.ljust, row, widths)).rstrip()
        for row in (rows[0], tuple("-" * width for width in widths), *rows[1:])
    ]


def _module_row(pair: ModulePair) -> tuple[str, ...]:
    layout = "unknown" if pair.layout is None else pair.layout
    flax = pair.flax or _WHOLE
    if pair.alias_of is not None:
        flax = f"{flax} = {pair.alias_of}"
    return pair.torch or _WHOLE, str(layout), flax, pair.kind


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
    found = entry.pieces
    if found is None:
        return "computed"
    if len(entry.names) == len(entry.leaves) == 1 and len(found) <= 1:
        return _whole(entry, found)
    if len(entry.leaves) == 1:
        return f"{len(entry.names)} joined"
    return f"split in {len(entry.leaves)}" if len(entry.names) == 1 else "rearranged"


def _whole(entry: Entry, found: list[Piece]) -> str:
    """Say how one variable lies, as seen from one tensor."""
    (spec,), (leaf,) = entry.expected.values(), entry.leaves
    into = leaf.value.shape
    if not found:
        return "same" if spec.shape == into else "reshape"
    piece = found[0].in_torchs_order
    strides, steps = piece.flax.strides, contiguous(into)
    if piece.shape == spec.shape and len(into) == len(spec.shape) <= _MOST_AXES:
        for axes in permutations(range(len(into))):
            # An axis of length 1 may be anywhere.
            fits = (
                spec.shape[axis] == length and (length == 1 or strides[axis] == stride)
                for axis, length, stride in zip(axes, into, steps, strict=True)
            )
            if all(fits):
                return _said(axes)
    if strides == contiguous(piece.shape):
        return "reshape"
    return "flip" if min(strides) < 0 else "rearranged"


def _said(axes: tuple[int, ...]) -> str:
    if axes == tuple(sorted(axes)):
        return "same"
    return "transpose" if axes == (1, 0) else f"permute {axes}"

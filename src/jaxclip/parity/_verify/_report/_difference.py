"""How a tensor differs, as a small picture."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """How the elements of a tensor differ, in few numbers.

    A difference is ``|port - torch|``, in units of what one element may differ by, or
    as it is where nothing but equality is allowed.

    Attributes:
        unit: ``"allowed"`` or ``"absolute"``.
        shape: The shape of the tensor.
        rows: The axes that are folded to the rows of the picture, in reading order.
        columns: The axes that are folded to its columns.
        block: How many rows and columns of elements make one cell of the picture.
        cells: The rows of the picture, with the greatest difference in each cell.
        equal: How many elements are equal.
        infinite: How many differ by infinity, as a number does from NaN.
        exponents: The bounds of the histogram's bins, as powers of ten. What is below
            the lowest is counted in the first bin.
        counts: How many of the other elements are in each bin.
    """

    unit: str
    shape: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    block: tuple[int, int]
    cells: tuple[tuple[float, ...], ...]
    equal: int
    infinite: int
    exponents: tuple[float, ...]
    counts: tuple[int, ...]

    # Where users import it from, which is what they should see.
    __module__ = "jaxclip.parity"

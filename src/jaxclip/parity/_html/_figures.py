"""Figures as they are written, and what is allowed as a scale of levels."""

import math

_LEVELS = (
    (0.03, "a0"),
    (0.1, "a1"),
    (0.3, "a2"),
    (1.0, "a3"),
    (10.0, "b0"),
    (100.0, "b1"),
    (1e3, "b2"),
    (1e5, "b3"),
)

LEGEND = (
    *(("a0", "up to 0.03"), ("a1", "0.1"), ("a2", "0.3"), ("a3", "1")),
    *(("b0", "10"), ("b1", "100"), ("b2", "1,000"), ("b3", "100,000"), ("b4", "more")),
)
"""Each level, and up to what share it goes."""


def level(share: float, passed: bool = True) -> str:
    """Return the level of a share of what is allowed.

    Args:
        share: The share; NaN is taken for none.
        passed: Whether it passed; what did not is on a level of what differs.

    Example:
        >>> level(0.2), level(2.0), level(0.2, passed=False)
        ('a2', 'b0', 'b0')
    """
    found = next((name for most, name in _LEVELS if share <= most), "b4")
    return found if passed or found > "b" else "b0"


def number(value: float, digits: int = 3) -> str:
    """Write a number with a few digits; the page's own script does it alike.

    Example:
        >>> number(0.0001234), number(1234.5), number(1e-9), number(0.5)
        ('1.23e-4', '1,234', '1e-9', '0.5')
        >>> number(float("inf")), number(float("nan"))
        ('∞', '—')
    """
    if math.isnan(value):
        return "—"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    power = int(exponent)
    if -4 < power < 5:
        text = f"{value:,.{max(0, digits - 1 - power)}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return (
        f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{power}"
    )


def brief(share: float) -> str:
    """Write a share in the few characters of a cell.

    Example:
        >>> brief(0.0312), brief(3.21), brief(27.4), brief(81234.5), brief(1e-5)
        ('.03', '3.2', '27', '8e4', '0')
    """
    if not math.isfinite(share):
        return number(share)
    if share >= 999.5:
        mantissa, _, exponent = f"{share:.0e}".partition("e")
        return f"{mantissa}e{int(exponent)}"
    if share >= 9.95:
        return f"{share:.0f}"
    if share >= 0.995:
        return f"{share:.1f}"
    return f"{share:.2f}".lstrip("0") if share >= 0.005 else "0"


def count(number: int, noun: str) -> str:
    """Count something.

    Example:
        >>> count(1, "step"), count(1234, "tensor")
        ('1 step', '1,234 tensors')
    """
    return f"{number:,} {noun}{'s' * (number != 1)}"

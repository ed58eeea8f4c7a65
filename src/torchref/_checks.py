"""Checks of arguments that several modules make; it imports nothing."""


def at_least(minimum: float, **arguments: float) -> None:
    """Raise a ValueError that names the first argument below ``minimum``, or NaN.

    Example:
        >>> at_least(1, hidden_size=8, num_layers=0)
        Traceback (most recent call last):
        ValueError: num_layers is 0; it must be at least 1.
    """
    for name, value in arguments.items():
        if not value >= minimum:
            raise ValueError(f"{name} is {value}; it must be at least {minimum}.")

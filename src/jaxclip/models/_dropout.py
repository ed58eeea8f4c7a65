"""Dropout in Flax NNX, as the layers here have it."""

from flax import nnx

from jaxclip.models._checks import check_rate


def make_dropout(rate: float, rngs: nnx.Rngs) -> nnx.Dropout:
    """Build a dropout layer that holds no random numbers if it never drops anything.

    Raises:
        ValueError: If ``rate`` is not from 0 to 1.
    """
    check_rate(dropout=rate)
    return nnx.Dropout(rate, rngs=rngs if rate else None)

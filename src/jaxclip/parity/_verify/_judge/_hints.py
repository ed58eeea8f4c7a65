"""What a difference looks like: a factor, a sign, axes in another order, one row."""

from collections.abc import Iterator
from itertools import permutations

import numpy as np

from jaxclip.parity._arrays import Array
from jaxclip.parity._sizes import l2
from jaxclip.parity._verify._report._words import TORCH, Words

_FEW = 1e-3
"""How much of a difference may be left where a hint explains it."""

_MOST_AXES = 4


def hint(torch: Array, port: Array, allowed: float, words: Words = TORCH) -> str:
    """Say what the port's array looks like beside torch's, or nothing.

    It is for reading: a verdict takes no notice of it, and nothing is moved to fit.

    Args:
        torch: torch's array, in float64.
        port: The port's, of the same shape.
        allowed: By how much an element may differ.
        words: What the two sides are called.

    Example:
        >>> weights = np.arange(1.0, 10.0).reshape(3, 3)
        >>> hint(weights, 2 * weights, 0.0)
        'the port has 2 times what torch has'
        >>> hint(weights, weights.T, 0.0)
        'the port has the array of torch with its axes as (1, 0)'
        >>> first = np.asarray([[0.0], [1.0], [1.0]])
        >>> hint(first * weights, weights, 0.0)
        'index 0 along axis 0 alone differs, where torch has zeros'
    """
    if torch.size < 2 or not (np.isfinite(torch).all() and np.isfinite(port).all()):
        return ""
    apart = l2(port - torch)
    if not l2(torch) or not l2(port):
        return f"{words.port if l2(torch) else words.recorded} has zeros"
    wrong = np.abs(port - torch) > allowed
    if np.count_nonzero(wrong) == 1:
        index = tuple(int(i) for i in np.argwhere(wrong)[0])
        return f"the element at {index} alone differs"
    near = max(_FEW * apart, np.sqrt(torch.size) * allowed)
    for said, fitted in _candidates(torch, port, words):
        if l2(port - fitted) <= near:
            return said
    return _one_place(torch, port, wrong, words)


def _one_place(torch: Array, port: Array, wrong: Array, words: Words) -> str:
    """Say at which place along an axis all lies that differs, if there is one."""
    for axis, size in enumerate(wrong.shape):
        others = tuple(n for n in range(wrong.ndim) if n != axis)
        places = np.flatnonzero(wrong.any(others))
        if size > 1 and len(places) == 1:
            said = f"index {places[0]} along axis {axis} alone differs"
            for side, array in zip(words, (torch, port), strict=True):
                if not np.take(array, places, axis).any():
                    said += f", where {side} has zeros"
            return said
    return ""


def _candidates(torch: Array, port: Array, words: Words) -> Iterator[tuple[str, Array]]:
    theirs, ours = words
    scale = float(np.vdot(torch, port) / np.vdot(torch, torch))
    yield f"{ours} has {scale:.7g} times what {theirs} has", scale * torch
    if 2 <= torch.ndim <= _MOST_AXES:
        for axes in permutations(range(torch.ndim)):
            turned = np.transpose(torch, axes)
            if axes != (*range(torch.ndim),) and turned.shape == torch.shape:
                yield (
                    f"{ours} has the array of {theirs} with its axes as {axes}",
                    turned,
                )
    shift = float(np.mean(port - torch))
    yield f"{ours} has what {theirs} has, and {shift:.7g} more", torch + shift

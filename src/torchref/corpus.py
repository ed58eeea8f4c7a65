"""Text for language models: characters, integers, and batches of them.

Batch first: inputs and targets are integers of shape ``(B, T)``. This module needs
numpy and the standard library only.
"""

from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from pydoc_data import topics

import numpy as np
from numpy.typing import ArrayLike, NDArray

from torchref._checks import at_least

Tokens = NDArray[np.int64]
"""Characters as integers."""

Batch = tuple[Tokens, Tokens]
"""Inputs and targets, each ``(B, T)``; the targets lie one token further on."""


class Vocabulary:
    """The characters of a text, sorted and numbered from 0.

    Args:
        text: The text whose characters make up the vocabulary.

    Raises:
        ValueError: If ``text`` is empty.

    Example:
        >>> vocabulary = Vocabulary("hello")
        >>> len(vocabulary)
        4
        >>> vocabulary.encode("hole")
        array([1, 3, 2, 0])
        >>> vocabulary.decode([1, 3, 2, 0])
        'hole'
    """

    def __init__(self, text: str) -> None:
        """Number the characters of ``text``."""
        if not text:
            raise ValueError(
                "text is empty; a vocabulary needs at least one character."
            )
        self._chars = sorted(set(text))
        self._id_of = {char: id_ for id_, char in enumerate(self._chars)}

    def __len__(self) -> int:
        """Return the number of different characters."""
        return len(self._chars)

    def encode(self, text: str) -> Tokens:
        """Turn characters into their numbers.

        Args:
            text: Any string of the vocabulary's characters; it may be empty.

        Returns:
            An array of shape ``(len(text),)``.

        Raises:
            ValueError: If a character is not in the vocabulary.
        """
        unknown = sorted(set(text) - self._id_of.keys())
        if unknown:
            raise ValueError(
                f"text holds characters that are not in the vocabulary: "
                f"{_some_of(unknown)}. Build the vocabulary from a text that has them."
            )
        return np.fromiter(map(self._id_of.__getitem__, text), np.int64, len(text))

    def decode(self, ids: ArrayLike) -> str:
        """Turn numbers back into characters.

        Args:
            ids: A sequence of integers in ``[0, len(vocabulary))``; it may be empty.

        Returns:
            One character for each number.

        Raises:
            ValueError: If ``ids`` is not one-dimensional, or an entry is not in range.
            TypeError: If the entries are not integers.
        """
        ids = _integers(ids, "ids")
        unknown = np.unique(ids[(ids < 0) | (ids >= len(self))]).tolist()
        if unknown:
            raise ValueError(
                f"ids holds numbers that are not in the vocabulary: "
                f"{_some_of(unknown)}. They must lie in 0..{len(self) - 1}."
            )
        return "".join(self._chars[id_] for id_ in ids)


def python_help_text() -> str:
    """Return the English text that every Python carries: the topics of ``help()``.

    Half a million characters or so; which, depends on the version of Python.

    Example:
        >>> python_help_text()[:22]
        'The "assert" statement'
    """
    return "\n".join(topics.topics[name] for name in sorted(topics.topics))


def read_text(path: str | PathLike[str], min_chars: int = 1) -> str:
    """Read a UTF-8 file whole, line ends as they are.

    Args:
        path: The file.
        min_chars: The least number of characters that will do; see ``tokens_needed``.

    Returns:
        The text.

    Raises:
        FileNotFoundError: If there is no such file.
        IsADirectoryError: If it is a directory.
        ValueError: If it is empty, too short, or not UTF-8.

    Example:
        >>> read_text("no/such/file.txt")
        Traceback (most recent call last):
        FileNotFoundError: no/such/file.txt: there is no such file.
    """
    try:
        encoded = Path(path).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such file.") from None
    except IsADirectoryError:
        raise IsADirectoryError(
            f"{path}: this is a directory; give the path of a text file in it."
        ) from None
    try:
        text = encoded.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: this is not UTF-8 text: byte {encoded[error.start]:#04x} at "
            f"offset {error.start} ({error.reason}). Save the file as UTF-8."
        ) from None
    if not text:
        raise ValueError(f"{path}: the file is empty; give a file with some text.")
    if len(text) < min_chars:
        raise ValueError(
            f"{path}: the text is too short: it has {len(text)} characters, and "
            f"{min_chars} are needed. Give a longer text, or ask for smaller batches."
        )
    return text


def tokens_needed(batch_size: int, num_steps: int) -> int:
    """Return how many tokens make at least one batch, whatever the seed.

    ``batch_size * num_steps`` inputs, one more target, and up to ``num_steps - 1``
    tokens that the random start skips.

    Example:
        >>> tokens_needed(batch_size=32, num_steps=35)
        1155
    """
    return (batch_size + 1) * num_steps


def random_batches(
    tokens: ArrayLike, batch_size: int, num_steps: int, *, seed: int
) -> Iterator[Batch]:
    """Cut a text into pieces and deal them out in a random order, once.

    The pieces lie side by side, ``num_steps`` tokens each, from a random start below
    ``num_steps``. Pieces that do not fill a batch are left out. A row has nothing to
    do with the same row of the batch before it: start each batch from a fresh state.

    Args:
        tokens: The text, one-dimensional integers.
        batch_size: ``B``, the number of pieces in a batch.
        num_steps: ``T``, the number of tokens in a piece.
        seed: The same seed gives the same batches.

    Returns:
        An iterator over ``(inputs, targets)``, each of shape ``(B, T)``, batch first;
        the targets lie one token further on.

    Raises:
        ValueError: If a size is less than 1, ``tokens`` is not one-dimensional, or
            there are fewer than ``tokens_needed(batch_size, num_steps)``.
        TypeError: If ``tokens`` are not integers.

    Example:
        >>> for inputs, targets in random_batches(range(13), 2, 3, seed=0):
        ...     print(inputs.tolist(), targets.tolist())
        [[8, 9, 10], [2, 3, 4]] [[9, 10, 11], [3, 4, 5]]

    References:
        Zhang et al., *Dive into Deep Learning*, "Random Sampling".
    """
    tokens, rng = _begin_epoch(tokens, batch_size, num_steps, seed)
    num_pieces = (len(tokens) - 1) // num_steps
    num_batches = num_pieces // batch_size
    starts = rng.permutation(num_pieces)[: num_batches * batch_size] * num_steps
    return _cut(tokens, starts.reshape(num_batches, batch_size), num_steps)


def sequential_batches(
    tokens: ArrayLike, batch_size: int, num_steps: int, *, seed: int
) -> Iterator[Batch]:
    """Read a text in ``batch_size`` places at once, each from batch to batch, once.

    Row ``i`` of a batch goes on where row ``i`` of the batch before it stopped, so the
    state may be carried along. The text is taken from a random start below
    ``num_steps``; what does not fill a batch at the end of a row is left out.

    Args:
        tokens: The text, one-dimensional integers.
        batch_size: ``B``, the number of places.
        num_steps: ``T``, the number of tokens that a batch goes on.
        seed: The same seed gives the same batches.

    Returns:
        An iterator over ``(inputs, targets)``, each of shape ``(B, T)``, batch first;
        the targets lie one token further on.

    Raises:
        ValueError: If a size is less than 1, ``tokens`` is not one-dimensional, or
            there are fewer than ``tokens_needed(batch_size, num_steps)``.
        TypeError: If ``tokens`` are not integers.

    Example:
        >>> for inputs, targets in sequential_batches(range(13), 2, 3, seed=0):
        ...     print(inputs.tolist(), targets.tolist())
        [[2, 3, 4], [7, 8, 9]] [[3, 4, 5], [8, 9, 10]]

    References:
        Zhang et al., *Dive into Deep Learning*, "Sequential Partitioning".
    """
    tokens, _ = _begin_epoch(tokens, batch_size, num_steps, seed)
    row_length = (len(tokens) - 1) // batch_size
    row_starts = np.arange(batch_size) * row_length
    steps = np.arange(row_length // num_steps) * num_steps
    return _cut(tokens, steps[:, None] + row_starts, num_steps)


def _begin_epoch(
    tokens: ArrayLike, batch_size: int, num_steps: int, seed: int
) -> tuple[Tokens, np.random.Generator]:
    """Check what both partitions ask for, and skip a random start."""
    at_least(1, batch_size=batch_size, num_steps=num_steps)
    checked = _integers(tokens, "tokens")
    needed = tokens_needed(batch_size, num_steps)
    if len(checked) < needed:
        raise ValueError(
            f"tokens is too short: it has {len(checked)} tokens, and batch_size "
            f"{batch_size} by num_steps {num_steps} needs at least {needed}. Give a "
            "longer text, or ask for smaller batches."
        )
    rng = np.random.default_rng(seed)
    return checked[rng.integers(num_steps) :], rng


def _cut(tokens: Tokens, starts: NDArray[np.int64], num_steps: int) -> Iterator[Batch]:
    """Yield, for each row of ``starts``, the pieces that start there."""
    for batch_starts in starts:  # (B,)
        index = batch_starts[:, None] + np.arange(num_steps)  # (B, T)
        yield tokens[index], tokens[index + 1]


def _integers(values: ArrayLike, name: str) -> Tokens:
    """Return ``values`` as one-dimensional int64, or raise an error under ``name``."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name} has shape {array.shape}; it must be one-dimensional.")
    # An empty list has no integers in it that could tell its dtype.
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{name} has dtype {array.dtype}; it must hold integers.")
    return array.astype(np.int64)


def _some_of(values: list[str] | list[int]) -> str:
    """Name the first few of ``values``, and how many more there are."""
    named = ", ".join(map(repr, values[:5]))
    return named if len(values) <= 5 else f"{named} and {len(values) - 5} more"

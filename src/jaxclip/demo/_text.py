"""The text that the language model learns, as batches of integers."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from jaxclip.demo._settings import (
    BATCH_SIZE,
    SEQUENCE_LENGTH,
    DemoError,
    Settings,
)
from torchref.corpus import (
    Batch,
    Tokens,
    Vocabulary,
    python_help_text,
    read_text,
    sequential_batches,
    tokens_needed,
)


@dataclass(frozen=True)
class Corpus:
    """A text as integers.

    Attributes:
        name: What to call the text.
        tokens: The number of each character, of shape ``(len(text),)``.
        vocab_size: ``V``, how many different characters there are.
        seed: Draws where the batches start.
    """

    name: str
    tokens: Tokens
    vocab_size: int
    seed: int

    def batches(self, steps: int) -> Iterator[Batch]:
        """Cut the text into batches, the same ones at every call.

        The text is read in ``B`` places at once, each of which goes on from batch to
        batch; at its end it is read again, from another start. A state that is
        carried along comes then from other characters than those that went before.

        Args:
            steps: How many batches.

        Returns:
            An iterator over inputs and targets, ``(B, T)`` each.
        """
        passes = (
            sequential_batches(self.tokens, BATCH_SIZE, SEQUENCE_LENGTH, seed=seed)
            for seed in itertools.count(self.seed)
        )
        return itertools.islice(itertools.chain.from_iterable(passes), steps)


def load_corpus(settings: Settings) -> Corpus:
    """Read the text that the settings ask for.

    Raises:
        DemoError: If it cannot be read, or nothing can be learnt from it.
    """
    if settings.text is None:
        name, text = "the text of Python's help()", python_help_text()
    else:
        name = str(settings.text)
        try:
            text = read_text(settings.text)
        except (OSError, ValueError) as error:
            raise DemoError(str(error)) from None
    needed = tokens_needed(BATCH_SIZE, SEQUENCE_LENGTH)
    if len(text) < needed:
        raise DemoError(
            f"{name}: the text is too short: it has {len(text)} characters, and at "
            f"least {needed} are needed. Give a longer text."
        )
    vocabulary = Vocabulary(text)
    if len(vocabulary) == 1:
        raise DemoError(
            f"{name}: the text repeats one character, {text[0]!r}; there is nothing "
            "to learn from it."
        )
    return Corpus(name, vocabulary.encode(text), len(vocabulary), settings.seed)

"""What can be asked of the demo. Imports nothing that is slow or may be missing."""

from dataclasses import dataclass
from pathlib import Path

CELLS = ("rnn", "gru", "lstm")

BATCH_SIZE = 16
"""``B``, the number of places at which the text is read."""

SEQUENCE_LENGTH = 64
"""``T``, the number of characters that gradients flow back through."""


class DemoError(Exception):
    """The demo cannot run as asked; the message says why, in one line."""


@dataclass(frozen=True)
class Settings:
    """What is trained, on what, and where the results go.

    The defaults are chosen so that the demo takes half a minute and the gradients of
    the plain cell explode where nothing clips them.

    Attributes:
        steps: The training steps of each run.
        hidden: ``H``, the hidden units of the recurrent layer.
        cell: One of ``CELLS``.
        max_norm: The norm to which gradients are clipped.
        lr: The learning rate.
        seed: Draws the initial weights and the start of the text.
        text: The file to learn, None for the text of Python's ``help()``.
        out: The directory of the results.
    """

    steps: int = 400
    hidden: int = 128
    cell: str = "rnn"
    max_norm: float = 1.0
    lr: float = 1.0
    seed: int = 0
    text: Path | None = None
    out: Path = Path("build/demo")

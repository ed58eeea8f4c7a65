"""What the two sides of a comparison are called."""

from typing import NamedTuple


class Words(NamedTuple):
    """The names of two sides, as they stand in a sentence.

    Attributes:
        recorded: What the recording holds.
        port: What is held against it.
    """

    recorded: str
    port: str

    @property
    def labels(self) -> tuple[str, str]:
        """The same without articles."""
        return self.recorded.removeprefix("the "), self.port.removeprefix("the ")


TORCH = Words("torch", "the port")
RECORDING = Words("the recording", "the port")
TRACES = Words("the reference", "the candidate")


def words_for(framework: str) -> Words:
    """Return what a recording of a framework and a port are called.

    Example:
        >>> words_for("jax").labels
        ('recording', 'port')
    """
    return TORCH if framework == "torch" else RECORDING

"""What is Equinox's, if that is imported: it need not be there."""

import sys


def is_dropout(part: object) -> bool:
    """Say whether a part of a tree is a dropout."""
    equinox = sys.modules.get("equinox")
    return equinox is not None and isinstance(part, equinox.nn.Dropout)


def is_state(part: object) -> bool:
    """Say whether something is the state that modules are given and return."""
    equinox = sys.modules.get("equinox")
    return equinox is not None and isinstance(part, equinox.nn.State)

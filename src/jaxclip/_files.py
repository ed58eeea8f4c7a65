"""Files that are written whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file beside its place, then move it there.

    Args:
        path: The file; one that is there already is replaced.
        write: Writes the contents into the open file.

    Raises:
        OSError: If it cannot be written. As after any other error, what was at
            ``path`` is still there.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "greeting.txt"
        >>> write_whole(path, lambda file: file.write(b"hello"))
        >>> path.read_text()
        'hello'
    """
    # Named for the process, so that two runs do not write into the same file.
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            write(file)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)

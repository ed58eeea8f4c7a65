"""Reading a recording, one step at a time."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import overload

from jaxclip._safetensors import read_safetensors
from jaxclip.parity._trace._json import LARGEST, TraceError, structured, unseal
from jaxclip.parity._trace._records import (
    LoopWarning,
    Manifest,
    Run,
    StepLine,
)
from jaxclip.parity._trace._step import Step
from jaxclip.parity._trace._writer import MANIFEST, STEPS, step_file


class Trace(Sequence[Step]):
    """A recorded run: a sequence of steps, and what holds for all of them.

    Each step is read, and its file held against its checksum, when it is asked for.

    Attributes:
        path: The folder.
        run: What holds for all steps.
        finished: Whether the run came to its end. If not, it was killed or failed,
            and the steps are those before that.
        warnings: The mistakes of the training loop, of all steps and of the whole.
    """

    def __init__(
        self, path: Path, manifest: Manifest, lines: Sequence[StepLine]
    ) -> None:
        """Keep what was read."""
        self.path: Path = path
        self.run: Run = manifest.run
        self.finished: bool = manifest.steps is not None
        of_steps = (warning for line in lines for warning in line.record.warnings)
        self.warnings: tuple[LoopWarning, ...] = (*of_steps, *manifest.warnings)
        self._lines = lines

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of the recorded steps in the run, from 0."""
        return tuple(line.record.number for line in self._lines)

    @property
    def nbytes(self) -> int:
        """The bytes of the files of all steps."""
        return sum(line.size for line in self._lines)

    def __len__(self) -> int:
        """Count the recorded steps."""
        return len(self._lines)

    @overload
    def __getitem__(self, index: int) -> Step: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Step, ...]: ...
    def __getitem__(self, index: int | slice) -> Step | tuple[Step, ...]:
        """Read the step at a place in the recording.

        Raises:
            TraceError: If its file is missing or damaged.
        """
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        return _read_step(self.path, self._lines[index])

    def __repr__(self) -> str:
        """Show where it lies, and how many steps it has."""
        return f"<Trace {str(self.path)!r} of {self.run.framework}, {len(self)} steps>"


def _read_step(folder: Path, line: StepLine) -> Step:
    path = folder / step_file(line.record.number)
    what = f"step {line.record.number} of the recording"
    where = f"{what} is {str(path)!r}"
    if not path.is_file():
        raise TraceError(f"{where}; there is no such file.")
    size = path.stat().st_size
    if size != line.size:
        raise TraceError(
            f"{where}; it is damaged: it has {size} bytes, and was written with "
            f"{line.size}."
        )
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != line.sha256:
            raise TraceError(f"{where}; it is damaged: its checksum is another.")
    try:
        return Step(line, read_safetensors(path, what))
    except TraceError as error:
        raise TraceError(f"{where}; it is damaged: {error}") from None
    except ValueError as error:
        raise TraceError(str(error)) from None


def open_trace(path: str | os.PathLike[str]) -> Trace:
    """Open the recording of a training run.

    Nothing in it is unpickled or run, and no memory is taken for what a file says
    before the file has been seen to hold it. Torch is not needed.

    Args:
        path: The folder that ``record`` wrote.

    Returns:
        The recording. If the run was killed, it has the steps up to the last whole
        one.

    Raises:
        FileNotFoundError: If there is no such recording.
        TraceError: If the manifest or the list of steps is damaged, or was written by
            a newer version of jaxclip.

    Example:
        >>> open_trace("no.trace")
        Traceback (most recent call last):
        FileNotFoundError: path is 'no.trace', where there is no recording: it must be \
        a folder with a manifest.json, as jaxclip.parity.record writes it.
    """
    folder = Path(path)
    if not (folder / MANIFEST).is_file():
        raise FileNotFoundError(
            f"path is {str(path)!r}, where there is no recording: it must be a folder "
            f"with a {MANIFEST}, as jaxclip.parity.record writes it."
        )
    where = f"recording {str(folder / MANIFEST)!r}"
    record = unseal(_read_bounded(folder / MANIFEST), where)
    manifest = structured(Manifest, record, where)
    lines = _read_lines(folder / STEPS)
    if manifest.steps is not None and manifest.steps != len(lines):
        raise TraceError(
            f"recording {str(folder / STEPS)!r} is damaged: the run finished with "
            f"{manifest.steps} recorded steps, and {len(lines)} are listed."
        )
    return Trace(folder, manifest, lines)


def _read_lines(path: Path) -> tuple[StepLine, ...]:
    if not path.is_file():
        # The run was killed before its first step.
        return ()
    *texts, _ = _read_bounded(path).split(b"\n")  # the last was not written whole
    lines: list[StepLine] = []
    for index, text in enumerate(texts):
        where = f"recording {str(path)!r}, line {index + 1}"
        line: StepLine = structured(StepLine, unseal(text, where), where)
        if line.index != index or (
            lines and line.record.number <= lines[-1].record.number
        ):
            raise TraceError(f"{where} is damaged: the line before it is missing.")
        lines.append(line)
    return tuple(lines)


def _read_bounded(path: Path) -> bytes:
    size = path.stat().st_size
    if size > LARGEST:
        raise TraceError(
            f"recording {str(path)!r} is damaged: it has {size} bytes, and "
            f"no recording has more than {LARGEST} of JSON."
        )
    with path.open("rb") as file:
        return file.read(size)

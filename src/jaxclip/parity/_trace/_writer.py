"""Writing a recording, step by step."""

import hashlib
import math
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from jaxclip._files import write_whole
from jaxclip._safetensors import write_safetensors
from jaxclip.parity._trace._digest import digest
from jaxclip.parity._trace._json import FORMAT, LARGEST, TraceError, seal
from jaxclip.parity._trace._records import (
    RESULTS,
    Digested,
    LoopWarning,
    Manifest,
    Run,
    StepLine,
    StepRecord,
)

MANIFEST = "manifest.json"
STEPS = "steps.jsonl"

_RESULTS = tuple(f"{stage}/" for stage in RESULTS)


def step_file(number: int) -> str:
    """Return the name of the file of a step's arrays."""
    return f"step-{number:06}.safetensors"


class TraceWriter:
    """A recording that is being written.

    A run that is killed leaves a recording that reads up to its last whole step: the
    file of a step is moved to its place when it is whole, and after that a line for it
    is added to the list of steps.

    Args:
        folder: Where it goes; made if need be.
        run: What holds for the whole run.
        overwrite: Whether to remove a recording that is there already.
        digest_above: Of an array of more bytes, in the stages of ``RESULTS``, the
            digest is written; None writes all whole.

    Raises:
        FileExistsError: If something is at ``folder``, and it is no empty folder and,
            with ``overwrite``, no recording.
    """

    def __init__(
        self,
        folder: Path,
        run: Run,
        *,
        overwrite: bool = False,
        digest_above: int | None = None,
    ) -> None:
        """Write the manifest."""
        make_room(folder, overwrite=overwrite)
        self._folder = folder
        self._run = run
        self._digest_above = math.inf if digest_above is None else digest_above
        self._steps = 0
        self._size = 0
        self._write_manifest(Manifest(run))
        (folder / STEPS).touch()

    def add(
        self, record: StepRecord, stages: Mapping[str, Mapping[str, np.ndarray]]
    ) -> None:
        """Add a step.

        Args:
            record: What there is to say of it.
            stages: Its arrays by stage and name. Of two stages that hold the same
                objects under the same names, one is written.

        Raises:
            ValueError: If safetensors has no such dtype.
            TraceError: If the list of steps would become too long to be read.
            OSError: If it cannot be written.
        """
        first: dict[tuple[tuple[str, int], ...], str] = {}
        same = {}
        once: dict[str, np.ndarray] = {}
        for stage, arrays in stages.items():
            held = tuple((name, id(array)) for name, array in arrays.items())
            if (other := first.setdefault(held, stage)) != stage:
                same[stage] = other
            else:
                once |= {f"{stage}/{name}": array for name, array in arrays.items()}
        path = self._folder / step_file(record.number)
        digests = {
            name: Digested(array.shape, str(array.dtype))
            for name, array in once.items()
            if array.nbytes > self._digest_above and name.startswith(_RESULTS)
        }
        once |= {name: digest(once[name]).numbers for name in digests}
        checksum = hashlib.sha256()
        write_safetensors(path, once, checksum.update)
        line = seal(
            StepLine(
                index=self._steps,
                size=path.stat().st_size,
                sha256=checksum.hexdigest(),
                same=same,
                digests=digests,
                record=record,
            )
        )
        self._size += len(line)
        if self._size > LARGEST:
            raise TraceError(
                f"recording {str(self._folder)!r} is full: the list of its steps may "
                f"have {LARGEST} bytes. Record fewer steps (every=), or fewer modules "
                "(activations=)."
            )
        with (self._folder / STEPS).open("ab") as file:
            file.write(line)
        self._steps += 1

    def finish(self, warnings: Iterable[LoopWarning] = ()) -> None:
        """Say that the run came to its end, and what can be said only then."""
        self._write_manifest(Manifest(self._run, self._steps, tuple(warnings)))

    def _write_manifest(self, manifest: Manifest) -> None:
        line = seal(manifest)
        write_whole(self._folder / MANIFEST, lambda file: file.write(line))


def make_room(folder: Path, *, overwrite: bool) -> None:
    """Make an empty folder, or see to it that there is one."""
    if folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            raise FileExistsError(
                f"path is {str(folder)!r}, where there is something already; name "
                "another folder, or pass overwrite=True to replace a recording."
            )
        if not _is_recording(folder):
            raise FileExistsError(
                f"path is {str(folder)!r}, a folder that is no recording; "
                "overwrite=True replaces recordings alone."
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)


def _is_recording(folder: Path) -> bool:
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return False
    with manifest.open("rb") as file:
        return FORMAT.encode() in file.read(64)

"""What every recording may be told: which stages, which steps, which modules."""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from jaxclip.parity._trace._records import STAGES


@dataclass(frozen=True)
class Options:
    """What is kept of a run.

    Attributes:
        stages: The stages to keep.
        every: Of so many steps, one is recorded.
        patterns: Patterns of the paths of the modules whose output is kept.
        digest_above: Of larger arrays, in bytes, the digest is kept; None for none.
        overwrite: Whether a recording that is in the way is replaced.
    """

    stages: frozenset[str]
    every: int
    patterns: tuple[str, ...]
    digest_above: int | None
    overwrite: bool

    @classmethod
    def read(
        cls,
        function: str,
        *,
        activations: bool | Iterable[str],
        keep: Iterable[str],
        every: int,
        digest_above: int | None,
        overwrite: bool,
    ) -> "Options":
        """Check the arguments of a public function.

        Raises:
            ValueError: If one makes no sense; the message names the function.
        """
        stages = frozenset([keep] if isinstance(keep, str) else keep)
        if unknown := sorted(stages - {*STAGES}):
            raise ValueError(
                f"{function}(keep=) has {unknown[0]!r}, which is no stage of a step: "
                f"the stages are {', '.join(STAGES)}."
            )
        if type(every) is not int or every < 1:
            raise ValueError(
                f"{function}(every={every!r}): it must be an integer from 1 on."
            )
        if digest_above is not None and (
            type(digest_above) is not int or digest_above < 0
        ):
            raise ValueError(
                f"{function}(digest_above={digest_above!r}): it must be a number of "
                "bytes, or None."
            )
        if isinstance(activations, bool):
            activations = ("*",) if activations else ()
        elif isinstance(activations, str):
            activations = (activations,)
        return cls(stages, every, tuple(activations), digest_above, overwrite)

    @property
    def keep(self) -> tuple[str, ...]:
        """The stages to keep, in order."""
        return tuple(stage for stage in STAGES if stage in self.stages)

    @property
    def files(self) -> dict[str, Any]:
        """What ``TraceWriter`` is to know."""
        return {"overwrite": self.overwrite, "digest_above": self.digest_above}

    def wanted(self, path: str) -> bool:
        """Say whether the output of a module is kept."""
        return any(fnmatchcase(path, pattern) for pattern in self.patterns)

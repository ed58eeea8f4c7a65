"""What a recorded step has of a stage, by flat names, and whose names they are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxclip.convert._names import Rename, target_names
from jaxclip.parity._trace._digest import Digest
from jaxclip.parity._trace._step import Step
from jaxclip.parity._verify._alignment._places import Place
from jaxclip.parity._verify._report._results import BATCH

Array = np.ndarray[Any, Any]
Held = Mapping[str, Array | Digest]
"""Arrays by name, or their digests."""


def held(step: Step, stage: str) -> Held:
    """Return all that a step has of a stage of a recording, by flat names."""
    value = getattr(step, stage)
    found: dict[str, Any] = {}
    match stage:
        case "activations" | "masks" | "draws":
            return {
                str(Place(a.module, a.call, a.output)): (
                    a.array if a.digest is None else a.digest
                )
                for a in value
            }
        case "outputs":
            found = {
                f"{i}/{k}": a for i, own in enumerate(value) for k, a in own.items()
            }
        case "loss":
            found = {str(i): loss for i, loss in enumerate(value)}
        case "total_norm":
            found = {} if value is None else {"": value}
        case "opt_state" | "opt_state_after":
            found = {f"{n}/{k}": a for n, own in value.items() for k, a in own.items()}
        case _:
            found = dict(value)
    return {**found, **step.digests.get(stage, {})}


def update_of(step: Step) -> Held:
    """Return by how much the parameters changed, where both are kept whole."""
    return {
        name: (after.astype(np.float64) - step.params[name].astype(np.float64)).astype(
            after.dtype
        )
        for name, after in step.params_after.items()
        if name in step.params
    }


@dataclass(frozen=True)
class Names:
    """The candidate's names of what the reference has.

    Attributes:
        rename: How the reference's names become the candidate's.
    """

    rename: Rename | None

    def __call__(self, stage: str, name: str) -> str:
        """Rename what belongs to a module or a parameter."""
        if self.rename is None or stage in ("output", "loss", "total norm", BATCH):
            return name
        if stage == "activations":
            module, comma, rest = name.partition(", ")
            return self._one(module) + comma + rest
        parameter, slash, key = name.rpartition("/")
        return self._one(parameter) + slash + key if slash else self._one(key)

    def _one(self, name: str) -> str:
        [renamed] = target_names([name], self.rename, ())[0]
        return renamed


def module_of(stage: str, name: str) -> str:
    """Return the module that a tensor belongs to."""
    if stage in (BATCH, "output", "loss", "total norm"):
        return ""
    if stage == "activations":
        return name.partition(", ")[0]
    return (name.rpartition("/")[0] or name).rpartition(".")[0]

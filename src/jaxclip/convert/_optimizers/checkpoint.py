"""What a torch optimizer holds, and what lies beside it in a checkpoint."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxclip.convert._sources.source import read_source
from jaxclip.convert._sources.torch_files import read_torch

Group = dict[str, Any]

_ADAMAX = {"betas", "eps", "weight_decay"}
_ADAM = {"amsgrad", "decoupled_weight_decay"}
"""Arguments of torch's Adamax, and those of Adam, NAdam and RAdam that it lacks."""


@dataclass(frozen=True)
class Checkpoint:
    """A torch optimizer, as its state dict has it.

    Attributes:
        kept: What is kept of each parameter, by its number.
        groups: The parameter groups, with the numbers of their parameters.
        live: The optimizer, if it is one and not its state dict.
        model: The tensors beside it, by name, in the order of the torch model's.
        schedulers: The state dicts of the schedulers beside it.
    """

    kept: Mapping[int, Mapping[str, Any]]
    groups: list[Group]
    live: Any = None
    model: Mapping[str, Any] | None = None
    schedulers: tuple[Mapping[str, Any], ...] = ()

    @property
    def numbers(self) -> list[int]:
        """The numbers of all parameters, in the order of the groups."""
        return [number for group in self.groups for number in group["params"]]

    @property
    def is_adamax(self) -> bool:
        """Whether the optimizer is Adamax."""
        if any(self.kept.values()):
            return any("exp_inf" in own for own in self.kept.values())
        # Of one that took no step its arguments tell.
        return any(
            own.keys() >= _ADAMAX and own.keys().isdisjoint(_ADAM)
            for own in self.groups
        )


def read_checkpoint(source: object, key: str | None = None) -> Checkpoint:
    """Find an optimizer's state, and the weights and the scheduler beside it.

    Args:
        source: An optimizer, its state dict, a mapping that holds one, or the path
            of a file that does.
        key: Under which key the optimizer's state dict lies; by default it is the
            only one.

    Raises:
        TypeError: If it is none of these.
        FileNotFoundError: If there is no such file.
        ValueError: If there is no optimizer's state dict in it, or more than one.
        ImportError: If torch is needed, and missing.
    """
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if not path.is_file():
            raise FileNotFoundError(f"source is {str(path)!r}; there is no such file.")
        whole, what = read_torch(path), f"source is {str(path)!r}, which"
    elif _is_optimizer(source):
        own = source.state_dict()  # type: ignore[attr-defined]
        return Checkpoint(own["state"], own["param_groups"], live=source)
    elif isinstance(source, Mapping):
        whole, what = source, "source"
    else:
        raise TypeError(
            f"source is a {type(source).__name__}; it must be a torch optimizer, its "
            "state dict, or a checkpoint that holds one: a mapping, or a file."
        )
    own, beside = _own(whole, key, what)
    return Checkpoint(
        own["state"],
        own["param_groups"],
        model=_model(beside),
        schedulers=tuple(filter(is_scheduler_state, beside.values())),
    )


def is_scheduler_state(value: object) -> bool:
    """Say whether a value is the state dict of a scheduler."""
    return isinstance(value, Mapping) and bool({"last_epoch", "_schedulers"} & {*value})


def _own(
    whole: Mapping[str, Any], key: str | None, what: str
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the optimizer's state dict, and all that lies beside it."""
    if key is None and _is_optimizer_state(whole):
        return whole, {}
    found = [name for name, value in whole.items() if _is_optimizer_state(value)]
    if key is not None:
        found = [name for name in found if name == key]
    if len(found) != 1:
        held = f"It has the keys {', '.join(map(repr, whole))}."
        if found:
            held = f"Say which it is: {', '.join(f'key={name!r}' for name in found)}."
        number = "more than one" if found else "no"
        under = f" under key={key!r}" if key is not None else ""
        raise ValueError(f"{what} has {number} optimizer's state dict{under}. {held}")
    return whole[found[0]], {k: v for k, v in whole.items() if k != found[0]}


def _model(beside: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the weights, if it is clear which they are."""
    held = {k: v for k, v in beside.items() if isinstance(v, Mapping)}
    try:
        tensors = read_source(held).tensors
    except (ValueError, TypeError):
        return None
    return tensors if any(hasattr(t, "shape") for t in tensors.values()) else None


def _is_optimizer(value: object) -> bool:
    return hasattr(value, "state_dict") and hasattr(value, "param_groups")


def _is_optimizer_state(value: object) -> bool:
    return isinstance(value, Mapping) and {"state", "param_groups"} <= {*value}

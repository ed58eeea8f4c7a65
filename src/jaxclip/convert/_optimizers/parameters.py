"""Which of an optimizer's parameters is which of the model's."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxclip.convert._errors import ConversionError
from jaxclip.convert._map.weight_map import WeightMap
from jaxclip.convert._optimizers.checkpoint import Checkpoint
from jaxclip.convert._plan import Entry
from jaxclip.convert._targets.tree import Path

ParamNames = Iterable[str] | Iterable[Iterable[str]]


def parameter_names(
    held: Checkpoint,
    weights: WeightMap,
    *,
    param_names: ParamNames | None,
    model: Any,
) -> dict[str, int]:
    """Return the number of each of the optimizer's parameters, by its name.

    The names are those that the user gives, or that torch stored; those of the
    model's own tensors where the optimizer is a live one; or, for an optimizer of one
    group that has all of the model's parameters, theirs in their order.

    Args:
        held: The optimizer.
        weights: The map of the model's parameters.
        param_names: As ``opt_state_from_torch`` takes it.
        model: The same.

    Raises:
        ConversionError: If it is not clear which is which, or one is not in the map.
    """
    names = _names(held, weights, param_names, model)
    known = {name for entry in weights.entries for name in entry.names}
    problems = [
        f"{name!r} is a parameter of the optimizer, but none of the target's."
        for name in names
        if name not in known
    ]
    problems += [
        f"{name!r} stands for {names.count(name)} of the optimizer's parameters."
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    if problems:
        raise ConversionError(problems)
    return dict(zip(names, held.numbers, strict=True))


def entries_by_path(
    weights: WeightMap, names: Mapping[str, int]
) -> dict[Path, Entry | None]:
    """Return the entry of each variable: of several, the one that has the names.

    A variable of which the optimizer has no parameter is there, with None.
    """
    found: dict[Path, Entry | None] = {}
    for entry in weights.entries:
        is_held = any(name in names for name in entry.names)
        for leaf in entry.leaves:
            found[leaf.path] = entry if is_held else found.get(leaf.path)
    return found


def _names(
    held: Checkpoint, weights: WeightMap, param_names: ParamNames | None, model: Any
) -> list[str]:
    count = len(held.numbers)
    if param_names is not None:
        given = _flat(param_names)
        if len(given) != count:
            raise ConversionError(
                [
                    f"param_names has {len(given)} names; the optimizer has {count} "
                    f"parameters, in {_groups(held)}."
                ]
            )
        return given
    if all("param_names" in group for group in held.groups):
        return [name for group in held.groups for name in group["param_names"]]
    if held.live is not None and hasattr(model, "named_parameters"):
        return _by_identity(held.live, model)
    return _in_order(held, weights, model)


def _flat(param_names: ParamNames) -> list[str]:
    flat: list[str] = []
    for names in param_names:
        flat += [names] if isinstance(names, str) else names
    return flat


def _by_identity(optimizer: Any, model: Any) -> list[str]:
    names = {id(tensor): name for name, tensor in model.named_parameters()}
    tensors = [t for group in optimizer.param_groups for t in group["params"]]
    strangers = [tuple(t.shape) for t in tensors if id(t) not in names]
    if strangers:
        raise ConversionError(
            f"the optimizer has a parameter of shape {shape} that is none of model's."
            for shape in strangers
        )
    return [names[id(tensor)] for tensor in tensors]


def _in_order(held: Checkpoint, weights: WeightMap, model: Any) -> list[str]:
    names = _ordered(held, weights, model)
    count = len(held.numbers)
    say = (
        "Say which is which: param_names=[[...], [...]], a list for each group, or "
        "make the torch optimizer from model.named_parameters()."
    )
    if names is None:
        raise ConversionError(
            [
                "the optimizer's parameters have numbers and no names. Pass model=, "
                f"the torch model or its state dict, whose order they have. {say}"
            ]
        )
    if len(held.groups) > 1:
        raise ConversionError(
            [
                "the optimizer's parameters have numbers and no names, and lie in "
                f"{_groups(held)}, so that the order of the model's says nothing. {say}"
            ]
        )
    if len(names) != count:
        raise ConversionError(
            [
                f"the optimizer has {count} parameters without names, and the model "
                f"{len(names)}. {say}"
            ]
        )
    return names


def _ordered(held: Checkpoint, weights: WeightMap, model: Any) -> list[str] | None:
    """Return the names of the model's parameters in torch's order, if it is known."""
    if hasattr(model, "named_parameters"):
        return [name for name, _ in model.named_parameters()]
    tensors = held.model if model is None else model
    if tensors is None:
        return None
    variables = {name: entry for entry in weights.entries for name in entry.names}
    names: list[str] = []
    seen = set()
    for name in tensors:
        if name not in variables:
            continue
        entry = variables[name]
        # torch's parameters() gives tied ones once, and a state dict under each name.
        own = tuple(leaf.path for leaf in entry.leaves), entry.names.index(name)
        if own not in seen:
            seen.add(own)
            names.append(name)
    return names


def _groups(held: Checkpoint) -> str:
    sizes: Sequence[int] = [len(group["params"]) for group in held.groups]
    if len(sizes) == 1:
        return "one group"
    return f"{len(sizes)} groups of {', '.join(map(str, sizes))}"

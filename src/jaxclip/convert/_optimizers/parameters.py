"""Which of an optimizer's parameters is which of the model's."""

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from jaxclip.convert._errors import ConversionError
from jaxclip.convert._map.weight_map import WeightMap
from jaxclip.convert._optimizers.checkpoint import Checkpoint

ParamNames = Iterable[str] | Iterable[Iterable[str]]


def parameter_names(
    held: Checkpoint,
    weights: WeightMap,
    *,
    param_names: ParamNames | None,
    model: Any,
    ignore: Iterable[str],
    any_order: bool = False,
) -> dict[str, int]:
    """Return the number of each of the optimizer's parameters, by its name.

    Those that are ignored are left out.

    The names are those that the user gives, or that torch stored; those of the
    model's own tensors where the optimizer is a live one; or, for an optimizer of one
    group that has all of the model's parameters, theirs in their order.

    Args:
        held: The optimizer.
        weights: The map of the model's parameters.
        param_names: As ``opt_state_from_torch`` takes it.
        model: The same.
        ignore: The same.
        any_order: Whether it does not matter which is which where all are in one group.

    Raises:
        ConversionError: If it is not clear which is which, or one is not in the map.
    """
    everything = _distinct(weights)
    whole = len(held.groups) == 1 and len(everything) == len(held.numbers)
    if any_order and whole and param_names is None:
        return dict(zip(everything, held.numbers, strict=True))
    left_out = ignored(ignore)
    names = _names(held, weights, param_names, model, left_out)
    known = {name for entry in weights.entries for name in entry.names}
    problems = [
        f"{name!r} is a parameter of the optimizer, but none of the target's. If it is "
        f"to be left out: ignore={name!r}."
        for name in names
        if name not in known and not left_out(name)
    ]
    problems += [
        f"{name!r} stands for {names.count(name)} of the optimizer's parameters."
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    if problems:
        raise ConversionError(problems)
    numbers = dict(zip(names, held.numbers, strict=True))
    return {name: n for name, n in numbers.items() if not left_out(name)}


def ignored(ignore: Iterable[str]) -> Callable[[str], bool]:
    """Return a function that says whether a name matches one of the patterns."""
    patterns = (ignore,) if isinstance(ignore, str) else tuple(ignore)
    return lambda name: any(fnmatchcase(name, pattern) for pattern in patterns)


def _names(
    held: Checkpoint,
    weights: WeightMap,
    param_names: ParamNames | None,
    model: Any,
    left_out: Callable[[str], bool],
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
    if all(isinstance(number, str) for number in held.numbers):
        # As torch.distributed.checkpoint has them.
        return [str(name) for name in held.numbers]
    if all("param_names" in group for group in held.groups):
        return [name for group in held.groups for name in group["param_names"]]
    if held.live is not None and hasattr(model, "named_parameters"):
        return _by_identity(held.live, model)
    return _in_order(held, weights, model, left_out)


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


def _in_order(
    held: Checkpoint, weights: WeightMap, model: Any, left_out: Callable[[str], bool]
) -> list[str]:
    names = _ordered(held, weights, model, left_out)
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


def _ordered(
    held: Checkpoint, weights: WeightMap, model: Any, left_out: Callable[[str], bool]
) -> list[str] | None:
    """Return the names of the model's parameters in torch's order, if it is known."""
    if hasattr(model, "named_parameters"):
        return [name for name, _ in model.named_parameters()]
    tensors = held.model if model is None else model
    if tensors is None:
        return None
    known = {name for entry in weights.entries for name in entry.names}
    # Not buffers, which no optimizer has.
    names = [name for name in tensors if name in known or left_out(name)]
    return _distinct(weights, names)


def _distinct(weights: WeightMap, names: Iterable[str] | None = None) -> list[str]:
    """Return one name of each parameter, of several that are tied the first.

    So do torch's ``parameters()``, where a state dict has each of the names.
    """
    tensors = {
        name: (tuple(leaf.path for leaf in entry.leaves), place)
        for entry in weights.entries
        for place, name in enumerate(entry.names)
    }
    first: dict[Any, str] = {}
    for name in tensors if names is None else names:
        first.setdefault(tensors.get(name, name), name)
    return list(first.values())


def _groups(held: Checkpoint) -> str:
    sizes: Sequence[int] = [len(group["params"]) for group in held.groups]
    if len(sizes) == 1:
        return "one group"
    return f"{len(sizes)} groups of {', '.join(map(str, sizes))}"

"""Where each parameter of a Flax model is: in which group, and how it lies."""

from dataclasses import dataclass
from typing import Any

import jax

from jaxclip._core.paths import path_name
from jaxclip.convert._map.weight_map import WeightMap
from jaxclip.convert._optimizers.layout import Layout
from jaxclip.convert._optimizers.state import trained_params
from jaxclip.convert._plan import Entry
from jaxclip.convert._targets.tree import tree_path


@dataclass(frozen=True)
class Place:
    """A parameter's place.

    Attributes:
        group: The number of its group; None if it is frozen.
        entry: Its entry in the map.
    """

    group: int | None
    entry: Entry


def places_of(
    target: Any, weights: WeightMap, names: dict[str, int], optimizer: Any
) -> tuple[dict[str, Place], list[str]]:
    """Return the place of each parameter by its path, and the problems.

    Args:
        target: The Flax model.
        weights: The map of its parameters.
        names: The numbers of the optimizer's parameters by name.
        optimizer: The torch optimizer.
    """
    layout = Layout.of(weights, names)
    groups = [
        (index, tensor)
        for index, group in enumerate(optimizer.param_groups)
        for tensor in group["params"]
    ]
    places = {}
    leaves = jax.tree_util.tree_leaves_with_path(trained_params(target))
    for path, _ in leaves:
        entry = layout.entry(tree_path(path), may_lack=True)
        if entry is None:
            continue
        own = {
            groups[names[name]][0]
            for name in entry.names
            if name in names and groups[names[name]][1].requires_grad
        }
        if len(own) > 1:
            layout.problem(
                f"{', '.join(map(repr, entry.names))} are one array here, {entry}, and "
                "lie in several of the optimizer's groups."
            )
        places[path_name(path)] = Place(min(own, default=None), entry)
    return places, layout.problems

"""What the modules of a port returned, call by call."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxclip.convert._modules import in_layers, is_in
from jaxclip.parity._arrays import Array
from jaxclip.parity._verify._tracing._inside import Axes, Place, places

Calls = dict[str, list[Any]]
"""What a module returned, call by call, by the path that Flax lists it under: in scans
and maps `Repeated`, and nothing where nobody can look."""


@jax.tree_util.register_static
@dataclass(frozen=True)
class Inside:
    """Stands for what a module returned in a transformation, until it is known."""


class Mapped(NamedTuple):
    """What a module returned where more than its layers is mapped over.

    Attributes:
        output: What it returned; each array has the axes in front.
        axes: How many.
    """

    output: Any
    axes: int

    def like(self, array: Array, shape: Sequence[int] | None) -> Array:
        """Return one of its arrays with the axes where they are to be, by the shape.

        ``jax.vmap`` may map over any axis, and does not say over which it does. Where
        the shape does not tell they stay in front.

        Example:
            >>> Mapped(None, axes=1).like(np.zeros((5, 4, 2)), (4, 5, 2)).shape
            (4, 5, 2)
        """
        if shape is None or array.shape == (*shape,):
            return array
        front = range(self.axes)
        found = {}
        for ends in itertools.permutations(range(array.ndim), self.axes):
            moved = np.moveaxis(array, front, ends)
            if moved.shape == (*shape,):
                found[moved.strides] = moved
        return next(iter(found.values())) if len(found) == 1 else array


@partial(jax.tree_util.register_dataclass, data_fields=["output"], meta_fields=["axes"])
@dataclass(frozen=True)
class Repeated:
    """What a module returned in all that is repeated around it.

    Attributes:
        output: What it returned; each array has the axes in front.
        axes: The scans and maps around it.
    """

    output: Any
    axes: Axes

    def by_layer(self, counts: Sequence[int]) -> dict[tuple[int, ...], list[Any]]:
        """Share it out to stacked layers, and within one to its calls in order.

        Args:
            counts: How many layers each stack has, the outer stack first.

        Returns:
            The outputs by the numbers of the layers, none where neither scans nor maps
            are over the stacks. Where more is mapped over, they are `Mapped`.

        Example:
            >>> outputs = np.arange(6).reshape(2, 3)
            >>> Repeated(outputs, Axes(maps=(2,))).by_layer([2])
            {(0,): [array([0, 1, 2])], (1,): [array([3, 4, 5])]}
        """
        outputs = jax.tree.map(np.asarray, self.output)

        def at(place: Place) -> Any:
            index = tuple(slice(None) if n is None else n for n in place)
            output = jax.tree.map(lambda array: array[index], outputs)
            maps = place.count(None)
            return Mapped(output, maps) if maps else output

        layers = places(self.axes, counts)
        return {layer: [*map(at, own)] for layer, own in layers.items()}


def completed(calls: Calls, inside: Calls) -> Calls:
    """Put what modules returned inside of transformations in its place.

    Args:
        calls: What modules returned, with `Inside` where it was not known.
        inside: What is known now.

    Returns:
        All of it; of a module of which the order is not known, nothing.

    Example:
        >>> completed({"fc": [1, Inside(), 3], "head": [1, Inside()]}, {"fc": [2]})
        {'fc': [1, 2, 3], 'head': []}
    """
    found: Calls = {}
    for path, outputs in (dict.fromkeys(inside, ()) | calls).items():
        known = inside.get(path, [])
        slots = sum(isinstance(output, Inside) for output in outputs)
        if slots == len(known):
            rest = iter(known)
            found[path] = [next(rest) if isinstance(o, Inside) else o for o in outputs]
        else:
            # A body that is traced twice, and a function that is compiled already.
            found[path] = known if slots == len(outputs) else []
    return found


def unrolled(
    calls: Calls, stacks: Mapping[str, int]
) -> tuple[dict[str, list[Any]], set[str]]:
    """Take the calls in scans and maps apart.

    Args:
        calls: What modules returned.
        stacks: The number of layers of each module that holds several as one.

    Returns:
        What each module returned, call by call, `Mapped` if it was, those in stacked
        layers with the layer's number in their path, as in ``blocks[0].norm``; and the
        paths of the modules that returned where nobody can look.
    """
    found: dict[str, list[Any]] = {}
    hidden: set[str] = set()
    for path, outputs in calls.items():
        if not outputs:
            hidden.add(path)
        within = around(path, stacks)
        for output in outputs:
            if not isinstance(output, Repeated):
                found.setdefault(path, []).append(output)
                continue
            shared = output.by_layer([stacks[stack] for stack in within])
            if not shared:
                hidden.add(path)
            for layer, each in shared.items():
                name = in_layers(path, dict(zip(within, layer, strict=True)))
                own = [*map(_carried, each)] if path in stacks else each
                found.setdefault(name, []).extend(own)
    return found, hidden


def around(path: str, stacks: Mapping[str, int]) -> list[str]:
    """Return the modules of stacked layers that a module is in, the outer one first.

    Example:
        >>> around("blocks.mlp.fc", {"blocks.mlp": 2, "blocks": 3, "heads": 2})
        ['blocks', 'blocks.mlp']
    """
    return sorted((stack for stack in stacks if is_in(path, stack)), key=len)


def _carried(output: Any) -> Any:
    """Return what the body of a scan hands on, where it yields nothing else."""
    match output:
        case Mapped(inner, axes):
            return Mapped(_carried(inner), axes)
        case (carry, rest) if not jax.tree.leaves(rest):
            return carry
    return output


def plain(output: Any) -> Any:
    """Return what a module returned, whether it was mapped or not."""
    return output.output if isinstance(output, Mapped) else output

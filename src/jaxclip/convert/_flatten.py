"""The order of what is flattened: torch's channels come first, Flax's last."""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from jaxclip.convert._plan import Entry, Plan
from jaxclip.convert._rules.links import Arrays, Link, is_same

Flatten = Mapping[str, Sequence[int]]


def flattened(planned: Plan, flatten: Flatten | None) -> Plan:
    """Put the last axis of some tensors into the order of flattened channels last.

    A tensor whose last axis is the last in Flax, too, a bias say, is not of what its
    module takes, as the weight of a ``Linear`` is, but of what it returns. How that
    lies is then not known.

    Args:
        planned: The links and the modules of a model.
        flatten: As ``from_torch`` takes it.

    Raises:
        TypeError: If ``flatten`` is no mapping from names to shapes.
    """
    entries, problems = [*planned.entries], [*planned.problems]
    shapes = _shapes(flatten or {})
    names = {name for entry in entries for name in entry.names}
    returned = set()
    for key, shape in shapes.items():
        name = key if key in names else f"{key}.weight" if key else "weight"
        if name not in names:
            owners = {other.rpartition(".")[0] for other in names}
            near = difflib.get_close_matches(key, sorted(names | owners), n=3)
            hint = f" Nearest: {', '.join(map(repr, near))}." if near else ""
            problems.append(
                f"flatten has {key!r}; the target has no tensor of that name in torch, "
                f"and no {name!r}.{hint}"
            )
            continue
        for index, entry in enumerate(entries):
            if name in entry.names:
                length = entry.expected[name].shape[-1:]
                if length == (math.prod(shape),):
                    entries[index] = _channels_last(entry, name, shape)
                    if is_same(entry.link):
                        returned.add(name.rpartition(".")[0])
                else:
                    problems.append(
                        f"flatten has {key!r}: {shape}, {math.prod(shape)} in all; the "
                        f"last axis of {name!r} {entry.expected[name].shape} must be "
                        "as long."
                    )
    modules = [
        replace(pair, layout=None) if pair.torch in returned else pair
        for pair in planned.modules
    ]
    return Plan(entries, modules, problems)


def _shapes(flatten: Flatten) -> dict[str, tuple[int, ...]]:
    message = (
        f"flatten is {flatten!r}; it must be a mapping from a name in torch to the "
        "shape, channels first, that is flattened there: {'fc': (64, 7, 7)}."
    )
    if not isinstance(flatten, Mapping):
        raise TypeError(message)
    for name, shape in flatten.items():
        if (
            not isinstance(name, str)
            or not isinstance(shape, Sequence)
            or len(shape) < 2
            or not all(isinstance(size, int) and size > 0 for size in shape)
        ):
            raise TypeError(message)
    return {name: tuple(shape) for name, shape in flatten.items()}


def _channels_last(entry: Entry, name: str, shape: tuple[int, ...]) -> Entry:
    """Reorder one tensor of an entry on the way there, and on the way back."""
    place, link = entry.names.index(name), entry.link

    def there(array: np.ndarray) -> np.ndarray:
        apart = array.reshape(*array.shape[:-1], *shape)  # (..., C, *spatial)
        return np.moveaxis(apart, -len(shape), -1).reshape(array.shape)

    def back(array: np.ndarray) -> np.ndarray:
        apart = array.reshape(*array.shape[:-1], *shape[1:], shape[0])
        return np.moveaxis(apart, -1, -len(shape)).reshape(array.shape)

    def to_flax(*tensors: np.ndarray) -> Arrays:
        first, last = tensors[:place], tensors[place + 1 :]
        return link.to_flax(*first, there(tensors[place]), *last)

    def to_torch(*values: np.ndarray) -> Arrays:
        tensors = link.to_torch(*values)
        return (*tensors[:place], back(tensors[place]), *tensors[place + 1 :])

    return replace(entry, link=Link(link.torch, link.flax, to_flax, to_torch))

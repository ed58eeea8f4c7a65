"""Which torch module and which Flax module are the same, and how their outputs lie."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from jaxclip.convert._rules.layouts import Layout


@dataclass(frozen=True)
class ModulePair:
    """A torch module and the Flax module that holds the same weights.

    Attributes:
        torch: The path of the torch module, as ``named_modules()`` gives it: ``""``
            for the model itself.
        flax: The path of the Flax module, dotted: attributes in NNX, and in Linen
            what Flax names its scopes; ``""`` for the model itself. Where it is one of
            stacked layers, their module has the number: ``"blocks[0].fc"``.
        kind: The type of the Flax module; empty where it is not known.
        layout: How the output lies, as ``WeightMap.with_layouts`` takes it; None if
            that is not known.
        alias_of: The path under which Flax lists the same module, if it is reached
            by several and this is another one.
    """

    torch: str
    flax: str
    kind: str = ""
    layout: Layout | None = None
    alias_of: str | None = None

    # Where users import it from, which is what they should see.
    __module__ = "jaxclip.convert"


def in_source(
    modules: Sequence[ModulePair], names: Mapping[str, str]
) -> tuple[ModulePair, ...]:
    """Give modules the paths that they have in a source.

    A module of the source is taken for the same if it holds the same tensors, all of
    them, under the same names but for the last parts, and no others. Where none does,
    because tensors were renamed one by one, there is no pair.

    Args:
        modules: The pairs, with the paths that ``to_torch`` gives; outer ones first.
        names: The names of the source's tensors by those that ``to_torch`` gives.
    """
    if all(new == old for new, old in names.items()):
        return tuple(modules)
    owners: dict[str, set[str | None]] = defaultdict(set)
    for new, old in names.items():
        for path in _owners(new):
            owners[path].add(_counterpart(path, new, old))
    held = Counter(path for new in names for path in _owners(new))
    held_in_source = Counter(path for old in names.values() for path in _owners(old))

    found: dict[str, str] = {}
    for pair in modules:
        path, (outer, _, last) = pair.torch, pair.torch.rpartition(".")
        if len(owners[path]) == 1 and None not in owners[path]:
            (owner,) = owners[path]
            if owner is not None and held[path] == held_in_source[owner]:
                found[path] = owner
        elif not owners[path] and outer in found:
            # A tied weight, which the source has under its other name alone.
            found[path] = joined(found[outer], last)
    return tuple(
        replace(pair, torch=found[pair.torch])
        for pair in modules
        if pair.torch in found
    )


def _owners(name: str) -> Iterator[str]:
    """Yield the paths of all modules that hold a tensor, the outermost first."""
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(len(parts)))


def _counterpart(path: str, new: str, old: str) -> str | None:
    """Return the module in the source that is at a path, from one tensor in it."""
    within = new.removeprefix(f"{path}.") if path else new
    inner = within.rpartition(".")[0]
    owner = old.rpartition(".")[0]
    if not inner:
        return owner
    if owner == inner:
        return ""
    return owner.removesuffix(f".{inner}") if owner.endswith(f".{inner}") else None


def is_in(path: str, outer: str) -> bool:
    """Say whether a module is another, or lies in it, by their paths.

    Example:
        >>> is_in("blocks.fc", "blocks"), is_in("blocks2", "blocks"), is_in("fc", "")
        (True, False, True)
    """
    return not outer or f"{path}.".startswith(f"{outer}.")


def in_layers(path: str, layers: Mapping[str, int]) -> str:
    """Put the numbers of stacked layers into the path of a module in them.

    Args:
        path: The path.
        layers: The numbers by the paths of the modules that hold several layers as one,
            the outer module first.

    Example:
        >>> in_layers("blocks.mlp.fc", {"blocks": 2}), in_layers("fc", {"": 0})
        ('blocks[2].mlp.fc', '[0].fc')
    """
    for stack, layer in reversed([*layers.items()]):
        inner = path[len(stack) :].removeprefix(".")
        path = joined(f"{stack}[{layer}]", inner)
    return path


def without_layers(path: str) -> str:
    """Return the path of a module without the numbers of stacked layers.

    Example:
        >>> without_layers("blocks[2].mlp[0].fc")
        'blocks.mlp.fc'
    """
    return _LAYER.sub("", path).removeprefix(".")


def layers_in(paths: Iterable[str]) -> dict[str, int]:
    """Return of each module that holds several layers as one how many they are.

    Args:
        paths: Those of the modules in them, with the numbers of the layers.

    Example:
        >>> layers_in(["head", "blocks[0].fc", "blocks[1].fc", "blocks[1].mlp[0].fc"])
        {'blocks': 2, 'blocks.mlp': 1}
    """
    counts: dict[str, int] = {}
    for path in paths:
        for found in _LAYER.finditer(path):
            stack = without_layers(path[: found.start()])
            counts[stack] = max(counts.get(stack, 0), int(found[1]) + 1)
    return counts


def stars(pattern: str, path: str) -> tuple[int, ...] | None:
    """Return the number that each ``*`` of a pattern stands for in a path, if it fits.

    Example:
        >>> stars("blocks.*.mlp.*", "blocks.3.mlp.0"), stars("blocks.*", "blocks.a")
        ((3, 0), None)
    """
    found = re.fullmatch(re.escape(pattern).replace(r"\*", r"(\d+)"), path)
    return found and tuple(map(int, found.groups()))


def starred(pattern: str, numbers: Sequence[int]) -> str:
    """Return a pattern with numbers for its stars.

    Example:
        >>> starred("blocks.*.mlp.*", (3, 0))
        'blocks.3.mlp.0'
    """
    first, *others = pattern.split("*")
    inner = (f"{n}{part}" for n, part in zip(numbers, others, strict=True))
    return "".join([first, *inner])


_LAYER = re.compile(r"\[(\d+)\]")


def joined(path: str, name: str) -> str:
    """Put a name behind a path."""
    return ".".join(part for part in (path, name) if part)

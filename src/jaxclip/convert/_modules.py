"""Which torch module and which Flax module are the same, and how their outputs lie."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from jaxclip.convert._rules.layouts import Layout


@dataclass(frozen=True)
class ModulePair:
    """A torch module and the Flax module that holds the same weights.

    Attributes:
        torch: The path of the torch module, as ``named_modules()`` gives it: ``""``
            for the model itself.
        flax: The path of the Flax module, dotted: attributes in NNX, and in Linen
            what Flax names its scopes; ``""`` for the model itself.
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


def joined(path: str, name: str) -> str:
    """Put a name behind a path."""
    return ".".join(part for part in (path, name) if part)

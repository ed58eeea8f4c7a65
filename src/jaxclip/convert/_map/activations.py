"""Activations laid out as the other side has them, and what users say of layouts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from jaxclip._arrays import to_numpy
from jaxclip.convert._errors import ConversionError
from jaxclip.convert._modules import ModulePair, joined
from jaxclip.convert._rules import layouts as rules
from jaxclip.convert._rules.layouts import CHANNELS_LAST, Layout

Layouts = Mapping[str, Layout] | Callable[[str], Layout | None]

Pairs = tuple[ModulePair, ...]

_WHERE_FROM = (
    "The mapping has no modules: it was read from a file of version 1. Make it from "
    "the model, and save it again."
)


def to_flax(
    pairs: Mapping[str, ModulePair],
    outputs: Mapping[str, Any],
    made: Callable[[np.ndarray], Any],
) -> dict[str, Any]:
    """Lay outputs of torch modules out as Flax's.

    Args:
        pairs: The modules by their paths in torch.
        outputs: The outputs by the same paths.
        made: Makes an array of the result, a copy, from what may be a view.
    """
    found = _laid_out(pairs, outputs, rules.to_flax, made)
    return {pairs[path].flax: output for path, output in found.items()}


def to_torch(
    pairs: Mapping[str, ModulePair],
    outputs: Mapping[str, Any],
    made: Callable[[np.ndarray], Any],
) -> dict[str, Any]:
    """Lay outputs of Flax modules out as torch's; the inverse of ``to_flax``."""
    found = _laid_out(pairs, outputs, rules.to_torch, made)
    return {pairs[path].torch: output for path, output in found.items()}


def _laid_out(
    pairs: Mapping[str, ModulePair],
    outputs: Mapping[str, Any],
    order: Callable[[np.ndarray, Layout], np.ndarray],
    made: Callable[[np.ndarray], Any],
) -> dict[str, Any]:
    found, problems = {}, []
    for path, output in outputs.items():
        pair = pairs.get(path)
        if pair is None:
            problems.append(_absent(path, pairs))
        elif pair.layout is None:
            problems.append(_unknown(path, pair))
        else:
            try:
                found[path] = rules.apply(
                    lambda array, layout: made(order(to_numpy(array), layout)),
                    output,
                    pair.layout,
                )
            except (TypeError, ValueError) as error:
                problems.append(f"{path!r} {str(error).rstrip('.')}.")
    if problems:
        raise ConversionError(problems)
    return found


def _absent(path: str, pairs: Mapping[str, ModulePair]) -> str:
    if not pairs:
        return f"{path!r} is no module of the mapping. {_WHERE_FROM}"
    near = get_close_matches(path, pairs, n=3)
    hint = f" Nearest: {', '.join(map(repr, near))}." if near else ""
    return (
        f"{path!r} is no module of the mapping, which has those that hold weights, "
        "return something, and are one on either side. Leave it out; or, if there is "
        f"such a module in Flax, add it: with_layouts({{{path!r}: 'same'}}), or "
        f"'{CHANNELS_LAST}'.{hint}"
    )


def _unknown(path: str, pair: ModulePair) -> str:
    return (
        f"{path!r} is a {pair.kind}, of which it is not known how its output lies. Say "
        f"it: with_layouts({{{pair.torch!r}: 'same'}}), or '{CHANNELS_LAST}', or a "
        "permutation of axes."
    )


def with_layouts(modules: Sequence[ModulePair], layouts: Layouts) -> Pairs:
    """Say how outputs lie.

    Args:
        modules: The modules.
        layouts: As ``WeightMap.with_layouts`` takes it.

    Raises:
        ConversionError: If a pattern matches nothing, or what a type says is another
            layout; or if two modules would be one.
        TypeError: If ``layouts`` is neither a mapping nor a function.
        ValueError: If a layout is none.
    """
    if callable(layouts):
        said = {pair.torch: layouts(pair.torch) for pair in modules}
        layouts = {path: layout for path, layout in said.items() if layout is not None}
    elif not isinstance(layouts, Mapping):
        raise TypeError(
            f"layouts is {layouts!r}; it must be a mapping from the paths of torch "
            "modules, or patterns of them, to layouts, or a function from path to "
            "layout."
        )
    layouts = {
        path: rules.checked(layout, f"layouts[{path!r}]")
        for path, layout in layouts.items()
    }
    patterns = {key: layouts[key] for key in layouts if set(key) & set("*?[")}
    known = {pair.torch: pair for pair in modules}
    problems = [
        f"layouts has the pattern {pattern!r}, which no module of the mapping matches."
        for pattern in patterns
        if not any(fnmatchcase(path, pattern) for path in known)
    ]
    found = []
    for pair in modules:
        if pair.torch in layouts:
            found.append(replace(pair, layout=layouts[pair.torch]))
            continue
        fitting = (key for key in patterns if fnmatchcase(pair.torch, key))
        pattern = next(fitting, None)
        if pattern is None:
            found.append(pair)
        elif pair.layout is None:
            found.append(replace(pair, layout=patterns[pattern]))
        else:
            found.append(pair)
            if not _agree(pair.layout, patterns[pattern]):
                problems.append(
                    f"layouts has {pattern!r}: {patterns[pattern]!r}, and "
                    f"{pair.torch!r} is a {pair.kind}, whose output is "
                    f"{pair.layout!r}. Narrow the pattern; if it is meant, say it of "
                    f"{pair.torch!r} by that path."
                )
    new = [path for path in layouts if path not in known and path not in patterns]
    found += (_added(path, layouts[path], known) for path in new)
    problems += _doubled(found)
    if problems:
        raise ConversionError(problems)
    return tuple(found)


def _agree(one: Layout, other: Layout) -> bool:
    """Say whether two layouts are one, where the first may tell more."""
    if one == other:
        return True
    return other == CHANNELS_LAST and str(one).startswith(CHANNELS_LAST)


def _added(path: str, layout: Layout, known: Mapping[str, ModulePair]) -> ModulePair:
    """Pair a module that is not in the mapping with Flax's of the same name.

    It lies in the innermost module around it of which both places are known.
    """
    outer, _, name = path.rpartition(".")
    while outer and outer not in known:
        outer, _, last = outer.rpartition(".")
        name = f"{last}.{name}"
    within = known[outer].flax if outer in known else outer
    return ModulePair(path, joined(within, name), layout=layout)


def _doubled(modules: Sequence[ModulePair]) -> Iterator[str]:
    first: dict[str, str] = {}
    for pair in modules:
        other = first.setdefault(pair.flax, pair.torch)
        if other != pair.torch:
            yield f"{other!r} and {pair.torch!r} would both be {pair.flax!r} in Flax."

"""The argument that would have helped: a line to paste, where one is evident."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

from jaxclip.convert._errors import Shape
from jaxclip.convert._match import Match
from jaxclip.convert._names import Rename, target_names

_MOST_PAIRS = 200_000
"""Of names to look at: more would take seconds."""

_MOST_RULES = 4
"""In one line: what needs more is not evident."""

_Rules = dict[str | re.Pattern[str], str]


def hint(match: Match, names: Mapping[str, str], rename: Rename | None) -> str:
    """Look for a ``stacked=`` or a ``rename=`` that makes names fit.

    Args:
        match: What fits so far, and what does not.
        names: The names in the source, by the names under which they were looked for.
        rename: What made the latter of the former. To a mapping there may be patterns
            to add; what a function lacks is not looked for.

    Returns:
        A sentence with what to paste, or nothing.
    """
    if stacked := _stacked(match):
        return f"The layers seem to be stacked in the target: try stacked={stacked!r}."
    if callable(rename) or len(match.missing) * len(match.unused) > _MOST_PAIRS:
        return ""
    if rename is not None:
        # Patterns come last, and are given the names that the others have made.
        names = {name: name for name in names}
    pairs = dict(_pairs(match.unused, match.missing))
    if not pairs:
        return ""
    kept = {old: new for new, old in names.items() if new not in match.unused}
    wanted = kept | {names[old]: new for old, new in pairs.items()}
    shapes = {names[new]: shape for new, shape in match.unused.items()}
    ways = (_words,) if rename is not None else (_prefixes, _words, _changes)
    for rules in sorted((way(wanted) for way in ways), key=len):
        if 0 < len(rules) <= _MOST_RULES:
            count = _fitting(rules, names, kept, match.missing, shapes)
            if 2 * count >= len(match.missing):
                said = ", ".join(f"{_said(old)}: {new!r}" for old, new in rules.items())
                line = f"rename={{{said}}}" if rename is None else f"{said} in rename"
                return (
                    f"With {line}, {count} of the {len(match.missing)} that are not "
                    "filled would be."
                )
    return ""


def _stacked(match: Match) -> str:
    """Find a module of which the source has numbered layers, the target one."""
    for name in match.missing:
        parts = name.split(".")
        for end in range(1, len(parts)):
            path, rest = ".".join(parts[:end]), ".".join(parts[end:])
            if f"{path}.0.{rest}" in match.unused:
                return path
    return ""


def _pairs(
    unused: Mapping[str, Shape], missing: Mapping[str, Shape]
) -> Iterator[tuple[str, str]]:
    """Pair names of one shape that have most in common, each with the other alone.

    Of several that are as near, none is evident: three square matrices of attention
    would fit in the place of the fourth.
    """
    scores = {
        (old, new): _in_common(old, new)
        for old, shape in unused.items()
        for new, other in missing.items()
        if other == shape
    }
    nearest: dict[str, list[str]] = defaultdict(list)
    best: dict[str, int] = defaultdict(lambda: 1)
    for pair, score in scores.items():
        for name, partner in (pair, pair[::-1]):
            if score > best[name]:
                nearest[name].clear()
            if score >= best[name]:
                best[name] = score
                nearest[name].append(partner)
    for old in unused:
        if len(nearest[old]) == 1 and nearest[nearest[old][0]] == [old]:
            yield old, nearest[old][0]


def _in_common(one: str, other: str) -> int:
    """Count the parts that two names start and end with alike."""
    head, _, _, tail = _aligned(one, other)
    return len(head) + len(tail)


def _aligned(one: str, other: str) -> tuple[list[str], list[str], list[str], list[str]]:
    """Split two names into what both start with, where they differ, and the end."""
    ones, others = one.split("."), other.split(".")
    shorter = min(len(ones), len(others))
    tail = 0
    while tail < shorter and ones[-1 - tail] == others[-1 - tail]:
        tail += 1
    head = 0
    while head < shorter - tail and ones[head] == others[head]:
        head += 1
    end, other_end = len(ones) - tail, len(others) - tail
    return ones[:head], ones[head:end], others[head:other_end], ones[end:]


def _prefixes(wanted: Mapping[str, str]) -> _Rules:
    """Say what prefixes become, if each name only has another prefix."""
    rules: _Rules = {}
    for old, new in wanted.items():
        head, ours, theirs, _ = _aligned(old, new)
        if ours or theirs:
            rules[".".join(head + ours)] = ".".join(head + theirs)
    return rules


def _words(wanted: Mapping[str, str]) -> _Rules:
    """Say what words become, if words within the names are others."""
    rules: _Rules = {}
    for old, new in wanted.items():
        _, ours, theirs, _ = _aligned(old, new)
        if ours and theirs:
            word = re.compile(rf"\b{re.escape('.'.join(ours))}\b")
            rules[word] = ".".join(theirs)
        elif ours or theirs:
            return {}
    return rules


def _changes(wanted: Mapping[str, str]) -> _Rules:
    """Say what whole names become."""
    return {old: new for old, new in wanted.items() if old != new}


def _fitting(
    rules: _Rules,
    names: Mapping[str, str],
    kept: Mapping[str, str],
    missing: Mapping[str, Shape],
    shapes: Mapping[str, Shape],
) -> int:
    """Count what a rename fills, if it leaves what fits already where it is."""
    renamed, problems = target_names(names.values(), rules, ())
    if problems or any(renamed.get(new) != old for old, new in kept.items()):
        return 0
    return sum(
        shapes.get(renamed.get(name, "")) == shape for name, shape in missing.items()
    )


def _said(old: str | re.Pattern[str]) -> str:
    return repr(old) if isinstance(old, str) else f're.compile(r"{old.pattern}")'

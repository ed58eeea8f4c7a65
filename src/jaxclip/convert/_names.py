"""Names of source tensors: which are left out, and what the others are called."""

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from fnmatch import fnmatchcase

Rename = Mapping[str | re.Pattern[str], str] | Callable[[str], str]

_WRAPPERS = ("module.", "_orig_mod.")
"""What torch's DataParallel and ``torch.compile`` put before every name."""


def target_names(
    names: Iterable[str], rename: Rename | None, ignore: Iterable[str]
) -> tuple[dict[str, str], list[str]]:
    """Find the name under which the target looks for each source tensor.

    Args:
        names: The names in the source.
        rename: As ``from_torch`` takes it.
        ignore: As ``from_torch`` takes it.

    Returns:
        The name in the source by the name for the target, and the problems.
    """
    kept, problems = _without(list(names), ignore)
    if rename is None:
        return {name: name for name in kept}, problems
    if callable(rename):
        renamed = {name: _called(rename, name) for name in kept}
        if all(old == new for old, new in renamed.items()):
            problems.append(f"rename={rename!r} left every name as it was.")
    else:
        renamed, unmatched = _mapped(kept, rename)
        problems += unmatched
    sources = defaultdict(list)
    for old, new in renamed.items():
        sources[new].append(old)
    problems += [
        f"rename gives {', '.join(map(repr, olds))} the same name {new!r}."
        for new, olds in sources.items()
        if len(olds) > 1
    ]
    return {new: olds[0] for new, olds in sources.items()}, problems


def without_wrapper(
    names: Mapping[str, str], wanted: Collection[str]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Take off what torch's wrappers of modules put before every name.

    It is taken off if every name of the source has it, and none that the target
    wants.

    Args:
        names: The names in the source, by the names for the target.
        wanted: The names that the target has.

    Returns:
        The names in the source by new names for the target, and what was taken off.
    """
    taken = ""
    while True:
        wrapper = next((w for w in _WRAPPERS if _all_start(names, taken + w)), None)
        if wrapper is None or any(name.startswith(wrapper) for name in wanted):
            break
        taken += wrapper
    bare = {new.removeprefix(taken): old for new, old in names.items()}
    return bare, (f"{taken!r} was taken off every name",) if taken else ()


def _all_start(names: Collection[str], prefix: str) -> bool:
    return bool(names) and all(name.startswith(prefix) for name in names)


def _without(names: list[str], ignore: Iterable[str]) -> tuple[list[str], list[str]]:
    patterns = [ignore] if isinstance(ignore, str) else list(ignore)
    problems = [
        f"ignore has the pattern {pattern!r}, which no tensor of the source matches."
        for pattern in patterns
        if not any(fnmatchcase(name, pattern) for name in names)
    ]
    kept = [
        name
        for name in names
        if not any(fnmatchcase(name, pattern) for pattern in patterns)
    ]
    return kept, problems


def _called(rename: Callable[[str], str], name: str) -> str:
    new = rename(name)
    if not isinstance(new, str):
        raise TypeError(f"rename({name!r}) returned {new!r}; it must return a name.")
    return new


def _mapped(
    names: Iterable[str], rename: Mapping[str | re.Pattern[str], str]
) -> tuple[dict[str, str], list[str]]:
    """Replace the longest prefix that fits a name, then each pattern, in order."""
    prefixes = {old: new for old, new in rename.items() if isinstance(old, str)}
    patterns = {old: new for old, new in rename.items() if isinstance(old, re.Pattern)}
    renamed = {name: _with_prefix(name, prefixes) for name in names}
    problems = [
        f"rename has the prefix {prefix!r}, which no tensor of the source has."
        for prefix in prefixes
        if not any(_has_prefix(name, prefix) for name in renamed)
    ]
    for pattern, new in patterns.items():
        if not any(map(pattern.search, renamed.values())):
            problems.append(
                f"rename has the pattern {pattern.pattern!r}, which no tensor of the "
                "source matches."
            )
        renamed = {old: pattern.sub(new, name) for old, name in renamed.items()}
    return renamed, problems


def _has_prefix(name: str, prefix: str) -> bool:
    return prefix == "" or name == prefix or name.startswith(f"{prefix}.")


def _with_prefix(name: str, prefixes: Mapping[str, str]) -> str:
    fitting = [prefix for prefix in prefixes if _has_prefix(name, prefix)]
    if not fitting:
        return name
    longest = max(fitting, key=len)
    rest = name[len(longest) :].removeprefix(".")
    return ".".join(part for part in (prefixes[longest], rest) if part)

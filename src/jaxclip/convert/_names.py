"""Names of source tensors: which are left out, and what the others are called."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase

Rename = Mapping[str, str] | Callable[[str], str]


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
        renamed = {name: _with_prefix(name, rename) for name in kept}
        problems += [
            f"rename has the prefix {prefix!r}, which no tensor of the source has."
            for prefix in rename
            if not any(_has_prefix(name, prefix) for name in kept)
        ]
    sources = defaultdict(list)
    for old, new in renamed.items():
        sources[new].append(old)
    problems += [
        f"rename gives {', '.join(map(repr, olds))} the same name {new!r}."
        for new, olds in sources.items()
        if len(olds) > 1
    ]
    return {new: olds[0] for new, olds in sources.items()}, problems


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


def _has_prefix(name: str, prefix: str) -> bool:
    return prefix == "" or name == prefix or name.startswith(f"{prefix}.")


def _with_prefix(name: str, rename: Mapping[str, str]) -> str:
    fitting = [prefix for prefix in rename if _has_prefix(name, prefix)]
    if not fitting:
        return name
    longest = max(fitting, key=len)
    rest = name[len(longest) :].removeprefix(".")
    return ".".join(part for part in (rename[longest], rest) if part)

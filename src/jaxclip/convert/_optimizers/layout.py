"""Which of the optimizer's parameters each variable is, and what does not fit."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from jaxclip.convert._map.weight_map import WeightMap
from jaxclip.convert._plan import Entry
from jaxclip.convert._targets.tree import Leaf, Path


@dataclass
class Layout:
    """Which of the optimizer's parameters each variable is.

    Attributes:
        entries: The entry of each variable.
        names: The names of the optimizer's parameters.
        problems: What does not fit, in words.
    """

    entries: Mapping[Path, Entry]
    names: Collection[str]
    problems: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, weights: WeightMap, names: Collection[str]) -> "Layout":
        """Make the layout of a model's parameters.

        Args:
            weights: The map of the parameters.
            names: The names of the optimizer's parameters. Of several entries for a
                variable (tied weights) the one that has such names counts.
        """
        entries: dict[Path, Entry] = {}
        for entry in weights.entries:
            for leaf in entry.leaves:
                if leaf.path not in entries or any(n in names for n in entry.names):
                    entries[leaf.path] = entry
        return cls(entries, names)

    def entry(self, path: Path, *, may_lack: bool = False) -> Entry | None:
        """Return the entry of a variable, or say why there is none.

        Args:
            path: Where the variable lies.
            may_lack: Whether it need not be one of the optimizer's parameters.
        """
        # In Linen, optimizers are given what lies in the collection "params".
        entry = self.entries.get(path) or self.entries.get(("params", *path))
        if entry is None:
            self.problem(f"{Leaf(path, None)} is in the state, and not in the mapping.")
            return None
        if not (may_lack or any(name in self.names for name in entry.names)):
            self.problem(
                f"{Leaf(path, None)} is trained here, and none of the parameters of "
                "torch's optimizer. Freeze it: optax.partition, with "
                "optax.set_to_zero() for it."
            )
            return None
        if entry.pieces is None:
            self.problem(
                f"{entry} and {', '.join(map(repr, entry.names))}: their rule computes "
                "one from the other, as where two biases are added, and does not only "
                "move elements about. Each of the two takes a step, so that their sum "
                "takes both, and what an optimizer keeps of them is not what it would "
                "keep of it. Use a layer that holds torch's own parameters, as those "
                "of jaxclip.models do."
            )
            return None
        return entry

    def parts(
        self, entry: Entry, path: Path, held: Collection[Path]
    ) -> list[Path] | None:
        """Return where an entry's variables lie in a tree that has one of them."""
        # In Linen, the map's paths start with the name of the collection.
        cut = 0 if path in self.entries else 1
        paths = [leaf.path[cut:] for leaf in entry.leaves]
        missing = [other for other in paths if other not in held]
        if missing:
            self.problem(
                f"{Leaf(path, None)} and {Leaf(missing[0], None)} are one tensor in "
                "torch; they must be in the same group."
            )
            return None
        return paths

    def problem(self, problem: str) -> None:
        """Add a problem, if it is a new one."""
        if problem not in self.problems:
            self.problems.append(problem)

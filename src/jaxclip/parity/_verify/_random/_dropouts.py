"""Which dropout of the port is which of torch's.

A dropout holds no weights, so that no map of weights names it: its place follows from
the module around it. Where torch's is a function, it belongs to the module that calls
it, and in the port to the same module, or is a module inside of that.
"""

from collections.abc import Collection, Iterator, Mapping

from jaxclip.convert import ConversionError, ModulePair, WeightMap
from jaxclip.convert._modules import (
    in_layers,
    joined,
    layers_in,
    starred,
    stars,
    without_layers,
)
from jaxclip.convert._rules.layouts import SAME, Layout
from jaxclip.parity._trace._records import Run
from jaxclip.parity._verify._random._drawn import Account, Drawn
from jaxclip.parity._verify._random._replay import Replay
from jaxclip.parity._verify._tracing._calls import Calls, around

_TORCH = "torch.nn.modules."

_LAYOUTS: dict[str, Layout] = {
    f"{_TORCH}dropout.Dropout": SAME,
    f"{_TORCH}dropout.Dropout1d": "channels_last_1d",
    f"{_TORCH}dropout.Dropout2d": "channels_last_2d",
    f"{_TORCH}dropout.Dropout3d": "channels_last_3d",
}
"""How the input of each kind lies in Flax, unless it is said otherwise."""

_ONE_FOR_ALL = (
    f"{_TORCH}transformer.TransformerEncoderLayer",
    f"{_TORCH}transformer.TransformerDecoderLayer",
)
"""What has several dropouts where the models here call one as many times."""


class Dropouts:
    """The dropouts of torch's model, and where the port has them.

    Args:
        flax: The paths of the port's own dropouts; None if they are known when it is
            called, and not before.
        run: What holds for the recorded run.
        weights: The map of the weights, with the modules that it pairs.
        said: The paths of the port's by those of torch's, where the user says it.

    Attributes:
        layouts: How the input of each of torch's lies in the port, and what other
            modules return.
        owners: The paths of torch's modules by those of the port's, where one is the
            other.
        stacks: By the path of each of the port's modules that holds several layers as
            one how many they are.

    Raises:
        ConversionError: If the user speaks of a dropout that is not there.
    """

    def __init__(
        self,
        flax: Collection[str] | None,
        run: Run,
        weights: WeightMap,
        said: Mapping[str, str],
    ) -> None:
        """Find a place for each."""
        types = {module.path: module.type for module in run.modules}
        drops = [module for module in run.modules if module.type in _LAYOUTS]
        known = {pair.torch: pair for pair in weights.modules}
        self.owners = {pair.flax: pair.torch for pair in weights.modules}
        self.stacks = layers_in(self.owners)
        said = _of_all_layers(said, types, self.stacks)
        _check(said, types, flax)
        self.layouts: dict[str, Layout] = {
            pair.torch: pair.layout for pair in weights.modules if pair.layout
        }
        self._replays = True
        # Where the user says that torch's is a function that a module calls.
        own = {drop.path for drop in drops}
        self._of_functions = {n: place for n, place in said.items() if n not in own}
        self._places: dict[str, dict[str, int]] = {}
        for drop in drops:
            layout = _LAYOUTS[drop.type]
            if drop.path in known:
                layout = known[drop.path].layout or layout
            self.layouts[drop.path] = layout
            places: dict[str, int] = {}
            for place, rank in _places(drop.path, said, known, types):
                places.setdefault(place, rank)
            if flax is not None:
                there = [p for p in places if without_layers(p) in flax]
                places = {place: 0 for place in there[:1]}
            self._places[drop.path] = places

    @classmethod
    def none(cls) -> "Dropouts":
        """Return those of a recording of JAX, whose keys draw the same again."""
        found = cls.__new__(cls)
        found.layouts, found.owners, found._places = {}, {}, {}
        found._of_functions, found.stacks, found._replays = {}, {}, False
        return found

    @property
    def origins(self) -> dict[str, tuple[str, ...]]:
        """By the path of each dropout of the port those of torch's."""
        ranked: dict[str, dict[str, int]] = {}
        for torch, places in self._places.items():
            for place, rank in places.items():
                ranked.setdefault(place, {})[torch] = rank
        for torch, place in self._of_functions.items():
            ranked.setdefault(place, {})[torch] = 0
        return {
            place: tuple(
                torch for torch in found if found[torch] == min(found.values())
            )
            for place, found in ranked.items()
        }

    def replay(self, drawn: Drawn, account: Account | None = None) -> Replay:
        """Return what gives out what was drawn.

        Args:
            drawn: What was drawn.
            account: What has become of it already, if some was given out.
        """
        known = self.origins, self.owners, self.layouts
        return Replay(
            drawn,
            *known,
            replays=self._replays,
            stacks=self.stacks,
            before=account,
        )

    def pairs(self, calls: Calls) -> Iterator[ModulePair]:
        """Yield the dropouts that the port calls, in pairs.

        Args:
            calls: What the port's modules returned.
        """
        for torch, places in self._places.items():
            called = [place for place in places if place in calls]
            for place in (called or [*places])[:1]:
                yield ModulePair(torch, place, "Dropout", self.layouts[torch])


def _places(
    path: str,
    said: Mapping[str, str],
    known: Mapping[str, ModulePair],
    types: Mapping[str, str],
) -> Iterator[tuple[str, int]]:
    """Yield where torch's dropout may be in the port, and how likely: 0 is said."""
    if path in said:
        yield said[path], 0
        return
    if path in known:
        yield known[path].flax, 0
    outer, _, name = path.rpartition(".")
    owner = outer
    while outer and outer not in known:
        outer, _, last = outer.rpartition(".")
        name = f"{last}.{name}"
    within = known[outer].flax if outer in known else outer
    yield joined(within, name), 1
    # What torch calls 2 in its Sequential is layers.2 in that of NNX, layers_2 in
    # Linen's.
    yield joined(within, f"layers.{name}"), 2
    yield joined(within, f"layers_{name}"), 2
    if types.get(owner) in _ONE_FOR_ALL and owner in known:
        yield joined(known[owner].flax, "dropout"), 3
        yield joined(known[owner].flax, "drop"), 3


def _of_all_layers(
    said: Mapping[str, str], types: Mapping[str, str], stacks: Mapping[str, int]
) -> dict[str, str]:
    """Say of each layer what is said of all, with ``*`` for the layer's number.

    Raises:
        ConversionError: If a place has another number of them than the name.
    """
    found: dict[str, str] = {}
    problems = []
    for name, place in said.items():
        fitting = {path: layers for path in types if (layers := stars(name, path))}
        within = around(place, stacks)
        if not fitting:
            found[name] = place
        elif "*" in place and place.count("*") == name.count("*"):
            found |= {path: starred(place, own) for path, own in fitting.items()}
        elif "*" not in place and len(within) in (0, name.count("*")):
            for path, layers in fitting.items():
                found[path] = in_layers(place, dict(zip(within, layers, strict=False)))
        else:
            problems.append(
                f"dropouts gives {name!r} the place {place!r}: it must have as many * "
                "as the name, or be in as many modules of stacked layers, or in none."
            )
    if problems:
        raise ConversionError(problems)
    return found


def _check(
    said: Mapping[str, str], types: Mapping[str, str], flax: Collection[str] | None
) -> None:
    problems = []
    for torch, place in said.items():
        if torch not in types:
            drops = [repr(path) for path, kind in types.items() if kind in _LAYOUTS]
            problems.append(
                f"dropouts has {torch!r}, which is no module of the recorded model: "
                f"its dropouts are {', '.join(drops) or 'none'}. (Where dropout is a "
                "function, name the module that calls it.)"
            )
        plain = without_layers(place)
        if flax is not None and plain not in flax:
            problems.append(
                f"dropouts gives {torch!r} the place {place!r}, where the port has no "
                f"Dropout: it has {', '.join(map(repr, flax)) or 'none'}."
            )
    if problems:
        raise ConversionError(problems)

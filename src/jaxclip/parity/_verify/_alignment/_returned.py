"""What a port's modules return, as torch's do: each call's, in torch's layout."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from jaxclip._arrays import to_numpy
from jaxclip.convert import ConversionError, ModulePair
from jaxclip.convert._errors import Shape
from jaxclip.convert._map import activations as outputs
from jaxclip.convert._modules import without_layers
from jaxclip.convert._rules import layouts
from jaxclip.parity._arrays import Array
from jaxclip.parity._verify._alignment._places import HIDDEN, Place, flat
from jaxclip.parity._verify._random._dropouts import Dropouts
from jaxclip.parity._verify._tracing._calls import Calls, Mapped, plain, unrolled

FIRST = "0"
"""The first part of a tuple. Of what torch's attention and recurrent nets return,
Flax's own return that alone."""


class Returned:
    """Lays what the port's modules return out as torch's.

    Args:
        modules: Which module is which.
        dropouts: Which dropout is which.
    """

    def __init__(self, modules: Sequence[ModulePair], dropouts: Dropouts) -> None:
        """Keep them."""
        self._modules, self._dropouts = modules, dropouts

    def activations(
        self, calls: Calls, recorded: Mapping[Place, Shape]
    ) -> tuple[dict[Place, Array], dict[str, str]]:
        """Return what modules returned as torch's did.

        Args:
            calls: What Flax's returned.
            recorded: The shapes of the recorded activations, in order.

        Returns:
            The arrays, and for each torch module that has none the reason.
        """
        calls, hidden = unrolled(calls, self._dropouts.stacks)
        both = *self._modules, *self._dropouts.pairs(calls)
        pairs = {pair.torch: pair for pair in both}
        shared = _shared_out(pairs, calls, recorded)
        arrays: dict[Place, Array] = {}
        reasons: dict[str, str] = {}
        for module in dict.fromkeys(place.module for place in recorded):
            reason = self._reason(pairs.get(module), shared.get(module), hidden)
            if reason:
                reasons[module] = reason
                continue
            for call, output in enumerate(shared[module]):
                first = Place(module, call, FIRST)
                returned = plain(output)
                alone = first in recorded and jax.tree_util.all_leaves([returned])
                pair = _of_first(pairs[module]) if alone else pairs[module]
                try:
                    laid = outputs.to_torch(
                        {pair.flax: pair}, {pair.flax: returned}, np.asarray
                    )[module]
                except ConversionError as error:
                    reasons[module] = "; ".join(error.problems)
                    break
                for part, array in flat(laid):
                    place = first if alone else Place(module, call, part)
                    if isinstance(output, Mapped):
                        array = output.like(array, recorded.get(place))
                    arrays[place] = array
        return arrays, reasons

    def _reason(
        self, pair: ModulePair | None, calls: list[Any] | None, hidden: set[str]
    ) -> str:
        if pair is None and not self._modules:
            return "the port is a tree of parameters, which has no modules"
        if pair is None:
            return "not paired with a module of the port: say it in layouts"
        if without_layers(pair.flax) in hidden:
            return HIDDEN
        if calls is None:
            return f"the port calls {pair.flax!r} nowhere, or another number of times"
        if pair.layout is None:
            return "how its output lies is not known: say it in layouts"
        return ""

    def outputs(self, value: Any) -> dict[str, Array]:
        """Return the outputs of the model as torch's, each by its place."""
        known = {pair.torch: pair.layout for pair in self._modules}
        layout = known.get("") or layouts.SAME
        laid = layouts.apply(
            lambda array, each: layouts.to_torch(to_numpy(array), each), value, layout
        )
        return dict(flat(laid))


def _of_first(pair: ModulePair) -> ModulePair:
    """Return a pair of which Flax's returns the first part alone."""
    return replace(pair, layout=pair.layout and layouts.first(pair.layout))


def _shared_out(
    pairs: Mapping[str, ModulePair], calls: Calls, order: Iterable[Place]
) -> dict[str, list[Any]]:
    """Share the calls of a module out to the torch modules that it is.

    Flax lists a module that is reached by several names (a tied embedding) under one
    of them; torch calls each of them, in an order that is the same.
    """
    by_origin: dict[str, list[str]] = {}
    for module, _ in dict.fromkeys((place.module, place.call) for place in order):
        if module in pairs:
            pair = pairs[module]
            origin = pair.flax if pair.alias_of is None else pair.alias_of
            by_origin.setdefault(origin, []).append(module)
    shared: dict[str, list[Any]] = {}
    for origin, modules in by_origin.items():
        if len(modules) == len(calls.get(origin, [])):
            for module, output in zip(modules, calls[origin], strict=True):
                shared.setdefault(module, []).append(output)
    return shared

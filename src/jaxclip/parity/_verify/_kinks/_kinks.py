"""Elements on a kink that rounding put on one side in torch, on the other in the port.

A kink is where a derivative jumps, or the result itself: relu at 0, the greatest of
equal elements, a clip at its bound. The decisions are those that JAX traces in the
port. Where an element of what decides is within noise of its kink, the port is run
again with this element moved to the other side, by less than torch may differ there
anyway. If torch then agrees in everything, the kink explains all of the difference.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxclip.parity._arrays import Array
from jaxclip.parity._sizes import l2, peak
from jaxclip.parity._verify._judge._rules import FLOAT64_FACTOR
from jaxclip.parity._verify._kinks._watching import Move, Site

CLEAR = 2.0
"""In noises: how far from its kink an element decides the same in all runs."""

MOST = 32
"""How many elements are tried. If there are more, they are part of the noise."""

_FIRST = ("argmax", "top_k", "reduce_window_max")
"""What takes the first of equal elements, in JAX and in torch."""

LEFT = 0.02
"""What may be left of a difference that kinks of another definition explain."""


@dataclass(frozen=True)
class Kink:
    """An element within noise of where it decides otherwise.

    Attributes:
        site: Which decision it is, counted from 0.
        index: Its flat index in the value that decides.
        distance: By what it would have to move, in float64.
        noise: The noise of the value.
        clear: By how much it is moved so that it decides the same in all runs: it and
            what it is held against may both be off by the noise, and both are rounded.
        tied: Whether it is exactly on the kink in both dtypes: its side is then not a
            matter of rounding, but of how the derivative there is defined.
        ordered: Whether the first of equal elements is taken, on both sides.
        in_runs: The distance in each run, that in float64 first.
    """

    site: int
    index: int
    distance: float
    noise: float
    clear: float
    tied: bool
    ordered: bool = False
    in_runs: tuple[float, ...] = ()

    @property
    def across(self) -> Move:
        """Move it clearly to the other side."""
        side = np.sign(self.distance) or 1.0
        return Move(self.site, self.index, self.distance + side * self.clear)

    def held(self, run: int) -> Move | None:
        """Hold one that is tied as it is where a run is given something else.

        It stays behind the first of its equals, or exactly on the kink.
        """
        if self.ordered:
            return self.back
        by = self.in_runs[run]
        return Move(self.site, self.index, by) if np.isfinite(by) else None

    @property
    def opposite(self) -> Move:
        """Move one that is tied to the side that ``across`` does not take."""
        return Move(self.site, self.index, -self.clear)

    @property
    def back(self) -> Move:
        """Move it clearly to the side on which it is."""
        side = np.sign(self.distance) or 1.0
        short = max(0.0, self.clear - abs(self.distance))
        return Move(self.site, self.index, -side * short)


def near(
    wide: Sequence[Site], narrow: Sequence[Sequence[Site]], factor: float, double: bool
) -> list[Kink] | None:
    """Return the elements that are within noise of a kink, the nearest first.

    Args:
        wide: The decisions of the run in float64.
        narrow: Those of the others, the one in which nothing is changed first.
        factor: How many times the noise torch may be off.
        double: Whether the recording is in float64.

    Returns:
        The elements; None if the runs do not make the same decisions.
    """
    kinds = [[site.decision for site in sites] for sites in (wide, *narrow)]
    shapes = [[site.value.shape for site in sites] for sites in (wide, *narrow)]
    if any(kind != kinds[0] for kind in kinds) or any(s != shapes[0] for s in shapes):
        return None
    found: dict[tuple[int, int, float], Kink] = {}
    share = FLOAT64_FACTOR * 2.0**-29 if double else 1.0
    for place, site in enumerate(wide):
        others = [sites[place] for sites in narrow]
        noise = share * _noise(site, others)
        away = np.abs(distance := site.distance)
        # NaN, where nothing is decided otherwise, is never less.
        for index in np.flatnonzero(away <= factor * noise):
            if len(found) > 64 * MOST:
                return [*found.values()]
            at = float(distance.flat[index])
            tied = at == 0 and others[0].distance.flat[index] == 0
            key = site.number, int(index), float(np.sign(at))
            least = noise or _ulp(site.value)
            clear = CLEAR * least + share * _ulp(site.value.flat[index])
            found.setdefault(
                key,
                Kink(
                    *(place, int(index), at, least, clear, bool(tied)),
                    ordered=site.decision.primitive in _FIRST,
                    in_runs=(at, *(float(o.distance.flat[index]) for o in others)),
                ),
            )
    return sorted(found.values(), key=lambda kink: abs(kink.distance) / kink.noise)


def _noise(site: Site, others: Iterable[Site]) -> float:
    noise = 0.0
    for other in others:
        with np.errstate(invalid="ignore"):
            own = peak(np.nan_to_num(other.value - site.value, posinf=0, neginf=0))
            if site.bound is not None and other.bound is not None:
                by = np.nan_to_num(other.bound - site.bound, posinf=0, neginf=0)
                own += peak(by)
        noise = max(noise, own)
    return noise


def _ulp(value: Array) -> float:
    """Return an ulp of the greatest element in float32."""
    finite = value[np.isfinite(value)]
    return float(np.finfo(np.float32).eps) * (peak(finite) or 1.0)


def flipped(residual: Array, effects: Sequence[Array]) -> list[int]:
    """Return which moves together give a difference, as far as they add up.

    Args:
        residual: torch's results less the port's.
        effects: What each move changes in the port's.

    Example:
        >>> one, other = np.asarray([1.0, 0, 2]), np.asarray([0.0, 3, 1])
        >>> flipped(np.asarray([0.01, 3, 1]), [one, other])
        [1]
    """
    return [n for n, share in enumerate(_shares(residual, effects)) if share > 0.5]


def defined_otherwise(residual: Array, effects: Sequence[Sequence[Array]]) -> list[int]:
    """Return which elements give a difference by shares; none if they leave much.

    Where a derivative is a choice, torch's may be anything between those of the sides,
    and not further from the port's than they are from each other or from that.

    Args:
        residual: torch's results less the port's.
        effects: What the moves of each element change in the port's.

    Example:
        >>> near, far = [np.asarray([2.0, 0])], [np.asarray([0.0, 0.01])]
        >>> defined_otherwise(np.asarray([1.0, 0]), [near, far])
        [0]
        >>> defined_otherwise(np.asarray([0.0, 1]), [near, far])
        []
    """
    shares = iter(_shares(residual, [effect for own in effects for effect in own]))
    left, found = residual, []
    for n, own in enumerate(effects):
        part = sum((next(shares) * effect for effect in own), np.zeros_like(residual))
        most = max(l2(effect) for effect in (*own, own[0] - own[-1]))
        if l2(part) > (1 + LEFT) * most:
            return []
        if l2(part) > LEFT * most:
            found.append(n)
        left = left - part
    return found if l2(left) <= LEFT * l2(residual) else []


def _shares(residual: Array, effects: Sequence[Array]) -> Array:
    if not effects:
        return np.zeros(0)
    columns = np.stack(effects, axis=1)
    # A move that changes nothing has no share.
    shares, *_ = np.linalg.lstsq(columns, residual, rcond=1e-10)
    return np.asarray(shares)


def named(
    site: Site, kink: Kink, activations: Iterable[tuple[Any, Array, Array]]
) -> str:
    """Say which element is on a kink: of which module, and what it is on both sides.

    Args:
        site: The decision.
        kink: The element.
        activations: What modules returned: where, torch's, and the port's in float64.
    """
    places = [name for name in site.where if ":" in name]
    what = function_of(site) + (f" ({places[-1]})" if places else "")
    far = f"{abs(kink.distance):.2g} from its kink"
    found = found_in(site, kink, activations)
    if found is not None:
        return (
            f"{what} of the output of {found.place!r}: the element at {found.where} is "
            f"{found.torch:.9g} in torch and {found.port:.9g} in the port, {far}"
        )
    index = tuple(int(i) for i in np.unravel_index(kink.index, site.value.shape))
    return (
        f"{what}: the element at {index} of {site.value.shape} is "
        f"{site.value[index]:.9g} in the port, {far}"
    )


class Found(NamedTuple):
    """An element of what a module returned: where, and what it is on either side."""

    place: str
    where: tuple[int, ...]
    torch: float
    port: float


def found_in(
    site: Site, kink: Kink, activations: Iterable[tuple[Any, Array, Array]]
) -> Found | None:
    """Find an element that decides in what modules return."""
    index = tuple(int(i) for i in np.unravel_index(kink.index, site.value.shape))
    for place, torch, port in activations:
        at = _index_in(port, site.value, index)
        if at is not None and torch.shape == port.shape:
            return Found(str(place), at, float(torch[at]), float(port[at]))
    return None


def _index_in(
    output: Array, value: Array, index: tuple[int, ...]
) -> tuple[int, ...] | None:
    """Return where an element of a value is in a module's output, if it is that."""
    if output.size != value.size:
        return None
    if output.shape == value.shape and np.array_equal(output, value):
        return index
    # It may lie otherwise.
    if not np.array_equal(np.sort(output, axis=None), np.sort(value, axis=None)):
        return None
    return tuple(int(i) for i in np.argwhere(output == value[index])[0])


def function_of(site: Site) -> str:
    """Return the name of the function that decides."""
    functions = [name for name in site.where if ":" not in name and name[0] != "_"]
    return functions[-1] if functions else site.decision.primitive


AS_TORCH = {
    "abs": "x * jnp.sign(x)",
    "clip": "jnp.where((lo <= x) & (x <= hi), x, jnp.clip(x, lo, hi))",
    "hard_tanh": "jnp.where(jnp.abs(x) < 1, x, jnp.sign(x))",
    "leaky_relu": "jnp.where(x > 0, x, negative_slope * x)",
    "reduce_max": "x[jnp.argmax(x)]",
}
"""How to write a function in JAX with torch's derivative at its kink."""


def advised(sites: Sequence[Site], kinks: Iterable[Kink]) -> Iterator[str]:
    """Say of elements on a kink that the frameworks differentiate otherwise there."""
    counts: dict[tuple[str, ...], int] = {}
    for kink in kinks:
        site = sites[kink.site]
        places = [name for name in site.where if ":" in name]
        key = (function_of(site), *places[-1:])
        counts[key] = counts.get(key, 0) + 1
    for (function, *place), count in counts.items():
        where = f" ({place[0]})" if place else ""
        instead = AS_TORCH.get(function)
        write = f"; write {instead} for torch's" if instead else ""
        yield (
            f"{count} element{'s are' if count > 1 else ' is'} exactly on the kink of "
            f"{function}{where}, where the two define the derivative otherwise{write}"
        )

"""Sums and maxima over groups of leaves, and across the mesh."""

import functools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxclip._core.leaves import accumulation_dtype
from jaxclip._core.mesh import largest, largest_element, mesh_axes_of

# Of small leaves of equal shape, so many are added up element by element before they
# are summed, as one operation. Large ones are not: if they were sharded differently,
# that would move them between devices.
SMALL = 2**14
TOGETHER = 16


class Layout(NamedTuple):
    """Which group each leaf is in, and over which mesh axes it is sharded."""

    count: int  # type: ignore[assignment]  # hides tuple.count
    members: tuple[tuple[int, tuple[str, ...]], ...]

    def sums(
        self, terms: Sequence[jax.Array], over_mesh: Callable[..., Any] = lax.psum
    ) -> list[jax.Array | None]:
        """Sum an array of each leaf into a scalar of each group; None of no leaves."""
        batches: dict[Any, list[int]] = {}
        for place, (member, term) in enumerate(zip(self.members, terms, strict=True)):
            alone = place if term.size > SMALL else None
            batches.setdefault((member, term.shape, alone), []).append(place)

        members, scalars = [], []
        for (member, *_), places in batches.items():
            for start in range(0, len(places), TOGETHER):
                together = [terms[p] for p in places[start : start + TOGETHER]]
                total = functools.reduce(lax.add, together)
                members.append(member)
                scalars.append(lax.reduce_sum(total, tuple(range(total.ndim))))
        return Layout(self.count, tuple(members)).over_groups(
            scalars, lax.add, over_mesh
        )

    def over_groups(
        self,
        scalars: Sequence[jax.Array],
        combine: Callable[[jax.Array, jax.Array], jax.Array],
        over_mesh: Callable[..., Any],
    ) -> list[jax.Array | None]:
        """Combine a scalar of each leaf into one of each group; None of no leaves."""
        # Scalars are kept apart by the mesh axes that their leaves are sharded over,
        # so that each set of axes takes one collective and replicated leaves none.
        partial: dict[tuple[str, ...], dict[int, jax.Array]] = {}
        for (index, axes), value in zip(self.members, scalars, strict=True):
            held = partial.setdefault(axes, {})
            held[index] = combine(held[index], value) if index in held else value

        totals: list[jax.Array | None] = [None] * self.count
        for axes, held in partial.items():
            values = list(held.values())
            reduced = over_mesh(values, axes) if axes else values
            for index, value in zip(held, reduced, strict=True):
                total = totals[index]
                totals[index] = value if total is None else combine(total, value)
        return totals


class Groups(NamedTuple):
    """Groups of leaves, each of which has one sum, or one largest magnitude.

    Attributes:
        leaves: The leaves of all the groups.
        layout: Where they belong.
        dtype: What is summed in: at least float32.
    """

    leaves: list[jax.Array]
    layout: Layout
    dtype: np.dtype[Any]

    @classmethod
    def of(
        cls, groups: Sequence[Sequence[jax.Array]], axis_names: tuple[str, ...]
    ) -> "Groups":
        """Take groups of inexact arrays, of which some may be empty."""
        leaves = [leaf for group in groups for leaf in group]
        members = [
            (index, mesh_axes_of(leaf, axis_names))
            for index, group in enumerate(groups)
            for leaf in group
        ]
        layout = Layout(len(groups), tuple(members))
        return cls(leaves, layout, accumulation_dtype(leaves))

    @property
    def count(self) -> int:  # type: ignore[override]  # hides tuple.count
        """The number of groups."""
        return self.layout.count

    def sizes(self) -> np.ndarray[Any, Any]:
        """Count each group's elements, on all shards."""
        sizes = np.zeros(self.count)
        for leaf, (index, axes) in zip(self.leaves, self.layout.members, strict=True):
            sizes[index] += leaf.size * math.prod(map(lax.axis_size, axes))
        return sizes

    def sums(self, term: Callable[[jax.Array, int], jax.Array]) -> jax.Array:
        """Sum ``term(leaf, index)`` over each group ``index``."""
        terms = [
            term(leaf, index)
            for leaf, (index, _) in zip(self.leaves, self.layout.members, strict=True)
        ]
        return stack(self.layout.sums(terms), self.dtype)

    def detached(self) -> "Groups":
        """Return the groups as constants, of which nothing has a derivative."""
        return self._replace(leaves=lax.stop_gradient(self.leaves))

    def bounds(self) -> jax.Array:
        """Return each group's largest magnitude, or less if an element is NaN."""
        magnitudes = [
            lax.convert_element_type(lax.abs(leaf), self.dtype) for leaf in self.leaves
        ]
        scalars = [jnp.max(leaf, initial=0.0) for leaf in magnitudes]
        bounds = self.layout.over_groups(scalars, lax.max, lax.pmax)
        return stack(bounds, self.dtype)

    def largest(self) -> jax.Array:
        """Return each group's largest magnitude; 0 for a group without elements."""
        magnitudes = [magnitudes_in(leaf, self.dtype) for leaf in self.leaves]
        scalars = [largest_element(leaf) for leaf in magnitudes]
        totals = self.layout.over_groups(
            scalars,
            jnp.maximum,
            lambda values, axes: [largest(value, axes) for value in values],
        )
        return stack(totals, self.dtype)


def stack(scalars: Sequence[jax.Array | None], dtype: Any) -> jax.Array:
    """Make an array of scalars, with 0 for None."""
    zero = jnp.zeros((), dtype)
    filled = [zero if scalar is None else scalar for scalar in scalars]
    return jnp.stack(filled) if filled else jnp.zeros((0,), dtype)


def unstack(array: jax.Array, kinds: Sequence[Hashable] = ()) -> list[jax.Array]:
    """Return the elements of an array of (length,) as scalars.

    As `jax.numpy.unstack` does, of which XLA compiles a kernel for each element, and
    as many that read one, which takes a minute for thousands. Here those are alike
    that read the same column of a square.

    Args:
        array: Of (length,).
        kinds: What reads each element, such as the shape of a leaf: elements of a kind
            come to stand in the same columns. Otherwise all of them are of one kind.
    """
    (length,) = array.shape
    width = math.isqrt(max(length - 1, 0)) + 1
    count = -(-length // width)
    order = _gathered(kinds or [None] * length)
    columns = jnp.pad(array[order], (0, count * width - length)).reshape(width, count)
    # What a conditional returns XLA computes once, and merges into nothing. Its two
    # sides have to differ, or it would be taken away.
    rows = lax.cond(
        jnp.any(array != jnp.ones((), array.dtype)),
        lambda: [columns[:, row] for row in range(count)],
        lambda: [jnp.ones_like(columns[:, row]) for row in range(count)],
    )
    scalars = {
        index: rows[place % count][place // count] for place, index in enumerate(order)
    }
    return [scalars[index] for index in range(length)]


def _gathered(kinds: Sequence[Hashable]) -> np.ndarray[Any, Any]:
    """Return the indices of the first kind, then those of the second, and so on."""
    numbers = {kind: number for number, kind in enumerate(dict.fromkeys(kinds))}
    numbered = np.array([numbers[kind] for kind in kinds], np.int32)
    return np.argsort(numbered, kind="stable")


def base_of(leaf: jax.Array, power: float | jax.Array, dtype: Any) -> jax.Array:
    """Return what `power_of` takes: magnitudes, or numbers that will be squared."""
    if _is(power, 2.0) and not jnp.iscomplexobj(leaf):
        return lax.convert_element_type(leaf, dtype)
    return magnitudes_in(leaf, dtype)


def magnitudes_in(leaf: jax.Array, dtype: Any) -> jax.Array:
    """Return the magnitudes of a leaf's elements in float32 or float64."""
    if jnp.iscomplexobj(leaf):
        dtype = jnp.complex128 if dtype == jnp.float64 else jnp.complex64
    return _absolute(leaf.astype(dtype))


@jax.custom_jvp
def _absolute(leaf: jax.Array) -> jax.Array:
    """Return magnitudes, with derivative 0 at 0, as torch's norms have; JAX's is 1."""
    return jnp.abs(leaf)


@_absolute.defjvp
def _absolute_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (leaf,), (tangent,) = primals, tangents
    magnitudes = _absolute(leaf)
    if not jnp.iscomplexobj(leaf):
        return magnitudes, jnp.sign(leaf) * tangent
    safe = jnp.where(magnitudes != 0, magnitudes, 1.0)
    along = (leaf.real / safe) * tangent.real + (leaf.imag / safe) * tangent.imag
    return magnitudes, along


def power_of(base: jax.Array, power: float | jax.Array) -> jax.Array:
    """Return what `base_of` returned to a power, with derivative 0 at 0."""
    if _is(power, 1.0):
        return base
    if _is(power, 2.0):
        # Not jnp.square, whose derivative doubles the element, and may overflow.
        return lax.mul(base, base)
    # The derivative of x^p at 0 is infinite for p < 1.
    nonzero = base != 0
    return jnp.where(nonzero, jnp.where(nonzero, base, 1.0) ** power, 0.0)


def root_of(total: jax.Array, power: float | jax.Array) -> jax.Array:
    """Return ``total ** (1 / power)``, with derivative 0 at 0."""
    nonzero = total != 0
    safe = jnp.where(nonzero, total, 1.0)
    root = jnp.sqrt(safe) if _is(power, 2.0) else safe ** (1.0 / power)
    return jnp.where(nonzero, root, 0.0)


def _is(power: float | jax.Array, value: float) -> bool:
    """Whether a power has this value, and that is known at compile time."""
    return not isinstance(power, jax.Array) and power == value

"""A conversion in two steps: all but the values is checked, then they are read."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip.convert._arrays import to_jax
from jaxclip.convert._axes import Axes, with_axes
from jaxclip.convert._errors import ConversionError
from jaxclip.convert._flatten import Flatten, flattened
from jaxclip.convert._hints import hint
from jaxclip.convert._map.weight_map import WeightMap
from jaxclip.convert._match import Dtypes, Tensor, is_float, match
from jaxclip.convert._modules import ModulePair, in_source
from jaxclip.convert._names import Rename, target_names, without_wrapper
from jaxclip.convert._plan import Entry, Plan, plan, remedies
from jaxclip.convert._read import read
from jaxclip.convert._sources.source import read_source
from jaxclip.convert._targets.target import read_target
from jaxclip.convert._targets.tree import Leaf, Path, Target


@dataclass(frozen=True)
class Conversion:
    """A conversion of which everything but the values has been checked.

    Attributes:
        mapping: The map, with the names of the source.
        nbytes: The size of the source's tensors.
        read: Reads the values.
        filled: Makes the new target of them.
    """

    mapping: WeightMap
    nbytes: int
    read: Callable[..., dict[Path, jax.Array]]
    filled: Callable[[Mapping[Path, jax.Array]], Any]


def plan_conversion(
    target: Any,
    source: object,
    *,
    rename: Rename | None,
    ignore: Iterable[str],
    flatten: Flatten | None,
    axes: Axes | None,
    stacked: Iterable[str],
    key: str | None,
    dtype: Any = None,
    dtypes: Dtypes | None = None,
) -> Conversion:
    """Check a conversion, as ``from_torch`` makes it.

    Args:
        target: As ``from_torch`` takes it, as are the others.
        source: The same.
        rename: The same.
        ignore: The same.
        flatten: The same.
        axes: The same.
        stacked: The same.
        key: The same.
        dtype: The same.
        dtypes: Which dtypes fit; by default ``dtype`` says so.

    Raises:
        ConversionError: As ``from_torch`` raises it.
    """
    model = read_target(target)
    found = read_source(source, key)
    cast = _cast(dtype)
    names, problems = target_names(found.tensors, rename, ignore)
    planned = laid_out(model, flatten, axes, stacked)
    notes = found.notes
    if rename is None:
        wanted = {name for entry in planned.entries for name in entry.names}
        names, taken = without_wrapper(names, wanted)
        notes += taken
    tensors = {new: Tensor(old, found.tensors[old]) for new, old in names.items()}
    dtypes = dtypes or Dtypes(cast=cast is not None)
    fit = match(planned.entries, tensors, dtypes, remedies(model))
    problems = [*problems, *planned.problems, *fit.problems]
    if problems:
        raise ConversionError(problems, hint(fit, names, rename))
    weights = weight_map(fit.entries, planned.modules, names, notes)

    def place(leaf: Leaf, array: np.ndarray) -> jax.Array:
        like = model.leaves[leaf.path].value
        return to_jax(array, like=like, dtype=cast if is_float(array.dtype) else None)

    def read_all(
        finite: bool = False, on_read: Callable[[int], None] | None = None
    ) -> dict[Path, jax.Array]:
        # A tensor is in memory while it is read: the largest, when nothing else is.
        entries = sorted(weights.entries, key=_size, reverse=True)
        arrays, misfits = read(
            entries, found.tensors, place, finite=finite, on_read=on_read
        )
        if misfits:
            raise ConversionError(misfits)
        return arrays

    nbytes = sum(getattr(tensor.value, "nbytes", 0) for tensor in tensors.values())
    return Conversion(weights, nbytes, read_all, model.filled)


def laid_out(
    model: Target, flatten: Flatten | None, axes: Axes | None, stacked: Iterable[str]
) -> Plan:
    """Link every weight of a model, as the options say that they lie."""
    return flattened(with_axes(plan(model, paths(stacked)), axes), flatten)


def weight_map(
    entries: Iterable[Entry],
    modules: Sequence[ModulePair],
    names: Mapping[str, str],
    notes: tuple[str, ...],
) -> WeightMap:
    """Make a map that holds no values, and has the names of the source."""
    return WeightMap(
        tuple(
            replace(
                entry,
                names=tuple(names.get(name, name) for name in entry.names),
                leaves=tuple(
                    replace(
                        leaf,
                        value=jax.ShapeDtypeStruct(leaf.value.shape, leaf.value.dtype),
                    )
                    for leaf in entry.leaves
                ),
            )
            for entry in entries
        ),
        notes,
        in_source(modules, names),
    )


def paths(stacked: Iterable[str]) -> tuple[str, ...]:
    """Return the paths in ``stacked``, which may be one string."""
    return (stacked,) if isinstance(stacked, str) else tuple(stacked)


def _size(entry: Entry) -> int:
    sizes = (leaf.value.size * leaf.value.dtype.itemsize for leaf in entry.leaves)
    return sum(sizes)


def _cast(dtype: Any) -> np.dtype[Any] | None:
    if dtype is None:
        return None
    try:
        cast: np.dtype[Any] = jnp.dtype(dtype)
    except TypeError:
        raise TypeError(f"dtype={dtype!r} is no dtype.") from None
    if not is_float(cast):
        raise ValueError(f"dtype={cast} is no float; only floats are cast, to floats.")
    return cast

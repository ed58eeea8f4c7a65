"""The map between torch's names and a Flax model's variables."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import jax

from jaxclip._arrays import to_numpy
from jaxclip.convert._arrays import to_jax, to_tensor
from jaxclip.convert._errors import ConversionError
from jaxclip.convert._map import file as map_file
from jaxclip.convert._map.table import table
from jaxclip.convert._match import Dtypes, Tensor, match
from jaxclip.convert._plan import Entry
from jaxclip.convert._read import read
from jaxclip.convert._targets.nnx_models import is_no_weight
from jaxclip.convert._targets.tree import Leaf, Path, nested, tree_path

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class WeightMap:
    """Which torch tensors and which Flax variables hold the same numbers, and how.

    ``convert.mapping`` makes one from a model. It holds names, shapes and layouts,
    and no values, so that it serves whatever is shaped as the weights are: gradients,
    an optimizer's moments, running averages. Printed, it is a table.

    Attributes:
        entries: The links, each at its place in the model.
        notes: What was found out in making it, in words.
    """

    entries: tuple[Entry, ...]
    notes: tuple[str, ...] = ()

    # Where users import it from, which is what they should see.
    __module__ = "jaxclip.convert"

    def to_flax(self, tensors: Mapping[str, object], *, like: Any = None) -> Any:
        """Lay tensors out as the Flax model's variables are.

        Args:
            tensors: Tensors or arrays by torch's names, in the shapes of the weights
                and in any dtype, which they keep: all of them, and no others. Of the
                several names of a tied weight, one is enough.
            like: A tree with the paths of the model's variables (``nnx.State``,
                gradients, an optimizer's moments), of which a copy with other leaves
                is returned. Random streams and caches in it stay as they are.

        Returns:
            The arrays, in nested dicts if ``like`` is not given: in Linen, by
            collection, as in ``variables``.

        Raises:
            ConversionError: If a tensor is missing, left over, or of another shape.

        Example:
            >>> import numpy as np
            >>> from flax import nnx
            >>> from jaxclip.convert import mapping
            >>> weights = mapping(nnx.Linear(3, 1, rngs=nnx.Rngs(0)))
            >>> grads = {"weight": np.ones((1, 3)), "bias": np.zeros(1)}
            >>> weights.to_flax(grads)["kernel"].shape
            (3, 1)
        """
        named = {name: Tensor(name, value) for name, value in tensors.items()}
        found = match(self.entries, named, Dtypes(checked=False))
        if found.problems:
            raise ConversionError(found.problems)
        arrays, problems = read(
            found.entries, tensors, lambda leaf, array: to_jax(array)
        )
        if problems:
            raise ConversionError(problems)
        return nested(arrays) if like is None else self._replaced(like, arrays)

    def to_torch(self, tree: Any) -> "dict[str, torch.Tensor]":
        """Lay a tree of arrays out as torch's tensors are.

        Args:
            tree: A tree with the paths of the model's variables: an ``nnx.State``,
                of which random streams and caches are passed over, gradients, nested
                dicts; in Linen, by collection.

        Returns:
            The tensors by torch's names: copies, on the CPU, in the dtypes of the
            arrays.

        Raises:
            ConversionError: If an array is missing, left over, or of another shape.
            ImportError: If torch is missing.

        Example:
            >>> from flax import nnx
            >>> from jaxclip.convert import mapping
            >>> model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
            >>> tuple(mapping(model).to_torch(nnx.state(model))["weight"].shape)
            (1, 3)
        """
        values = {
            tree_path(path): value
            for path, value in _flattened(tree)[0]
            if not is_no_weight(value)
        }
        problems = [
            f"{Leaf(path, None)} is not in the tree."
            for path in self._leaves
            if path not in values
        ]
        for path, value in values.items():
            leaf, shape = self._leaves.get(path), getattr(value, "shape", None)
            if leaf is None:
                problems.append(f"{Leaf(path, None)} is not in the mapping.")
            elif shape != leaf.value.shape:
                problems.append(f"{leaf} has shape {shape}, not {leaf.value.shape}.")
        if problems:
            raise ConversionError(problems)
        return state_dict(self.entries, values)

    def parameters(self) -> "WeightMap":
        """Return the part of the map that an optimizer trains.

        That is what torch's ``Module.parameters()`` gives: the variables that are
        ``nnx.Param``, or lie in Linen's collection ``params``.

        Example:
            >>> from flax import nnx
            >>> from jaxclip.convert import mapping
            >>> len(mapping(nnx.Linear(3, 1, rngs=nnx.Rngs(0))).parameters().entries)
            2
        """
        return replace(
            self,
            entries=tuple(
                entry
                for entry in self.entries
                if entry.leaves and all(leaf.trained for leaf in entry.leaves)
            ),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the map as JSON: names, shapes, and which elements go where.

        Raises:
            ConversionError: If a layout is none that only moves elements about, as
                where a rule adds two biases.
            OSError: If the file cannot be written. It is written whole or not at all.
        """
        map_file.save(FilePath(path), self.entries, self.notes)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "WeightMap":
        """Read a map that ``save`` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is no such map, or does not say of each element of each
                tensor and variable, once, where it goes.
        """
        return cls(*map_file.load(FilePath(path)))

    def __str__(self) -> str:
        """Show the map as a table."""
        return table(self.entries, self.notes)

    @property
    def _leaves(self) -> dict[Path, Leaf]:
        return {leaf.path: leaf for entry in self.entries for leaf in entry.leaves}

    def _replaced(self, like: Any, arrays: Mapping[Path, jax.Array]) -> Any:
        leaves, structure = _flattened(like)
        paths = [tree_path(path) for path, leaf in leaves if not is_no_weight(leaf)]
        problems = [
            *(
                f"like has {Leaf(path, None)}, which is not in the mapping."
                for path in paths
                if path not in arrays
            ),
            *(
                f"like lacks {Leaf(path, None)}, which is in the mapping."
                for path in arrays
                if path not in paths
            ),
        ]
        if problems:
            raise ConversionError(problems)
        fresh = (
            leaf if is_no_weight(leaf) else arrays[tree_path(path)]
            for path, leaf in leaves
        )
        return jax.tree_util.tree_unflatten(structure, fresh)


def _flattened(tree: Any) -> tuple[list[tuple[Any, Any]], Any]:
    """Flatten a tree, of which a variable that is no weight is one leaf as a whole."""
    return jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_no_weight)


def state_dict(
    entries: tuple[Entry, ...], values: Mapping[Path, object]
) -> "dict[str, torch.Tensor]":
    """Make torch's tensors from the values of variables.

    Raises:
        ConversionError: If a variable has no values.
    """
    tensors: dict[str, torch.Tensor] = {}
    problems = []
    for entry in entries:
        try:
            arrays = [to_numpy(values[leaf.path]) for leaf in entry.leaves]
        except TypeError as error:
            problems.append(f"{entry} {error}")
            continue
        made = entry.to_torch(*arrays)
        try:
            tensors |= zip(entry.names, map(to_tensor, made), strict=True)
        except TypeError as error:
            problems.append(f"{entry} {error}")
    if problems:
        raise ConversionError(problems)
    return tensors

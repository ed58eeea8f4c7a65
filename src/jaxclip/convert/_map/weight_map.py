"""The map between torch's names and a Flax model's variables."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import numpy as np

from jaxclip._arrays import to_numpy
from jaxclip.convert._arrays import to_jax, to_tensor
from jaxclip.convert._errors import ConversionError
from jaxclip.convert._map import activations as outputs
from jaxclip.convert._map import file as map_file
from jaxclip.convert._map.activations import Layouts
from jaxclip.convert._map.table import table
from jaxclip.convert._match import Dtypes, Tensor, match
from jaxclip.convert._modules import ModulePair
from jaxclip.convert._plan import Entry
from jaxclip.convert._read import read
from jaxclip.convert._targets.nnx_models import is_no_weight
from jaxclip.convert._targets.tree import Leaf, Path, nested, tree_path

if TYPE_CHECKING:
    import torch

A = TypeVar("A")


@dataclass(frozen=True)
class WeightMap:
    """Which torch tensors and which Flax variables hold the same numbers, and how.

    ``convert.mapping`` makes one from a model. It holds names, shapes and layouts,
    and no values, so that it serves whatever is shaped as the weights are: gradients,
    an optimizer's moments, running averages; and what the modules return. Printed, it
    is a table.

    Attributes:
        entries: The links, each at its place in the model.
        notes: What was found out in making it, in words.
        modules: The modules that hold weights and return something, where one of torch
            and one of Flax are the same, outer ones first: with their paths and how
            their outputs lie. A module in stacked layers is one for each layer, and
            Flax's path has the number: ``"blocks[0].fc"``.
    """

    entries: tuple[Entry, ...]
    notes: tuple[str, ...] = ()
    modules: tuple[ModulePair, ...] = ()

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
        return laid_out(self, tensors, like, lambda leaf, array: to_jax(array))

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

    def activations_to_flax(self, activations: Mapping[str, Any]) -> dict[str, Any]:
        """Lay what torch modules returned out as the Flax modules return it.

        A convolution's output is ``(N, C, H, W)`` in torch and ``(N, H, W, C)`` in
        Flax. How a module's output lies follows from the type of the Flax module, and
        is else what ``with_layouts`` says; nothing is guessed from a shape. A layer
        with a ``batch_first`` is taken to have the same one on both sides.

        Args:
            activations: Outputs by the paths of torch modules, of any of those in
                ``modules``: a tensor or an array, or several in tuples, lists or
                dicts, as of an LSTM, or of a module that is called several times.

        Returns:
            The arrays by the paths of the Flax modules, dtypes and structure kept:
            torch's ``MultiheadAttention`` returns a pair, of which Flax's own returns
            the first.

        Raises:
            ConversionError: If a path is not in ``modules``, the layout of a module
                is not known, or an output does not have the axes that it speaks of.

        Example:
            >>> import numpy as np
            >>> from flax import nnx
            >>> from jaxclip.convert import mapping
            >>> conv = nnx.Conv(3, 8, (3, 3), rngs=nnx.Rngs(0))
            >>> weights = mapping(nnx.Dict(conv=conv))
            >>> images = np.zeros((1, 8, 5, 6))
            >>> weights.activations_to_flax({"conv": images})["conv"].shape
            (1, 5, 6, 8)
        """
        pairs = {pair.torch: pair for pair in self.modules}
        return outputs.to_flax(pairs, activations, to_jax)

    def activations_to_torch(self, activations: Mapping[str, Any]) -> dict[str, Any]:
        """Lay what Flax modules returned out as the torch modules return it.

        The inverse of ``activations_to_flax``.

        Args:
            activations: Outputs by the paths of Flax modules.

        Returns:
            The tensors by the paths of the torch modules: copies, on the CPU.

        Raises:
            ConversionError: As ``activations_to_flax`` raises it.
            ImportError: If torch is missing.

        Example:
            >>> import numpy as np
            >>> from flax import nnx
            >>> from jaxclip.convert import mapping
            >>> weights = mapping(nnx.Dict(norm=nnx.BatchNorm(8, rngs=nnx.Rngs(0))))
            >>> images = np.zeros((1, 5, 6, 8))
            >>> weights.activations_to_torch({"norm": images})["norm"].shape
            torch.Size([1, 8, 5, 6])
        """
        pairs = {pair.flax: pair for pair in self.modules}
        return outputs.to_torch(pairs, activations, to_tensor)

    def with_layouts(self, layouts: Layouts) -> "WeightMap":
        """Say how outputs lie where the types of the Flax modules do not.

        A container of your own may return anything, and an activation or a pooling
        that holds no weights is not in ``modules``.

        Args:
            layouts: A mapping from the path of a torch module, or a pattern
                (``"stages.*"``, as in ``fnmatch``, the first that fits), to a layout;
                or a function from path to layout, or to None to leave it. A layout is
                ``"same"``; ``"channels_last"``, which moves torch's second axis to the
                end; ``"channels_last_1d"``, ``"_2d"`` or ``"_3d"``, which moves the
                one before so many spatial axes, whether there is one of a batch or
                not; ``"flattened(64, 7, 7)"`` for images of that shape, channels first,
                that were flattened, as in front of a classifier; a permutation that
                says for each axis of Flax's which of torch's it is, as ``(1, 0, 2)``
                does where one side has time first; or a tuple of these for a module
                that returns a tuple. A path counts for more than
                what a type says, a pattern must agree with it. A path that is not in
                ``modules`` is added to them: the Flax module is taken to have the same
                name, within the same module.

        Returns:
            A new map.

        Raises:
            ConversionError: If a pattern matches nothing or contradicts a type.
            TypeError: If ``layouts`` is neither a mapping nor a function.
            ValueError: If a layout is none.

        Example:
            >>> from flax import nnx
            >>> from jaxclip.convert import mapping
            >>> class Net(nnx.Module):
            ...     def __init__(self):
            ...         self.conv = nnx.Conv(1, 2, (3, 3), rngs=nnx.Rngs(0))
            ...     def __call__(self, images):
            ...         return self.conv(images).mean((1, 2))
            >>> for pair in mapping(Net()).with_layouts({"": "same"}).modules:
            ...     print(repr(pair.torch), pair.kind, pair.layout)
            '' Net same
            'conv' Conv channels_last_2d
        """
        return replace(self, modules=outputs.with_layouts(self.modules, layouts))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the map as JSON: names, shapes, and which elements go where.

        Raises:
            ConversionError: If a layout is none that only moves elements about, as
                where a rule adds two biases.
            OSError: If the file cannot be written. It is written whole or not at all.
        """
        map_file.save(FilePath(path), self.entries, self.notes, self.modules)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "WeightMap":
        """Read a map that ``save`` wrote.

        One of version 1 has no modules, and does not serve activations.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is no such map, or does not say of each element of each
                tensor and variable, once, where it goes.
        """
        return cls(*map_file.load(FilePath(path)))

    def __str__(self) -> str:
        """Show the map as a table."""
        return table(self.entries, self.notes, self.modules)

    @property
    def _leaves(self) -> dict[Path, Leaf]:
        return {leaf.path: leaf for entry in self.entries for leaf in entry.leaves}


def laid_out(
    weights: WeightMap,
    tensors: Mapping[str, object],
    like: Any,
    place: Callable[[Leaf, np.ndarray], A],
) -> Any:
    """Lay tensors out as ``WeightMap.to_flax`` does, in arrays of any kind.

    Args:
        weights: The map.
        tensors: As ``to_flax`` takes them.
        like: The same.
        place: Makes a variable's array from what may be a view of a tensor.

    Raises:
        ConversionError: As ``to_flax`` raises it.
    """
    named = {name: Tensor(name, value) for name, value in tensors.items()}
    found = match(weights.entries, named, Dtypes(checked=False))
    if found.problems:
        raise ConversionError(found.problems)
    arrays, problems = read(found.entries, tensors, place)
    if problems:
        raise ConversionError(problems)
    return nested(arrays) if like is None else _replaced(like, arrays)


def _replaced(like: Any, arrays: Mapping[Path, Any]) -> Any:
    """Return a tree with other arrays in the place of weights."""
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
        leaf if is_no_weight(leaf) else arrays[tree_path(path)] for path, leaf in leaves
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

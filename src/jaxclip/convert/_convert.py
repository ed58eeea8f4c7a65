"""The two public functions: weights from torch, and weights to torch."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeVar, cast

from flax import linen as nn
from flax import nnx

from jaxclip._arrays import to_numpy
from jaxclip.convert._arrays import to_tensor
from jaxclip.convert._errors import ConversionError
from jaxclip.convert._fill import Tensor, fill
from jaxclip.convert._flatten import Flatten, flattened
from jaxclip.convert._linen import linen_target
from jaxclip.convert._names import Rename, target_names
from jaxclip.convert._nnx import nnx_target
from jaxclip.convert._optional import need
from jaxclip.convert._plan import plan, remedies
from jaxclip.convert._sources import read_source
from jaxclip.convert._tree import Target

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


def from_torch(
    target: T,
    source: object,
    *,
    rename: Rename | None = None,
    ignore: Iterable[str] = (),
    flatten: Flatten | None = None,
) -> T:
    """Put torch's weights into a Flax model.

    How an array lies follows from the type of the Flax module that holds it: the
    kernel of an ``nnx.Linear`` is the transposed weight of torch's ``Linear``, and
    the raw parameters of a module of your own are taken as they are.

    The conversion is total. Every tensor of the source is used once, or named in
    ``ignore``; every variable of the target is filled once; shapes and dtypes must
    agree, and nothing is cast. Variables that torch's state dict has no counterpart
    for (the state of random number generators, caches) stay as they are.

    A variable that the target reaches by several names (tied weights) may be in the
    source under any or all of them; if under several, they must be bitwise equal.

    Args:
        target: An NNX module, or a pair ``(module, variables)`` of a Linen module and
            what its ``init`` returns. The values in it do not matter, and may be
            abstract (``nnx.eval_shape``, ``jax.eval_shape``).
        source: A torch module, or whatever else has a ``state_dict()``; a state dict
            of torch tensors, NumPy or JAX arrays; or the path of a ``.safetensors``,
            ``.pt`` or ``.pth`` file, of which nothing is ever unpickled.
        rename: How names in the source become the names that ``to_torch(target)``
            gives: a mapping from prefix to prefix, of which the longest that fits a
            name is used (``{"module": ""}`` takes a prefix away, ``{"": "net"}`` adds
            one); or a function from name to name.
        ignore: Patterns (``"head.*"``, as in ``fnmatch``) of the names, in the source,
            of tensors to leave out.
        flatten: What a layer is given flattened, where torch has channels first and
            Flax has them last: ``{"fc": (C, H, W)}`` for the weight of a ``Linear``
            named "fc" after a ``Flatten``. A name may also be that of any tensor,
            whose last axis it then is (``"bn.running_mean"``). Without it such a
            weight has the right shape and its columns in the wrong order, which
            nothing but the outputs can tell.

    Returns:
        A new target of the same type; the one given is not changed. Arrays are
        copies, placed where the target's were.

    Raises:
        ConversionError: If anything is left over, missing or does not agree: one
            error for all such problems, each with the nearest candidates.
        TypeError: If ``target``, ``source`` or ``flatten`` is of another type.
        FileNotFoundError: If the source is a path where there is no file.
        ValueError: If the source is a file with another suffix, or a damaged one.
        ImportError: If torch or safetensors is needed to read the file, and missing.

    Example:
        >>> import numpy as np
        >>> state_dict = {"weight": np.ones((1, 3), "f"), "bias": np.zeros(1, "f")}
        >>> layer = from_torch(nnx.Linear(3, 1, rngs=nnx.Rngs(0)), state_dict)
        >>> layer.kernel.shape, layer(np.array([1.0, 2.0, 3.0], "f"))
        ((3, 1), Array([6.], dtype=float32))
        >>> from_torch(layer, {"fc.weight": state_dict["weight"]})
        Traceback (most recent call last):
        ...
        jaxclip.convert.ConversionError: nothing was converted; 3 problems:
          - 'kernel' (3, 1) is not filled: the source has no 'weight' (1, 3).
            Nearest: 'fc.weight' (1, 3).
          - 'bias' (1,) is not filled: the source has no 'bias' (1,).
          - 'fc.weight' (1, 3) is not used. Nearest: 'weight' (1, 3).
    """
    model = _read_target(target)
    tensors, problems = _read_tensors(source, rename, ignore)
    entries, unlinked = plan(model)
    entries, misnamed = flattened(entries, flatten)
    values, misfits = fill(entries, tensors, remedies(model))
    problems = [*problems, *unlinked, *misnamed, *misfits]
    if problems:
        raise ConversionError(problems)
    filled = model.filled(values)
    return cast(T, (target[0], filled) if isinstance(target, tuple) else filled)


def to_torch(
    target: object, *, flatten: Flatten | None = None
) -> "dict[str, torch.Tensor]":
    """Turn a Flax model's weights into a torch state dict.

    The inverse of ``from_torch``, bit for bit. The names and the layout are those of
    the torch model that the target mirrors, so its ``load_state_dict(strict=True)``
    takes the result. A variable that is reached by several names (tied weights) is in
    it under each of them, as torch has it.

    Args:
        target: An NNX module, or a pair ``(module, variables)`` of a Linen module and
            what its ``init`` returns.
        flatten: As ``from_torch`` takes it.

    Returns:
        The tensors by name: copies, on the CPU, in the dtypes of the target.

    Raises:
        ConversionError: If a module's type has no rule, or a variable has no values;
            one error for all such problems.
        TypeError: If ``target`` or ``flatten`` is of another type.
        ImportError: If torch is missing.

    Example:
        >>> layer = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
        >>> {name: tuple(tensor.shape) for name, tensor in to_torch(layer).items()}
        {'weight': (1, 3), 'bias': (1,)}
    """
    need("torch", extra="torch", reason="to_torch")
    entries, unlinked = plan(_read_target(target))
    entries, misnamed = flattened(entries, flatten)
    problems = [*unlinked, *misnamed]
    state_dict: dict[str, torch.Tensor] = {}
    for entry in entries:
        try:
            values = [to_numpy(leaf.value) for leaf in entry.leaves]
        except TypeError as error:
            problems.append(f"{entry} {error}")
            continue
        arrays = entry.to_torch(*values)
        try:
            state_dict |= zip(entry.names, map(to_tensor, arrays), strict=True)
        except TypeError as error:
            problems.append(f"{entry} {error}")
    if problems:
        raise ConversionError(problems)
    return state_dict


def _read_target(target: object) -> Target:
    match target:
        case nnx.Module():
            return nnx_target(target)
        case tuple((nn.Module() as module, Mapping() as variables)):
            return linen_target(module, variables)
        case nn.Module():
            given = "a Linen module without its variables"
        case _:
            given = f"a {type(target).__module__}.{type(target).__qualname__}"
    raise TypeError(
        f"target is {given}; it must be an NNX module, or a pair (module, variables) "
        "of a Linen module and what its init returns."
    )


def _read_tensors(
    source: object, rename: Rename | None, ignore: Iterable[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors of a source by the names that the target has for them."""
    read = read_source(source)
    names, problems = target_names(read, rename, ignore)
    return {new: Tensor(old, read[old]) for new, old in names.items()}, problems

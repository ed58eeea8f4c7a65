"""The public functions: weights from torch, weights to torch, and the map of both."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack, overload

from flax import linen as nn
from flax import nnx

from jaxclip.convert._axes import Axes
from jaxclip.convert._conversion import laid_out, plan_conversion, weight_map
from jaxclip.convert._errors import ConversionError
from jaxclip.convert._flatten import Flatten
from jaxclip.convert._map.weight_map import WeightMap, state_dict
from jaxclip.convert._match import Dtypes
from jaxclip.convert._names import Rename
from jaxclip.convert._optional import need
from jaxclip.convert._plan import Plan
from jaxclip.convert._targets.target import read_target
from jaxclip.convert._targets.tree import Target

if TYPE_CHECKING:
    import torch


M = TypeVar("M", bound=nnx.Module)
L = TypeVar("L", bound=nn.Module | nnx.GraphDef[Any])


class _Options(TypedDict, total=False):
    """The options of ``from_torch``, as its signature has them."""

    rename: Rename | None
    ignore: Iterable[str]
    flatten: Flatten | None
    axes: Axes | None
    stacked: Iterable[str]
    key: str | None
    dtype: Any
    finite: bool


@overload
def from_torch(target: M, source: object, **options: Unpack[_Options]) -> M: ...
@overload
def from_torch(
    target: tuple[L, Any], source: object, **options: Unpack[_Options]
) -> tuple[L, Any]: ...
@overload
def from_torch(
    target: dict[str, Any], source: object, **options: Unpack[_Options]
) -> dict[str, Any]: ...
@overload
def from_torch(
    target: Callable[[], M], source: object, **options: Unpack[_Options]
) -> M: ...
def from_torch(
    target: Any,
    source: object,
    *,
    rename: Rename | None = None,
    ignore: Iterable[str] = (),
    flatten: Flatten | None = None,
    axes: Axes | None = None,
    stacked: Iterable[str] = (),
    key: str | None = None,
    dtype: Any = None,
    finite: bool = False,
) -> Any:
    """Put torch's weights into a Flax model.

    How an array lies follows from the type of the Flax module that holds it: the
    kernel of an ``nnx.Linear`` is the transposed weight of torch's ``Linear``, and
    the raw parameters of a module of your own are taken as they are.

    The conversion is total. Every tensor of the source is used once, or named in
    ``ignore``; every variable of the target is filled once; shapes and dtypes must
    agree, and nothing is cast unless ``dtype`` says so. Variables that torch's state
    dict has no counterpart for (the state of random number generators, caches) stay
    as they are.

    A variable that the target reaches by several names (tied weights) may be in the
    source under any or all of them; if under several, they must be bitwise equal.

    Args:
        target: The model, whose values do not matter. In NNX: a function that makes
            it (``lambda: Model(rngs=nnx.Rngs(0))``), of which no weight is made in
            vain; a module, which may be abstract; or the pair ``(graphdef, state)``
            of ``nnx.split``, as a state by itself does not have the types of the
            modules. In Linen: the pair ``(module, inputs)`` of a module and what it
            is called with, an array or a tuple of arguments, of which the shapes of
            arrays matter; or ``(module, variables)``, with what its ``init`` returns
            or ``jax.eval_shape`` says that it does; or ``(module, variables,
            inputs)``; or a function that returns one of these. What an
            ``@nn.compact`` method makes is seen in a call alone, so that ``inputs``
            is needed for it. They may be a function that calls the module that it
            is given: ``lambda model: model(x, train=False)``. Of other libraries, and
            of functions: a tree of parameters, for which see ``axes``: nested dicts
            and lists, or what JAX knows for a tree. A module of Equinox is one of
            which it is known how its layers lie.
        source: A torch module, or whatever else has a ``state_dict()``; a state dict
            of torch tensors, NumPy or JAX arrays; or the path of a file:
            ``.safetensors``; ``.pt``, ``.pth`` or ``.bin``, of which nothing is ever
            unpickled but tensors; or the ``.index.json`` that says which tensor lies
            in which of several files beside it.
        rename: How names in the source become the names that ``to_torch(target)``
            gives. A mapping from prefix to prefix, of which the longest that fits a
            name is used (``{"encoder": ""}`` takes a prefix away, ``{"": "net"}``
            adds one), and from compiled patterns to what ``re.sub`` puts in their
            place, in order, after the prefixes; or a function from name to name.
            Without it, a ``module.`` or ``_orig_mod.`` that every name of the source
            starts with, and none of the target, is taken off.
        ignore: Patterns (``"head.*"``, as in ``fnmatch``) of the names, in the source,
            of tensors to leave out.
        flatten: What a layer is given flattened, where torch has channels first and
            Flax has them last: ``{"fc": (C, H, W)}`` for the weight of a ``Linear``
            named "fc" after a ``Flatten``. A name may also be that of any tensor,
            whose last axis it then is (``"bn.running_mean"``). Without it such a
            weight has the right shape and its columns in the wrong order, which
            nothing but the outputs can tell.
        axes: How arrays lie of which no layer says it, such as the parameters of a
            function: by a name in torch, or a pattern of names, which axis of torch's
            each axis is. ``{"*.w": (1, 0)}`` is for matrices that are multiplied from
            the right, ``{"*.w": (2, 3, 1, 0)}`` for convolutions over two axes. None
            is for an axis of length 1 that torch lacks.
        stacked: The paths of modules whose variables have a leading axis of layers,
            as ``nnx.vmap`` and ``nn.scan`` make them. In torch's names the number of
            a layer follows: ``stacked="blocks"`` fills ``blocks.fc.kernel`` from
            ``blocks.0.fc.weight``, ``blocks.1.fc.weight`` and so on.
        key: Under which key of a checkpoint the state dict lies; ``""`` if it is the
            whole. By default it is the one that holds tensors, if there is but one.
        dtype: The dtype to which floats are cast on the way, whatever the target's;
            integers are left alone.
        finite: Whether a NaN or an infinity in the source is an error.

    Returns:
        A new target: an NNX module, ``(graphdef, state)``, ``(module, variables)`` or
        a tree; the one given is not changed. Arrays are copies, placed where the
        target's were.

    Raises:
        ConversionError: If anything is left over, missing or does not agree: one
            error for all such problems, each with the nearest candidates, and with a
            ``rename`` to paste if there is one that helps.
        TypeError: If ``target``, ``source``, ``flatten`` or ``axes`` is of another
            type.
        FileNotFoundError: If the source is a path where there is no file.
        ValueError: If the source is a file with another suffix, or a damaged one, or
            a checkpoint in which it is not clear where the state dict is; or if the
            two of a pair ``(graphdef, state)`` do not fit together, or the target is
            a function that changes what was made outside of it.
        ImportError: If torch is needed to read the file, and missing.

    Example:
        >>> import numpy as np
        >>> from flax import nnx
        >>> state_dict = {"weight": np.ones((1, 3), "f"), "bias": np.zeros(1, "f")}
        >>> layer = from_torch(lambda: nnx.Linear(3, 1, rngs=nnx.Rngs(0)), state_dict)
        >>> layer.kernel.shape, layer(np.array([1.0, 2.0, 3.0], "f"))
        ((3, 1), Array([6.], dtype=float32))
        >>> from_torch(layer, {"weight": state_dict["weight"]})
        Traceback (most recent call last):
        ...
        jaxclip.convert.ConversionError: nothing was converted; 1 problem:
          - 'bias' (1,) is not filled: the source has no 'bias' (1,).
        >>> params = {"w": np.zeros((3, 1), "f"), "b": np.zeros(1, "f")}  # as in x @ w
        >>> names, axes = {"weight": "w", "bias": "b"}, {"w": (1, 0)}
        >>> from_torch(params, state_dict, rename=names, axes=axes)["w"].shape
        (3, 1)
    """
    job = plan_conversion(
        target,
        source,
        rename=rename,
        ignore=ignore,
        flatten=flatten,
        axes=axes,
        stacked=stacked,
        key=key,
        dtype=dtype,
    )
    return job.filled(job.read(finite=finite))


def to_torch(
    target: object,
    *,
    flatten: Flatten | None = None,
    axes: Axes | None = None,
    stacked: Iterable[str] = (),
) -> "dict[str, torch.Tensor]":
    """Turn a Flax model's weights into a torch state dict.

    The inverse of ``from_torch``, bit for bit. The names and the layout are those of
    the torch model that the target mirrors, so its ``load_state_dict(strict=True)``
    takes the result. A variable that is reached by several names (tied weights) is in
    it under each of them, as torch has it.

    Args:
        target: An NNX module; the pair ``(graphdef, state)`` of ``nnx.split``; or
            ``(module, variables)`` of a Linen module and what its ``init`` returns,
            and of one that has ``@nn.compact`` methods ``(module, variables,
            inputs)``, as ``from_torch`` takes it.
        flatten: As ``from_torch`` takes it.
        axes: As ``from_torch`` takes it.
        stacked: The paths of modules whose variables have a leading axis of layers,
            each of which has tensors of its own in torch.

    Returns:
        The tensors by name: copies, on the CPU, in the dtypes of the target.

    Raises:
        ConversionError: If a module's type has no rule, or a variable has no values;
            one error for all such problems.
        TypeError: If ``target``, ``flatten`` or ``axes`` is of another type.
        ImportError: If torch is missing.

    Example:
        >>> from flax import nnx
        >>> layer = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
        >>> {name: tuple(tensor.shape) for name, tensor in to_torch(layer).items()}
        {'weight': (1, 3), 'bias': (1,)}
    """
    need("torch", extra="torch", reason="to_torch")
    model = read_target(target)
    entries = _planned(model, flatten, axes, stacked).entries
    values = {path: leaf.value for path, leaf in model.leaves.items()}
    return state_dict(tuple(entries), values)


def mapping(
    target: Any,
    source: object = None,
    *,
    rename: Rename | None = None,
    ignore: Iterable[str] = (),
    flatten: Flatten | None = None,
    axes: Axes | None = None,
    stacked: Iterable[str] = (),
    key: str | None = None,
) -> WeightMap:
    """Return the map between torch's names and a Flax model's variables.

    ``from_torch`` makes one and applies it to weights. By itself it serves whatever
    is shaped as the weights are, and what modules return, in both directions, and can
    be printed and saved.

    Args:
        target: As ``from_torch`` takes it.
        source: As ``from_torch`` takes it. The map then has the source's names, and
            is checked against its shapes; dtypes may differ. Without a source it has
            those that ``to_torch(target)`` gives.
        rename: As ``from_torch`` takes it.
        ignore: As ``from_torch`` takes it.
        flatten: As ``from_torch`` takes it.
        axes: As ``from_torch`` takes it.
        stacked: As ``from_torch`` takes it.
        key: As ``from_torch`` takes it.

    Returns:
        The map.

    Raises:
        ConversionError: As ``from_torch`` raises it.

    Example:
        >>> from flax import nnx
        >>> print(mapping(lambda: nnx.Linear(3, 2, rngs=nnx.Rngs(0))))
        torch   shape   layout     Flax    shape   dtype
        ------  ------  ---------  ------  ------  -------
        weight  (2, 3)  transpose  kernel  (3, 2)  float32
        bias    (2,)    same       bias    (2,)    float32
        <BLANKLINE>
        torch module  output  Flax module  type
        ------------  ------  -----------  ------
        (the model)   same    (the model)  Linear
    """
    if source is None:
        if rename is not None or key is not None or tuple(ignore):
            raise TypeError("rename, ignore and key are for a source; there is none.")
        found = _planned(read_target(target), flatten, axes, stacked)
        return weight_map(found.entries, found.modules, {}, ())
    return plan_conversion(
        target,
        source,
        rename=rename,
        ignore=ignore,
        flatten=flatten,
        axes=axes,
        stacked=stacked,
        key=key,
        dtypes=Dtypes(checked=False),
    ).mapping


def _planned(
    model: Target, flatten: Flatten | None, axes: Axes | None, stacked: Iterable[str]
) -> Plan:
    """Link every weight of a model, whatever the source."""
    found = laid_out(model, flatten, axes, stacked)
    if found.problems:
        raise ConversionError(found.problems)
    return found

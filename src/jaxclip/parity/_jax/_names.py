"""The names of arrays in a JAX recording: Flax's paths, joined by dots."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip.parity._arrays import as_array
from jaxclip.parity._verify._port._models import Model

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
LeafPath = tuple[str, ...]


def path_of(keys: Sequence[Any]) -> LeafPath:
    """Return the parts of a leaf's name from the keys that JAX gives for it."""
    # What is within a variable of NNX, or a box of Linen, has no name of its own.
    if len(keys) > 1 and keys[-1] == jax.tree_util.GetAttrKey("value"):
        keys = keys[:-1]
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in keys)


def leaves(tree: Any) -> dict[LeafPath, Any]:
    """Return the leaves of a tree by their paths.

    Raises:
        ValueError: If two leaves have one path.
    """
    found: dict[LeafPath, Any] = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        path = path_of(keys)
        if path in found:
            raise ValueError(f"two leaves have the path {'.'.join(path)!r}.")
        found[path] = leaf
    return found


def is_key(leaf: Any) -> bool:
    """Say whether a leaf holds keys of random numbers."""
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and bool(jnp.issubdtype(dtype, jax.dtypes.prng_key))


def to_array(leaf: Any, name: str) -> Array:
    """Return a leaf as NumPy has it; of keys of random numbers their integers.

    Raises:
        TypeError: If it is no array; the error calls it ``name``.
    """
    return as_array(jax.random.key_data(leaf) if is_key(leaf) else leaf, name)


def from_array(array: Array, like: Any) -> Any:
    """Return a recorded array as a leaf, of keys if ``like`` is of keys."""
    if is_key(like):
        impl = jax.random.key_impl(like)
        return jax.random.wrap_key_data(jnp.asarray(array), impl=impl)
    return jnp.asarray(array)


def arrays(tree: Any, what: str) -> Arrays:
    """Return the arrays of a tree by name.

    Raises:
        TypeError: If a leaf is no array.
        ValueError: If two leaves have one name.
    """
    found: Arrays = {}
    for path, leaf in leaves(tree).items():
        name = ".".join(path)
        if name in found:
            raise ValueError(f"{what} has two leaves of the name {name!r}.")
        found[name] = to_array(leaf, f"{what}'s {name!r}")
    return found


def variable_names(
    model: Model, params: Any, rest: Any
) -> tuple[dict[LeafPath, str], ...]:
    """Name the variables of a model.

    The name of a Linen collection is left out, so that a layer's are called the same
    in NNX and in Linen, unless there is such a name already.

    Args:
        model: The model.
        params: A tree like its parameters.
        rest: A tree like its other variables.

    Returns:
        The name by the path, of the parameters and of the others.
    """
    trained = {path: ".".join(path) for path in leaves(params)}
    taken = {*trained.values()}
    others: dict[LeafPath, str] = {}
    for path in leaves(rest):
        short = ".".join(path[len(model.prefix) :])
        name = ".".join(path) if short in taken else short
        taken.add(name)
        others[path] = name
    return trained, others


def state_names(
    state: Any, params: Collection[LeafPath]
) -> dict[LeafPath, tuple[str, str]]:
    """Name what an optimizer keeps: of which parameter it is, and what it is.

    The path of what is kept of a parameter ends with the parameter's:
    ``0.mu.fc1.kernel`` is ``0.mu`` of ``fc1.kernel``. What is kept of none, as a count
    of steps is, belongs to the parameter "".

    Args:
        state: The state.
        params: The paths of the parameters.

    Example:
        >>> state_names(({"mu": {"w": 1.0}, "count": 1},), [("w",)])
        {('0', 'count'): ('', '0.count'), ('0', 'mu', 'w'): ('w', '0.mu')}
    """
    known = {*params}
    lengths = sorted({len(path) for path in known}, reverse=True)
    names = {}
    for path in leaves(state):
        ends = (n for n in lengths if n < len(path) and path[-n:] in known)
        own = next(ends, 0)
        split = len(path) - own
        names[path] = ".".join(path[split:]), ".".join(path[:split])
    return names


def state_arrays(state: Any, params: Iterable[LeafPath]) -> Arrays:
    """Return what an optimizer keeps, by parameter, slash and what it is."""
    named = state_names(state, {*params})
    return {
        "/".join(named[path]): to_array(leaf, f"opt_state's {'.'.join(path)!r}")
        for path, leaf in leaves(state).items()
    }


def batch_arrays(batch: Mapping[str, Any]) -> Arrays:
    """Return a batch flat, ``x=(a, {"b": c})`` as ``x.0`` and ``x.1.b``.

    Raises:
        TypeError: If something in it is no array or number.
    """
    try:
        return arrays(batch, "the batch")
    except TypeError as error:
        raise TypeError(
            f"{error} Leave out of the batch what loss_fn does not need."
        ) from None

"""Operations of JAX in float64, whatever dtype they were traced in."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

_SCATTERS: dict[str, Callable[..., Any]] = {
    "scatter": lax.scatter,
    "scatter-add": lax.scatter_add,
    "scatter-mul": lax.scatter_mul,
    "scatter-min": lax.scatter_min,
    "scatter-max": lax.scatter_max,
}


def lifted(array: Any) -> Any:
    """Return an array of floats in float64, of complex numbers in complex128."""
    wide = _wide(array.dtype)
    return array if wide is None else array.astype(wide)


def _wide(dtype: Any) -> Any:
    """Return the wide dtype in place of one; None if it is that, or not of floats."""
    if not isinstance(dtype, np.dtype | type):
        return None
    for kind, wide in (
        (jnp.floating, np.float64),
        (jnp.complexfloating, np.complex128),
    ):
        if jnp.issubdtype(dtype, kind) and dtype != wide:
            return np.dtype(wide)
    return None


def bound(eqn: Any, args: list[Any], *, lift: bool) -> list[Any]:
    """Do what an equation says.

    Args:
        eqn: The equation.
        args: Its inputs.
        lift: Whether in float64, which the inputs are in already.
    """
    if not lift:
        return _outputs(eqn, args, eqn.params)
    name, params = eqn.primitive.name, eqn.params
    if name == "reduce_precision":
        return [args[0]]
    if name in _SCATTERS:
        keys = ("indices_are_sorted", "unique_indices", "mode")
        options = {key: params[key] for key in keys}
        return [_SCATTERS[name](*args, params["dimension_numbers"], **options)]
    if _as_traced(name, params):
        # What is in it, or the bits it makes, are of the dtypes that it was traced in.
        args = [_restored(a, v.aval) for a, v in zip(args, eqn.invars, strict=True)]
        return [*map(lifted, _outputs(eqn, args, params))]
    return [*map(lifted, _outputs(eqn, args, _widened(name, params)))]


def _as_traced(name: str, params: Mapping[str, Any]) -> bool:
    if name == "bitcast_convert_type":
        return True
    leaves = jax.tree.leaves(
        [*params.values()],
        is_leaf=lambda x: isinstance(x, core.Jaxpr | core.ClosedJaxpr),
    )
    return any(isinstance(leaf, core.Jaxpr | core.ClosedJaxpr) for leaf in leaves)


def _restored(array: Any, aval: Any) -> Any:
    return array if _wide(aval.dtype) is None else array.astype(aval.dtype)


def _widened(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for key, value in params.items():
        wide = _wide(value) if key.endswith("dtype") or "element_type" in key else None
        found[key] = value if wide is None else wide
    if name in ("dot_general", "conv_general_dilated"):
        found["precision"] = None
    return found


def _outputs(eqn: Any, args: list[Any], params: Mapping[str, Any]) -> list[Any]:
    given = eqn.primitive.get_bind_params(dict(params))
    # Before JAX 0.10 the functions in them were apart.
    functions, params = given if isinstance(given, tuple) else ((), given)
    made = eqn.primitive.bind(*functions, *args, **params)
    return [*made] if eqn.primitive.multiple_results else [made]

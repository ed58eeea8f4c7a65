"""The dtypes in which a port computes, whatever its parameters are in."""

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxclip.convert._targets.tree import tree_path
from jaxclip.parity._verify._compute._evaluation import Evaluation
from jaxclip.parity._verify._tracing._equations import jaxprs_in
from jaxclip.parity._verify._tracing._survey import Survey


class Traced:
    """A function as JAX traced it for some arguments.

    Args:
        function: The function.
        *args: The arguments, traced or not; the first are the parameters.

    Attributes:
        closed: Its equations.
        returned: What it returns, with shapes in the place of arrays.
    """

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        """Trace it."""
        traced = jax.make_jaxpr(function, return_shape=True)(*args)
        self.closed, self.returned = traced
        params = jax.tree_util.tree_leaves_with_path(args[0])
        self._labels = [tree_path(keys) for keys, _ in params]

    def __call__(self, *args: Any, evaluation: Evaluation | None = None) -> Any:
        """Call it, as it was traced or as an evaluation does."""
        leaves = jax.tree.leaves(args)
        if evaluation is None:
            made = core.jaxpr_as_fun(self.closed)(*leaves)
        else:
            made = evaluation(self.closed, *leaves)
        return jax.tree.unflatten(jax.tree.structure(self.returned), made)

    @property
    def dtypes(self) -> set[np.dtype[Any]]:
        """The dtypes of the floats that it computes."""
        return {
            _dtype(var.aval)
            for jaxpr in jaxprs_in(self.closed.jaxpr)
            for eqn in jaxpr.eqns
            for var in eqn.outvars
            if _is_float(var.aval)
        }

    @cached_property
    def survey(self) -> Survey:
        """What stands in it."""
        return Survey(self.closed.jaxpr, self._labels)


def _dtype(aval: Any) -> np.dtype[Any]:
    dtype: np.dtype[Any] = np.dtype(aval.dtype)
    return dtype


def _is_float(aval: Any) -> bool:
    dtype = getattr(aval, "dtype", None)
    return isinstance(dtype, np.dtype) and bool(jnp.issubdtype(dtype, jnp.floating))


def coarsest(dtypes: Iterable[np.dtype[Any]]) -> Any:
    """Return the dtype with the fewest digits of some; None of none.

    Example:
        >>> coarsest({np.dtype("float32"), np.dtype("float16")})
        dtype('float16')
    """
    return max(dtypes, key=lambda dtype: float(jnp.finfo(dtype).eps), default=None)


def is_coarse(dtype: Any) -> bool:
    """Say whether a dtype is one of few bits, as bfloat16 and float16 are."""
    return dtype is not None and jnp.dtype(dtype).itemsize < 4


def change_of(dtype: Any) -> float:
    """Return by what inputs are changed where a port computes in a dtype.

    It is half of the dtype's eps, by which a number is rounded at most; 0 for one that
    is not coarse.

    Example:
        >>> change_of(np.dtype("float16")) == 2.0**-11, change_of(np.dtype("float32"))
        (True, 0.0)
    """
    if not is_coarse(dtype):
        return 0.0
    return float(jnp.finfo(dtype).eps) / 2


def note(dtype: Any, draws: int, *, kept: bool) -> str:
    """Say where the noise of a port that computes in a coarse dtype comes from.

    Args:
        dtype: The dtype.
        draws: How many draws there were.
        kept: Whether torch's parameters are in a coarse dtype.
    """
    said = (
        f"The port computes in {dtype}: its noise is that of {draws + 1} runs, in "
        f"{draws} of which a part of what it is given is changed by the last bit of "
        f"{dtype} ({change_of(dtype):g} of itself), against a run in which every cast "
        "is to float64."
    )
    if kept:
        said += (
            " What it keeps in float32 where torch does not, as the total norm and the "
            "optimizer's state, is compared in torch's dtype."
        )
    return said

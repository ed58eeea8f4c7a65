"""Norms of trees: any float dtype, any magnitude, any sharding."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxclip._arguments import Scalar
from jaxclip._dispatch import call_compiled
from jaxclip._leaves import accumulation_dtype, split_leaves
from jaxclip._mesh import AxisName, check_axis_name, mesh_axes_of


class TreeNorm(NamedTuple):
    """A norm, or several, as a product that may leave the range of its dtype.

    Attributes:
        scale: What the elements were divided by to keep their powers within the range
            of the dtype: 1, or some constant near the norm. float32 or float64.
        ratio: The norm divided by ``scale``. Same shape and dtype.
    """

    scale: jax.Array
    ratio: jax.Array

    @property
    def value(self) -> jax.Array:
        """The norm; inf where its dtype cannot hold it."""
        return self.scale * self.ratio

    @property
    def finite(self) -> jax.Array:
        """Whether every element was finite, be the norm too large or not."""
        return jnp.isfinite(self.scale) & jnp.isfinite(self.ratio)


def global_norm(
    tree: Any, norm_type: Scalar = 2.0, *, axis_name: AxisName = None
) -> jax.Array:
    r"""Return the p-norm of all elements of a tree, as if they were one vector.

    .. math:: \|x\|_p = \Big(\sum_i |x_i|^p\Big)^{1/p},
              \qquad \|x\|_\infty = \max_i |x_i|

    Powers are summed in at least float32, across leaves too. Where that sum
    overflows, or where its terms underflow, it is taken again of scaled elements, so
    that the norm of finite elements is right whenever its dtype can hold it.

    Args:
        tree: A tree of real or complex arrays of any shape. ``None``,
            ``optax.MaskedNode`` and ``float0`` leaves have no elements.
        norm_type: p, a positive number or inf.
        axis_name: Inside ``shard_map(..., check_vma=False)`` and ``pmap``: the mesh
            axes over which every leaf is sharded. Not needed elsewhere: ``jit`` and
            ``shard_map`` know how each leaf is laid out, and a replicated leaf
            counts once.

    Returns:
        The norm, a scalar: float64 if a leaf is float64 or complex128, otherwise
        float32. 0 for a tree without elements.

    Raises:
        TypeError: A leaf is an integer, a boolean or no array; the error names it.
        ValueError: ``norm_type`` is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> global_norm({"w": jnp.array([3.0, 0.0]), "b": jnp.array(4.0)})
        Array(5., dtype=float32)
        >>> float(global_norm([jnp.ones(4, jnp.bfloat16)] * 400))
        40.0
        >>> global_norm(jnp.array([3e30, 4e30]))
        Array(5.e+30, dtype=float32)

    Differs from ``optax.tree.norm``, which sums in the dtype of the leaves, and
    overflows and underflows with the squares. Differs from
    ``torch.nn.utils.get_total_norm`` in the same two ways, and by refusing a norm
    type that bounds nothing.

    References:
        Blue, `A Portable Fortran Program to Find the Euclidean Norm of a Vector
        <https://doi.org/10.1145/355769.355771>`_, 1978.
    """
    leaves, _ = split_leaves(tree, "global_norm")
    norm: jax.Array = call_compiled(
        _norm_value,
        leaves,
        norm_type=check_norm_type(norm_type, "global_norm"),
        axis_names=check_axis_name(axis_name),
    )
    return norm


def _norm_value(leaves: Sequence[jax.Array], **options: Any) -> jax.Array:
    return tree_norm(leaves, **options).value


def tree_norm(
    leaves: Sequence[jax.Array],
    *,
    norm_type: float | jax.Array,
    axis_names: tuple[str, ...] = (),
) -> TreeNorm:
    """Return the norm of all the leaves together, as scalars; see `group_norms`."""
    norms = group_norms([leaves], norm_type=norm_type, axis_names=axis_names)
    return TreeNorm(norms.scale[0], norms.ratio[0])


def group_norms(
    groups: Sequence[Sequence[jax.Array]],
    *,
    norm_type: float | jax.Array,
    axis_names: tuple[str, ...] = (),
    negligible: Scalar = 0.0,
) -> TreeNorm:
    """Return the norm of each group of leaves, in arrays of (groups,).

    Args:
        groups: Groups of inexact arrays; a group may be empty.
        norm_type: p, positive or inf; may be traced.
        axis_names: The mesh axes over which leaves are sharded whose type does not
            say so.
        negligible: Norms up to this one may come back as 0 where that saves a pass
            over the leaves: by its sum of squares, a leaf of zeros cannot be told
            from one that underflows.
    """
    table = _Groups(groups, axis_names)
    if not isinstance(norm_type, jax.core.Tracer):
        return _norms(table, float(norm_type), negligible)
    return _norms_of_traced_power(table, norm_type.astype(table.dtype), negligible)


def check_norm_type(norm_type: Scalar, caller: str) -> float | jax.Array:
    """Return a norm type as a float, or as it is while it is traced."""
    if isinstance(norm_type, jax.core.Tracer):
        return norm_type
    power = float(norm_type)
    if not power > 0:
        raise ValueError(
            f"{caller}(norm_type={norm_type}): expected a positive number or inf. "
            "torch accepts 0, which counts the elements that are not 0, and negative "
            "numbers, for which one small element makes the norm small; neither "
            "bounds the length of a step. Use 2.0, 1.0 or float('inf')."
        )
    return power


class _Groups:
    """Groups of leaves, and sums and maxima over each, across the mesh."""

    def __init__(
        self, groups: Sequence[Sequence[jax.Array]], axis_names: tuple[str, ...]
    ) -> None:
        self.dtype = accumulation_dtype([leaf for group in groups for leaf in group])
        self.count = len(groups)
        self._leaves = [
            (index, leaf, mesh_axes_of(leaf, axis_names))
            for index, group in enumerate(groups)
            for leaf in group
        ]

    def sizes(self) -> np.ndarray[Any, Any]:
        """Count each group's elements."""
        sizes = np.zeros(self.count)
        for index, leaf, axes in self._leaves:
            sizes[index] += leaf.size * math.prod(map(lax.axis_size, axes))
        return sizes

    def sums(self, term: Callable[[jax.Array, int], jax.Array]) -> jax.Array:
        """Sum ``term(magnitudes, index)`` over each group ``index``."""
        return self._reduce(term, jnp.sum, jnp.add, lax.psum)

    def largest(self) -> jax.Array:
        """Return each group's largest magnitude; 0 for a group without elements."""
        return self._reduce(
            lambda magnitudes, _: _power(magnitudes, 1.0),
            lambda magnitudes: jnp.max(magnitudes, initial=0.0),
            jnp.maximum,
            lax.pmax,
        )

    def _reduce(
        self,
        term: Callable[[jax.Array, int], jax.Array],
        over_leaf: Callable[[jax.Array], jax.Array],
        combine: Callable[[jax.Array, jax.Array], jax.Array],
        over_mesh: Callable[..., Any],
    ) -> jax.Array:
        # Scalars are kept apart by the mesh axes that their leaves are sharded over,
        # so that each set of axes takes one collective and replicated leaves none.
        partial: dict[tuple[str, ...], dict[int, jax.Array]] = {}
        for index, leaf, axes in self._leaves:
            value = over_leaf(term(magnitudes_in(leaf, self.dtype), index))
            scalars = partial.setdefault(axes, {})
            held = scalars.get(index)
            scalars[index] = value if held is None else combine(held, value)

        totals = [jnp.zeros((), self.dtype)] * self.count
        for axes, scalars in partial.items():
            values = list(scalars.values())
            reduced = over_mesh(values, axes) if axes else values
            for index, value in zip(scalars, reduced, strict=True):
                totals[index] = combine(totals[index], value)
        return jnp.stack(totals) if totals else jnp.zeros((0,), self.dtype)


def _norms(table: _Groups, power: float, negligible: Scalar) -> TreeNorm:
    ones = jnp.ones((table.count,), table.dtype)
    if power == math.inf:
        return TreeNorm(ones, table.largest())
    if power not in (1.0, 2.0):
        # Powers cost more than a second pass, and their derivatives overflow too.
        return _scaled_norms(table, power)

    sums = table.sums(lambda magnitudes, _: _power(magnitudes, power))
    info = jnp.finfo(table.dtype)
    # Terms below `tiny` are lost; that shows in no sum above `low`.
    low = np.maximum(table.sizes(), 1) * (float(info.tiny) / float(info.eps))
    low, at_low = (jnp.asarray(x, table.dtype) for x in (low, (2 * low) ** (1 / power)))
    underflows = (sums < low) & (at_low > negligible)
    trusted = ~jnp.any(underflows | (sums == jnp.inf))

    # The squares of numbers near these two fit into the range of the dtype.
    large = 2.0 ** (info.maxexp * 5 // 8)
    scales = jnp.where(underflows, 1 / large, jnp.where(sums < jnp.inf, 1.0, large))
    scales = scales.astype(table.dtype)
    norms: TreeNorm = lax.cond(
        trusted,
        lambda: TreeNorm(ones, root_of_sum(sums, power)),
        lambda: TreeNorm(scales, _root_of_scaled(table, power, 1.0 / scales)),
    )
    return norms


def _norms_of_traced_power(
    table: _Groups, power: jax.Array, negligible: Scalar
) -> TreeNorm:
    power = lax.stop_gradient(power)
    unknown = jnp.full((table.count,), jnp.nan, table.dtype)
    # The first condition that holds.
    branches = [
        (power == 2.0, lambda: _norms(table, 2.0, negligible)),
        (power == jnp.inf, lambda: _norms(table, math.inf, negligible)),
        (power > 0.0, lambda: _scaled_norms(table, power)),
        (True, lambda: TreeNorm(unknown, unknown)),
    ]
    conditions, functions = zip(*branches, strict=True)
    norms: TreeNorm = lax.switch(jnp.argmax(jnp.stack(conditions)), functions)
    return norms


def _scaled_norms(table: _Groups, power: float | jax.Array) -> TreeNorm:
    # No norm depends on what each group is divided by: these are constants.
    largest = lax.stop_gradient(table.largest())
    ordinary = (largest > 0) & (largest < jnp.inf)
    # What a conditional returns XLA computes only once. It would otherwise merge the
    # maximum over all the leaves into the sum over each, and compile for minutes.
    scales = lax.cond(
        jnp.any(ordinary),
        lambda: jnp.where(ordinary, largest, 1.0),
        lambda: jnp.ones_like(largest),
    )
    # In two steps: the reciprocals of the largest numbers are subnormal, and so 0.
    step = jnp.where(scales > 1.0, 0.125, 1.0).astype(table.dtype)
    return TreeNorm(scales, _root_of_scaled(table, power, step, 1.0 / (scales * step)))


def _root_of_scaled(
    table: _Groups, power: float | jax.Array, *factors: jax.Array
) -> jax.Array:
    """Return each group's norm, multiplied by each of its factors."""
    scalars = [jnp.unstack(factor) for factor in factors]

    def term(magnitudes: jax.Array, index: int) -> jax.Array:
        for factor in scalars:
            magnitudes = magnitudes * factor[index]
        return _power(magnitudes, power)

    return root_of_sum(table.sums(term), power)


def magnitudes_in(leaf: jax.Array, dtype: Any) -> jax.Array:
    if jnp.iscomplexobj(leaf):
        wide = jnp.complex128 if dtype == jnp.float64 else jnp.complex64
        return jnp.abs(leaf.astype(wide))
    return jnp.abs(leaf.astype(dtype))


def _power(magnitudes: jax.Array, power: float | jax.Array) -> jax.Array:
    if _is(power, 1.0):
        # The derivative of abs at 0 is 1 in JAX; of a norm, 0 is wanted, as in torch.
        return jnp.where(magnitudes != 0, magnitudes, 0.0)
    if _is(power, 2.0):
        # Not jnp.square, whose derivative doubles the element, and may overflow.
        return magnitudes * magnitudes
    # The derivative of x^p at 0 is infinite for p < 1.
    nonzero = magnitudes != 0
    return jnp.where(nonzero, jnp.where(nonzero, magnitudes, 1.0) ** power, 0.0)


def root_of_sum(total: jax.Array, power: float | jax.Array) -> jax.Array:
    """Return ``total ** (1 / power)``, with derivative 0 at 0."""
    nonzero = total != 0
    safe = jnp.where(nonzero, total, 1.0)
    root = jnp.sqrt(safe) if _is(power, 2.0) else safe ** (1.0 / power)
    return jnp.where(nonzero, root, 0.0)


def _is(power: float | jax.Array, value: float) -> bool:
    """Whether a power has this value, and that is known at compile time."""
    return not isinstance(power, jax.Array) and power == value

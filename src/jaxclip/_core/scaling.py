"""The coefficient of a clip, and scaling by it."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxclip._core.arguments import Scalar
from jaxclip._core.exact_norms import TreeNorm
from jaxclip._core.sums import unstack


class Clipped(NamedTuple):
    """Clipped leaves, and what the clip did to them.

    Attributes:
        leaves: The clipped leaves, each of its own shape and dtype.
        total_norm: The norm that was held against the threshold.
        clipped_norm: The same norm afterwards.
        clip_coef: What the leaves were multiplied by; the smallest one, where leaves
            differ. 1 where nothing was clipped.
        finite: Whether every element was finite.
        leaf_norms: The norm of each leaf before clipping, in an array of (leaves,),
            where that was asked for.

    All but ``leaves`` and ``leaf_norms`` are scalars.
    """

    leaves: list[jax.Array]
    total_norm: jax.Array
    clipped_norm: jax.Array
    clip_coef: jax.Array
    finite: jax.Array
    leaf_norms: jax.Array | None = None


def scale_to(
    leaves: Sequence[jax.Array], norm: TreeNorm, max_norm: Scalar, eps: Scalar
) -> Clipped:
    """Scale all the leaves by one coefficient, given their joint norm."""
    factors = clip_factors(norm, max_norm, eps)
    return Clipped(
        [scale_leaf(leaf, factors.unit, factors.length) for leaf in reread(leaves)],
        norm.value,
        factors.norm_after(norm),
        factors.clip_coef,
        norm.finite,
    )


def scale_each_to(
    leaves: Sequence[jax.Array], norms: TreeNorm, max_norm: Scalar, eps: Scalar
) -> Clipped:
    """Scale each leaf by its own coefficient; report the largest norm, least factor.

    Args:
        leaves: Inexact arrays.
        norms: The norm of each leaf, in arrays of (leaves,).
        max_norm: The largest norm allowed; a scalar, or one for each leaf.
        eps: Added to each norm.
    """
    factors = clip_factors(norms, max_norm, eps)
    return Clipped(
        scale_each(leaves, factors, range(len(leaves))),
        jnp.max(norms.value, initial=0.0),
        jnp.max(factors.norm_after(norms), initial=0.0),
        jnp.min(factors.clip_coef, initial=1.0),
        jnp.all(norms.finite),
    )


def clip_coefficient(total_norm: jax.Array, max_norm: Scalar, eps: Scalar) -> jax.Array:
    r"""Return :math:`\min(1, \text{max\_norm} / (\text{total\_norm} + \text{eps}))`.

    To the bit as torch forms it, which multiplies by the reciprocal, and so may give
    a little less than 1 for equal numbers; but 1 there where ``eps`` is 0. 1 where
    the threshold is infinite; NaN for one that is negative or NaN.
    """
    dtype = total_norm.dtype
    max_norm, eps = jnp.asarray(max_norm, dtype), jnp.asarray(eps, dtype)
    denominator = total_norm + eps
    # Far inside, the quotient might be infinite for a moment.
    inside = (
        (max_norm == jnp.inf)
        | (max_norm >= 2.0 * denominator)
        | ((eps == 0) & (total_norm <= max_norm))
    )
    coef = _quotient(
        jnp.where(inside, 1.0, max_norm), jnp.where(inside, 1.0, denominator)
    )
    return jnp.where(max_norm >= 0, jnp.minimum(coef, 1.0), jnp.nan)


@jax.custom_jvp
def _quotient(dividend: jax.Array, divisor: jax.Array) -> jax.Array:
    """Divide as torch does, by a multiplication, with a derivative that stays in range.

    JAX's own squares the divisor, which in float32 overflows from 1.8e19.
    """
    return dividend * (1.0 / divisor)


@_quotient.defjvp
def _quotient_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    dividend, divisor = primals
    dividend_dot, divisor_dot = tangents
    quotient = _quotient(dividend, divisor)
    reciprocal = _quotient(jnp.ones_like(divisor), divisor)
    return quotient, reciprocal * dividend_dot - quotient * (reciprocal * divisor_dot)


class ClipFactors(NamedTuple):
    """A coefficient as a product of two factors, for leaves of any magnitude.

    A coefficient below the normal numbers of its dtype would be flushed to 0, and
    with it every gradient: a norm of 1e30 against a threshold of 1e-9 takes one of
    1e-39. Then ``unit`` brings the leaves down to a norm of about 1, and ``length``
    to the threshold. Everywhere else ``unit`` is 1 and ``length`` the coefficient.
    """

    unit: jax.Array
    length: jax.Array
    clip_coef: jax.Array

    def norm_after(self, norm: TreeNorm) -> jax.Array:
        """Return the norm of the scaled leaves."""
        return ((norm.scale * self.unit) * self.length) * norm.ratio


def clip_factors(norm: TreeNorm, max_norm: Scalar, eps: Scalar) -> ClipFactors:
    dtype = norm.ratio.dtype
    tiny = float(jnp.finfo(dtype).tiny)
    max_norm, eps = jnp.asarray(max_norm, dtype), jnp.asarray(eps, dtype)
    coef = clip_coefficient(norm.value, max_norm, eps)
    rescued = norm.finite & (coef < tiny)

    def rescue() -> tuple[jax.Array, jax.Array]:
        # Any number near 1 / norm will do, and so derivatives take it for a constant.
        # The divisor is at most the largest one whose reciprocal is a normal number.
        divisor = jnp.minimum(norm.value + eps, 1.0 / tiny)
        unit = lax.stop_gradient(1.0 / jnp.where(rescued, divisor, 1.0))
        scaled_norm = (norm.scale * unit) * norm.ratio + eps * unit
        length = _quotient(max_norm, jnp.where(rescued, scaled_norm, 1.0))
        return unit, jnp.where(rescued, length, coef)

    # What a conditional returns XLA computes once. Other scalars it would compute anew
    # in each of the kernels that scale a leaf, and take longer to compile them.
    unit, length = lax.cond(
        jnp.any(rescued), rescue, lambda: (jnp.ones_like(coef), coef)
    )
    return ClipFactors(unit, length, coef)


def scale_each(
    leaves: Sequence[jax.Array], factors: ClipFactors, indices: Sequence[int]
) -> list[jax.Array]:
    """Scale each leaf by those factors that stand at its index."""
    shapes = {i: leaf.shape for i, leaf in zip(indices, leaves, strict=True)}
    kinds = [shapes.get(index, ()) for index in range(factors.unit.size)]
    units, lengths = unstack(factors.unit, kinds), unstack(factors.length, kinds)
    return [
        scale_leaf(leaf, units[index], lengths[index])
        for leaf, index in zip(reread(leaves), indices, strict=True)
    ]


def reread(leaves: Sequence[jax.Array]) -> list[jax.Array]:
    """Return the same leaves, to be read again after their norms are known.

    XLA would keep what norms are made of for what follows, and write it out: narrow
    leaves widened, and the squares, which Adam takes too.
    """
    # One by one: together they would all seem to vary over each other's mesh axes.
    return [lax.optimization_barrier(leaf) for leaf in leaves]


def scale_leaf(leaf: jax.Array, unit: jax.Array, length: jax.Array) -> jax.Array:
    """Multiply a leaf by both factors, in at least float32; its dtype stays."""
    wide = np.float64 if leaf.dtype in (np.float64, np.complex128) else np.float32
    factors = [
        lax.broadcast(lax.convert_element_type(factor, wide), leaf.shape)
        if factor.ndim == 0
        else jnp.broadcast_to(factor.astype(wide), leaf.shape)
        for factor in (unit, length)
    ]

    def multiply(part: jax.Array) -> jax.Array:
        # By scalars and never by a division of the leaf: XLA repeats a multiplication
        # wherever the optimizer reads the gradient, but keeps a copy of a quotient.
        return functools.reduce(lax.mul, factors, part)

    if jnp.iscomplexobj(leaf):
        return lax.complex(multiply(leaf.real), multiply(leaf.imag))
    scaled = multiply(lax.convert_element_type(leaf, wide))
    return lax.convert_element_type(scaled, leaf.dtype)

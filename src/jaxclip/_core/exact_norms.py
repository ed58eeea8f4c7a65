"""Norms that are right whatever the magnitudes, where a plain sum is not."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxclip._core.sums import Groups, Layout, base_of, power_of, root_of, stack


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


def exact_norms(groups: Groups, power: float) -> TreeNorm:
    """Return norms whose powers may leave the range of the dtype, or underflow."""
    # The sixth power of every float32 fits into float64, and a billion of them do.
    if groups.dtype == jnp.float64 or not 0.5 <= power <= 6.0:
        return scaled_norms(groups, power)

    def wide() -> TreeNorm:
        bases = [base_of(leaf, power, groups.dtype) for leaf in groups.leaves]
        return TreeNorm(*_wide_norms(bases, groups.layout, power))

    norms: TreeNorm = lax.platform_dependent(
        cpu=wide,
        cuda=wide,
        rocm=wide,
        default=lambda: scaled_norms(groups, power),  # TPUs have no such float64.
    )
    return norms


def scaled_norms(groups: Groups, power: float | jax.Array) -> TreeNorm:
    """Divide each group by its largest magnitude before taking powers."""
    # No norm depends on what each group is divided by: these are constants.
    largest = groups.detached().bounds()
    ordinary = (largest > 0) & (largest < jnp.inf)
    # What a conditional returns XLA computes only once. It would otherwise merge the
    # maximum over all the leaves into the sum over each, and compile for minutes.
    scales = lax.cond(
        jnp.any(ordinary),
        lambda: jnp.where(ordinary, largest, 1.0),
        lambda: jnp.ones_like(largest),
    )
    # In two steps: the reciprocals of the largest numbers are subnormal, and so 0.
    step = jnp.where(scales > 1.0, 0.125, 1.0).astype(groups.dtype)
    steps, rests = jnp.unstack(step), jnp.unstack(1.0 / (scales * step))

    def term(leaf: jax.Array, index: int) -> jax.Array:
        scaled = base_of(leaf, power, groups.dtype)
        for factor in (steps[index], rests[index]):
            scaled = lax.mul(scaled, jnp.broadcast_to(factor, leaf.shape))
        return power_of(scaled, power)

    return TreeNorm(scales, root_of(groups.sums(term), power))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _wide_norms(
    bases: Sequence[jax.Array], layout: Layout, power: float
) -> tuple[jax.Array, jax.Array]:
    """Return scales and ratios, of what `base_of` returns, by way of float64."""
    # A float64 constant would be read as float32 wherever this is traced again
    # without the context, as under vmap. So there are none.
    with jax.enable_x64(True):

        def widen(value: jax.Array | np.float32) -> jax.Array:
            return lax.convert_element_type(value, np.float64)

        def raise_to_power(x: jax.Array) -> jax.Array:
            if power.is_integer():
                return lax.integer_pow(x, int(power))
            return lax.pow(x, jnp.broadcast_to(widen(np.float32(power)), x.shape))

        def root(x: jax.Array) -> jax.Array:
            if power == 2.0:
                return lax.sqrt(x)
            inverse = lax.div(widen(np.float32(1)), widen(np.float32(power)))
            return lax.pow(x, jnp.broadcast_to(inverse, x.shape))

        totals = layout.sums([raise_to_power(widen(x)) for x in bases])
        zero = widen(np.float32(0))
        filled = [zero if total is None else total for total in totals]
        if not filled:
            return stack([], np.float32), stack([], np.float32)
        return _narrow(root(jnp.stack(filled)))


def _narrow(norm: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Split float64 numbers into powers of 2 and what is left, both in float32."""
    rough = lax.convert_element_type(norm, np.float32)
    large, one = np.float32(2.0**64), np.float32(1)
    scale = jnp.where(rough < 1 / large, 1 / large, one)
    scale = jnp.where(rough > large, large, scale)
    ratio = lax.div(norm, lax.convert_element_type(scale, np.float64))
    return scale, lax.convert_element_type(ratio, np.float32)


@_wide_norms.defjvp
def _wide_norms_jvp(
    layout: Layout,
    power: float,
    primals: tuple[Sequence[jax.Array]],
    tangents: tuple[Sequence[jax.Array]],
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    (bases,), (tangent,) = primals, tangents
    scales, ratios = _wide_norms(bases, layout, power)
    scales = lax.stop_gradient(scales)
    # The derivative by an element is its share of the norm to the power of p - 1.
    per_scale = jnp.unstack(1.0 / scales)
    per_ratio = jnp.unstack(
        jnp.where(ratios == 0, 0.0, 1.0 / jnp.where(ratios == 0, 1.0, ratios))
    )
    terms = []
    for x, dx, (index, _) in zip(bases, tangent, layout.members, strict=True):
        weight = power_of(x * per_scale[index] * per_ratio[index], power - 1.0)
        terms.append(weight * (dx * per_scale[index]))
    totals = layout.sums(terms)
    return (scales, ratios), (jnp.zeros_like(scales), stack(totals, np.float32))

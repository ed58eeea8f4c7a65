"""Clip gradients: pure functions, under torch's names."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxclip._core.arguments import Scalar, check_eps, check_scalar, check_threshold
from jaxclip._core.dispatch import call_compiled
from jaxclip._core.exact_norms import TreeNorm
from jaxclip._core.leaves import accumulation_dtype, leaf_names, split_leaves
from jaxclip._core.mesh import AxisName, check_axis_name
from jaxclip._core.nonfinite import raise_if_nonfinite
from jaxclip._core.scaling import Clipped, clip_coefficient, scale_each_to, scale_to
from jaxclip._norms import check_norm_type, group_norms, joint_norm, tree_norm


def clip_grad_norm(
    grads: Any,
    max_norm: Scalar,
    norm_type: Scalar = 2.0,
    *,
    eps: Scalar = 1e-6,
    error_if_nonfinite: bool = False,
    stop_gradient: bool = False,
    axis_name: AxisName = None,
) -> tuple[Any, jax.Array]:
    r"""Scale gradients so that their joint norm is at most ``max_norm``.

    .. math:: g \leftarrow \min\Big(1, \frac{\text{max\_norm}}
              {\|g\|_p + \text{eps}}\Big)\, g

    The counterpart of ``torch.nn.utils.clip_grad_norm_``. The norm and the
    coefficient are formed in at least float32 and each leaf keeps its dtype. Finite
    gradients of any magnitude keep their direction, those whose norm exceeds the
    range of its dtype too.

    Args:
        grads: A tree of real or complex arrays; ``None`` leaves are skipped, as torch
            skips parameters without a gradient.
        max_norm: The largest norm allowed, ≥ 0, in the unit of the gradients. inf
            returns the gradients as they are. May be traced.
        norm_type: p, a positive number or inf.
        eps: Added to the norm, ≥ 0. The default is torch's. With 0 the formula is
            ``min(1, max_norm / norm)``, and gradients of norm 0 are left as they are.
        error_if_nonfinite: Raise if an element is NaN or infinite. Under ``jit`` the
            error comes when the program runs, as a ``jax.errors.JaxRuntimeError``.
        stop_gradient: Take the coefficient for a constant when this is differentiated.
            The derivative of the clip is then a multiplication by it.
        axis_name: See `global_norm`.

    Returns:
        The clipped gradients, and their norm before clipping: float64 if a leaf is
        float64, otherwise float32.

    Raises:
        TypeError: A leaf is no inexact array, or ``max_norm`` no scalar.
        ValueError: ``max_norm``, ``norm_type`` or ``eps`` is out of range.
        RuntimeError: An element is not finite and ``error_if_nonfinite`` is set; the
            error names the leaves and counts the elements.

    Example:
        >>> import jax.numpy as jnp
        >>> grads = {"w": jnp.array([3.0, 4.0]), "b": None}
        >>> clipped, total_norm = clip_grad_norm(grads, max_norm=1.0)
        >>> print(clipped["w"], total_norm)
        [0.5999999  0.79999983] 5.0
        >>> clip_grad_norm(grads, max_norm=1.0, eps=0.0)[0]["w"]
        Array([0.6, 0.8], dtype=float32)

    Differs from ``clip_grad_norm_``: returns new arrays; the norm of float16 and
    bfloat16 gradients is not rounded to their dtype; finite gradients with an
    infinite norm are clipped, not zeroed; ``max_norm=inf`` changes nothing, whatever
    the norm; ``error_if_nonfinite`` looks at the elements and names the leaves; a
    negative ``max_norm`` is an error (traced: NaN), not a change of sign.

    References:
        Pascanu et al., `On the Difficulty of Training Recurrent Neural Networks
        <https://arxiv.org/abs/1211.5063>`_, 2013.
    """
    leaves, rebuild = split_leaves(grads, "clip_grad_norm")
    clipped: Clipped = call_compiled(
        clip_leaves_by_global_norm,
        leaves,
        check_threshold("clip_grad_norm", "max_norm", max_norm),
        norm_type=check_norm_type(norm_type, "clip_grad_norm"),
        eps=check_eps("clip_grad_norm", eps),
        axis_names=check_axis_name(axis_name),
        stop_gradient=stop_gradient,
    )
    if error_if_nonfinite:
        raise_if_nonfinite(grads, clipped.finite, "clip_grad_norm")
    return rebuild(clipped.leaves), clipped.total_norm


def clip_grads_with_norm(
    grads: Any, max_norm: Scalar, total_norm: Scalar, *, eps: Scalar = 1e-6
) -> Any:
    r"""Scale gradients by a norm that is known already.

    .. math:: g \leftarrow \min\Big(1, \frac{\text{max\_norm}}
              {\text{total\_norm} + \text{eps}}\Big)\, g

    The counterpart of ``torch.nn.utils.clip_grads_with_norm_``, and equal to it to
    the bit in float32.

    Args:
        grads: A tree of real or complex arrays.
        max_norm: The largest norm allowed, ≥ 0.
        total_norm: The norm of the gradients, as `global_norm` or `clip_grad_norm`
            returns it. A scalar.
        eps: Added to the norm, ≥ 0.

    Returns:
        The scaled gradients, each leaf of its own dtype.

    Raises:
        TypeError: A leaf is no inexact array, or ``max_norm`` or ``total_norm`` no
            scalar.
        ValueError: ``max_norm`` or ``eps`` is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> clip_grads_with_norm([jnp.array([3.0, 4.0])], 1.0, 5.0, eps=0.0)
        [Array([0.6, 0.8], dtype=float32)]

    Differs from ``clip_grads_with_norm_`` as `clip_grad_norm` does from its namesake,
    but for infinite norms: a number cannot tell a norm that is too large from an
    infinite gradient, so that here both give what torch gives.
    """
    leaves, rebuild = split_leaves(grads, "clip_grads_with_norm")
    return rebuild(
        call_compiled(
            _clip_leaves_with_norm,
            leaves,
            check_threshold("clip_grads_with_norm", "max_norm", max_norm),
            check_scalar("clip_grads_with_norm", "total_norm", total_norm),
            eps=check_eps("clip_grads_with_norm", eps),
        )
    )


def clip_grad_value(grads: Any, clip_value: Scalar) -> Any:
    r"""Limit every element of the gradients to ``[-clip_value, clip_value]``.

    .. math:: g_i \leftarrow \max(-\text{clip\_value}, \min(\text{clip\_value}, g_i))

    The counterpart of ``torch.nn.utils.clip_grad_value_``. Changes the direction of
    the gradient, which clipping by the norm does not.

    Args:
        grads: A tree of real arrays; ``None`` leaves are skipped.
        clip_value: The largest magnitude allowed, ≥ 0. May be traced.

    Returns:
        The clipped gradients, each leaf of its own dtype. NaN stays NaN; an infinite
        element becomes ±``clip_value``.

    Raises:
        TypeError: A leaf is complex, or no inexact array; or ``clip_value`` is no
            scalar.
        ValueError: ``clip_value`` is negative or NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> clip_grad_value([jnp.array([-3.0, 0.5])], 1.0)
        [Array([-1. ,  0.5], dtype=float32)]

    Differs from ``clip_grad_value_``: returns new arrays; a negative ``clip_value``
    is an error (traced: NaN) and does not set every element to it.
    """
    clip_value = check_threshold("clip_grad_value", "clip_value", clip_value)
    leaves, rebuild = split_leaves(grads, "clip_grad_value")
    check_real(grads, leaves, "clip_grad_value")
    return rebuild(call_compiled(_limit_elements, leaves, clip_value))


def clip_leaves_by_global_norm(
    leaves: Sequence[jax.Array],
    max_norm: Scalar,
    *,
    norm_type: float | jax.Array,
    eps: float | jax.Array,
    axis_names: tuple[str, ...],
    stop_gradient: bool = False,
    per_leaf: bool = False,
) -> Clipped:
    """Clip all the leaves by their joint norm."""
    if per_leaf:
        norms = _norm_of_each(leaves, norm_type, axis_names)
        norm, leaf_norms = joint_norm(norms, norm_type), norms.value
    else:
        norm = tree_norm(leaves, norm_type=norm_type, axis_names=axis_names)
        leaf_norms = None
    if stop_gradient:
        norm = jax.lax.stop_gradient(norm)
    return scale_to(leaves, norm, max_norm, eps)._replace(leaf_norms=leaf_norms)


def clip_leaves_by_norm(
    leaves: Sequence[jax.Array],
    max_norm: Scalar,
    *,
    norm_type: float | jax.Array,
    eps: float | jax.Array,
    axis_names: tuple[str, ...],
    stop_gradient: bool = False,
    per_leaf: bool = False,
) -> Clipped:
    """Clip each leaf by its own norm; report the largest norm and the least factor."""
    # A norm this far below the threshold changes no coefficient.
    dtype = accumulation_dtype(leaves)
    negligible = jnp.asarray(max_norm, dtype) * float(jnp.finfo(dtype).eps)
    norms = _norm_of_each(
        leaves, norm_type, axis_names, 0.0 if per_leaf else negligible
    )
    leaf_norms = norms.value if per_leaf else None
    if stop_gradient:
        norms = jax.lax.stop_gradient(norms)
    return scale_each_to(leaves, norms, max_norm, eps)._replace(leaf_norms=leaf_norms)


def _norm_of_each(
    leaves: Sequence[jax.Array],
    norm_type: float | jax.Array,
    axis_names: tuple[str, ...],
    negligible: Scalar = 0.0,
) -> TreeNorm:
    return group_norms(
        [[leaf] for leaf in leaves],
        norm_type=norm_type,
        axis_names=axis_names,
        negligible=negligible,
    )


def clip_leaves_by_value(
    leaves: Sequence[jax.Array], clip_value: Scalar, *, axis_names: tuple[str, ...]
) -> Clipped:
    """Limit each element; report the largest magnitude, which is what is bounded."""
    norm = tree_norm(leaves, norm_type=float("inf"), axis_names=axis_names)
    coef = clip_coefficient(norm.value, clip_value, eps=0.0)
    (clipped_norm,) = _limit_elements([norm.value], clip_value)
    return Clipped(
        _limit_elements(leaves, clip_value),
        norm.value,
        clipped_norm,
        coef,
        norm.finite,
    )


def _clip_leaves_with_norm(
    leaves: Sequence[jax.Array], max_norm: Scalar, total_norm: Scalar, *, eps: Any
) -> list[jax.Array]:
    total_norm = jnp.asarray(total_norm)
    dtype = accumulation_dtype([*leaves, total_norm])
    norm = TreeNorm(jnp.ones((), dtype), total_norm.astype(dtype))
    return scale_to(leaves, norm, max_norm, eps).leaves


def _limit_elements(leaves: Sequence[jax.Array], clip_value: Scalar) -> list[jax.Array]:
    def limit(leaf: jax.Array) -> jax.Array:
        wide = accumulation_dtype([leaf])
        bound = jnp.asarray(clip_value, wide)
        bound = jnp.where(bound >= 0, bound, jnp.nan)
        return jnp.clip(leaf.astype(wide), -bound, bound).astype(leaf.dtype)

    return [limit(leaf) for leaf in leaves]


def check_real(grads: Any, leaves: Sequence[jax.Array], caller: str) -> None:
    """Refuse complex leaves, which have no order to clip in."""
    for index, leaf in enumerate(leaves):
        if jnp.iscomplexobj(leaf):
            raise TypeError(
                f"{caller}: the leaf {leaf_names(grads)[index]} is of type "
                f"{leaf.dtype}, and complex numbers are not ordered. Clip it by its "
                "norm: jaxclip.clip_by_norm or jaxclip.clip_by_global_norm."
            )

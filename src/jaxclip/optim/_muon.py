"""Muon."""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxclip._core.arguments import check_choice
from jaxclip._core.leaves import accumulation_dtype
from jaxclip.optim import _arguments as check
from jaxclip.optim._arguments import Hyperparameter
from jaxclip.optim._layout import OfLeaf, axis_within, refuse_complex, refuse_shard
from jaxclip.optim._numbers import is_zero, lerp
from jaxclip.optim._rule import Arrays, Numbers, Rule, transformation

Coefficients = tuple[Hyperparameter, Hyperparameter, Hyperparameter]
_DTYPES = ("bfloat16", "float32", "float64")


class MuonState(NamedTuple):
    """The state of `muon`.

    Attributes:
        count: int32 scalar: the updates so far.
        step: int32 of (parameters,): the steps that each parameter has taken.
        momentum_buffer: The average of gradients: a tree like the parameters, in at
            least float32.
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count
    step: jax.Array
    momentum_buffer: Any


def muon(
    lr: Hyperparameter = 1e-3,
    weight_decay: Hyperparameter = 0.1,
    momentum: Hyperparameter = 0.95,
    nesterov: bool = True,
    ns_coefficients: Coefficients = (3.4445, -4.7750, 2.0315),
    eps: Hyperparameter = 1e-7,
    ns_steps: int = 5,
    adjust_lr_fn: Literal["original", "match_rms_adamw"] | None = None,
    *,
    out_axis: int | OfLeaf = -1,
    ns_dtype: Any = jnp.bfloat16,
) -> optax.GradientTransformationExtraArgs:
    r"""Step along momentum whose singular values are drawn to 1: ``torch.optim.Muon``.

    .. math:: b &\leftarrow \mu b + (1 - \mu) g, \quad
              x_0 = \frac{\mu b + (1 - \mu) g}{\max(\|\cdot\|, \epsilon)} \\
              x_{k+1} &= a x_k + (b' s + c s^2) x_k, \quad s = x_k x_k^T \\
              p &\leftarrow p - \gamma \lambda p - \gamma \rho\, x_K

    :math:`(a, b', c)` are ``ns_coefficients``, and :math:`x_0` is of :math:`b` alone
    without nesterov. Of a matrix with m outputs and n inputs the ratio ρ is
    :math:`\sqrt{\max(1, m / n)}`, or :math:`0.2 \sqrt{\max(m, n)}` to
    ``"match_rms_adamw"``.

    Args:
        lr: γ ≥ 0: a number, a scalar array, or a schedule.
        weight_decay: λ ≥ 0, likewise.
        momentum: μ ≥ 0, likewise.
        nesterov: Look ahead.
        ns_coefficients: Three numbers, likewise, of the Newton-Schulz iteration.
        eps: ε ≥ 0, likewise.
        ns_steps: K, from 0 to 99: known when the transformation is made.
        adjust_lr_fn: Which ρ: ``"original"``, which is None's too, or
            ``"match_rms_adamw"``.
        out_axis: Which axis of an array is that of the outputs, torch's first: -1 for
            the kernels of Flax's linear layers, (in, out), and 0 for arrays that are
            laid out as in torch, as embeddings are, (entries, features); or a function
            of the leaf's path and of the array that returns one.
        ns_dtype: What the matrices of the iteration are rounded to: bfloat16, as
            torch does whatever the parameters are, or float32 or float64.

    Returns:
        A transformation of matrices, with a `MuonState`. ``update`` needs the
        parameters if weights decay.

    Raises:
        TypeError: A hyperparameter is no real scalar, or a flag no bool; in ``init``
            and ``update``: a parameter is complex.
        ValueError: One is out of range; in ``init`` and ``update``: a parameter is no
            matrix, or it is a shard of one, inside ``shard_map``.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer = muon(0.1, weight_decay=0.0)
        >>> grads = jnp.array([[3.0, 0.0], [0.0, 1.0]])
        >>> updates, state = optimizer.update(grads, optimizer.init(grads))
        >>> print(updates)
        [[-0.075      -0.        ]
         [-0.         -0.11328125]]

        Other parameters have another optimizer:

        >>> import optax
        >>> from jaxclip.optim import adamw
        >>> def labels(params):
        ...     return jax.tree.map(
        ...         lambda leaf: "muon" if leaf.ndim == 2 else "adamw", params
        ...     )
        >>> optimizer = optax.partition({"muon": muon(), "adamw": adamw()}, labels)

    In bfloat16 the products are summed in float32, and each matrix of the iteration is
    rounded once, as torch does on a CPU. Matrices of up to about 64 rows are then
    torch's to the last bit, as a rule. Of larger ones some sums, which are taken in
    another order, fall on the other side of a rounding, and five iterations make up to
    1e-2 of it, relative, as they do between the two libraries that torch itself
    multiplies by. Both are as far from the iteration in float64. In float32 and
    float64 the same formula is torch's to rounding.

    Differs from ``optax.contrib.muon``: that one corrects the average that nesterov
    looks ahead of for its start, which makes 4e-2 of the second step; iterates in the
    dtype of the parameters; decays weights by 0 by default; and gives other parameters
    than matrices to Adam, where this refuses them.

    References:
        Jordan et al., `Muon <https://kellerjordan.github.io/posts/muon/>`_, 2024.
        Liu et al., `Muon is Scalable for LLM Training
        <https://arxiv.org/abs/2502.16982>`_, 2025. `torch.optim.Muon
        <https://docs.pytorch.org/docs/stable/generated/torch.optim.Muon.html>`_.
    """
    caller = "muon"
    try:
        coefficients = dict(zip("abc", ns_coefficients, strict=True))
    except (TypeError, ValueError):
        raise ValueError(
            f"{caller}(ns_coefficients={ns_coefficients!r}): expected three numbers, "
            "such as (3.4445, -4.775, 2.0315)."
        ) from None
    if not isinstance(ns_steps, int) or not 0 <= ns_steps < 100:
        raise ValueError(
            f"{caller}(ns_steps={ns_steps}): expected a whole number from 0 to 99, "
            "known when the transformation is made; in optax.inject_hyperparams, name "
            "it in static_args."
        )
    if adjust_lr_fn is not None:
        choices = ("original", "match_rms_adamw")
        check_choice(caller, "adjust_lr_fn", adjust_lr_fn, choices)
    ns_dtype = jnp.dtype(ns_dtype)
    check_choice(caller, "ns_dtype", ns_dtype.name, _DTYPES)
    return transformation(
        _RULE,
        {
            "lr": check.at_least(caller, "lr", lr),
            "weight_decay": check.at_least(caller, "weight_decay", weight_decay),
            "momentum": check.at_least(caller, "momentum", momentum),
            **{
                name: check.real(caller, f"ns_coefficients[{index}]", value)
                for index, (name, value) in enumerate(coefficients.items())
            },
            "eps": check.at_least(caller, "eps", eps),
        },
        needs_params=not is_zero(weight_decay),
        nesterov=check.flag(caller, "nesterov", nesterov),
        ns_steps=ns_steps,
        ns_dtype=ns_dtype,
        matches_adamw=adjust_lr_fn == "match_rms_adamw",
        out_axis=out_axis,
    )


def _of_leaf(path: str, array: Any, *, out_axis: Any, **_: Any) -> Numbers:
    refuse_complex("muon", path, array)
    refuse_shard("muon", path, array)
    if np.ndim(array) != 2:
        raise ValueError(
            f"muon: the parameter {path!r} has the shape {np.shape(array)}; expected a "
            "matrix. Give the others to another optimizer: optax.partition({'muon': "
            "muon(...), 'adamw': adamw(...)}, labels)."
        )
    axis = out_axis(path, array) if callable(out_axis) else out_axis
    axis = axis_within("muon", "out_axis", axis, path, array)
    return {"outputs_first": axis == 0}


def _slots(param: jax.Array, **_: Any) -> Arrays:
    return {"momentum_buffer": jnp.zeros_like(param)}


def _step(
    grad: jax.Array,
    param: jax.Array | None,
    *,
    lr: Any,
    weight_decay: Any,
    momentum: Any,
    a: Any,
    b: Any,
    c: Any,
    eps: Any,
    nesterov: bool,
    ns_steps: int,
    ns_dtype: np.dtype[Any],
    matches_adamw: bool,
    outputs_first: bool,
    momentum_buffer: jax.Array,
    **_: Any,
) -> tuple[jax.Array, Arrays]:
    buffer = lerp(momentum_buffer, grad, 1 - momentum)
    direction = lerp(grad, buffer, momentum) if nesterov else buffer

    # (outputs, inputs), as torch has it.
    matrix = direction if outputs_first else direction.T
    outputs, inputs = matrix.shape
    wide = _orthogonal(
        matrix if outputs <= inputs else matrix.T,
        (a, b, c),
        eps=eps,
        steps=ns_steps,
        dtype=ns_dtype,
    ).astype(grad.dtype)
    matrix = wide if outputs <= inputs else wide.T
    orthogonal = matrix if outputs_first else matrix.T

    if matches_adamw:
        ratio = 0.2 * math.sqrt(max(outputs, inputs))
    else:
        ratio = math.sqrt(max(1.0, outputs / max(inputs, 1)))
    update = -(lr * ratio) * orthogonal
    if not is_zero(weight_decay):
        update -= lr * weight_decay * param
    return update, {"momentum_buffer": buffer}


def _orthogonal(
    matrix: jax.Array,
    coefficients: tuple[Any, Any, Any],
    *,
    eps: Any,
    steps: int,
    dtype: np.dtype[Any],
) -> jax.Array:
    """Draw the singular values of a wide matrix to 1: the Newton-Schulz iteration.

    Args:
        matrix: Of (rows, columns), of which there are as many or more.
        coefficients: Of x, x xᵀ x and (x xᵀ)² x.
        eps: The least norm that is divided by.
        steps: How often.
        dtype: What every matrix is rounded to.
    """
    dtype = jax.dtypes.canonicalize_dtype(dtype)  # float64 may be off
    work = accumulation_dtype([jax.ShapeDtypeStruct((), dtype)])

    def rounded(array: jax.Array) -> jax.Array:
        # A cast there and back XLA may leave out.
        info = jnp.finfo(dtype)
        return lax.reduce_precision(array, info.nexp, info.nmant)

    def product(one: jax.Array, other: jax.Array) -> jax.Array:
        return jnp.matmul(
            one.astype(dtype),
            other.astype(dtype),
            precision=lax.Precision.HIGHEST,
            preferred_element_type=work,
        )

    a, b, c = (jnp.asarray(value, work) for value in coefficients)

    def iterate(_: Any, x: jax.Array) -> jax.Array:
        gram = rounded(product(x, x.T))
        polynomial = rounded(b * gram + c * product(gram, gram))
        return rounded(a * x + product(polynomial, x))

    x = rounded(matrix.astype(work))
    norm = rounded(jnp.sqrt(jnp.sum(x * x)))
    x = rounded(x / jnp.maximum(norm, rounded(jnp.asarray(eps, work))))
    drawn: jax.Array = lax.fori_loop(0, steps, iterate, x)
    return drawn


_RULE = Rule("muon", MuonState, _step, slots=_slots, of_leaf=_of_leaf)

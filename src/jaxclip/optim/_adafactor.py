"""Adafactor."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxclip.optim import _arguments as check
from jaxclip.optim._arguments import Hyperparameter
from jaxclip.optim._layout import OfLeaf, axis_within, refuse_complex, refuse_shard
from jaxclip.optim._numbers import is_zero, lerp
from jaxclip.optim._rule import Arrays, Numbers, Rule, Slots, transformation

Axes = int | tuple[int, ...]
FactoredAxes = tuple[Axes, Axes] | tuple[()]


class AdafactorState(NamedTuple):
    """The state of `adafactor`.

    Attributes:
        count: int32 scalar: the updates so far.
        step: int32 of (parameters,): the steps that each parameter has taken.
        row_var: The average of squared gradients over the second of the factored axes,
            in a tree like the parameters. That axis has the length 1; the others are
            those of the parameter. None for a parameter that is not factored.
        col_var: The average over the first of the factored axes, likewise.
        variance: The average of squared gradients of a parameter that is not factored;
            None for the others. All are in at least float32.
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count
    step: jax.Array
    row_var: Any
    col_var: Any
    variance: Any


def adafactor(
    lr: Hyperparameter = 1e-2,
    beta2_decay: Hyperparameter = -0.8,
    eps: tuple[Hyperparameter | None, Hyperparameter] = (None, 1e-3),
    d: Hyperparameter = 1.0,
    weight_decay: Hyperparameter = 0.0,
    *,
    maximize: bool = False,
    factored_axes: FactoredAxes | OfLeaf | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Step by averages of squared gradients, of rows and of columns alone.

    ``torch.optim.Adafactor``, which keeps a row and a column for each matrix:

    .. math:: r_t &= (1 - t^\tau)\, r_{t-1} + t^\tau \operatorname{mean}_\text{cols} g^2
              , \quad c_t = (1 - t^\tau)\, c_{t-1}
              + t^\tau \operatorname{mean}_\text{rows} g^2 \\
              v &= \frac{r_t c_t}{\max(\operatorname{mean}_\text{rows} r_t,
              \epsilon_1)}, \quad u = \frac{g}{\sqrt{\max(v, \epsilon_1^2)}} \\
              p &\leftarrow p - \gamma \lambda p - \min(\gamma, 1 / \sqrt t)\,
              \frac{\max(\epsilon_2, \operatorname{RMS}(p))}
              {\max(1, \operatorname{RMS}(u) / d)}\, u

    The factors are those of torch's last two axes, for each index of the others, and
    which axes of an array these are its shape does not say. Of a matrix, and of its
    transpose, they are both, in either order. Of an array with more axes, say:

    ===============================  ==========================  =================
    Array                            torch's                     ``factored_axes``
    ===============================  ==========================  =================
    of torch's layout                the same                    ``(-2, -1)``
    Flax convolution, over a line    (out, in, width)            ``(-2, -3)``
    Flax convolution, over a plane   (out, in, height, width)    ``(0, 1)``
    Flax convolution, over a volume  (out, in, depth, ...)       ``(1, 2)``
    Flax attention, (in, heads, d)   (heads · d, in)             ``((1, 2), 0)``
    Flax attention, (heads, d, out)  (out, heads · d)            ``(2, (0, 1))``
    Flax attention's bias            (heads · d,)                ``()``
    ===============================  ==========================  =================

    Args:
        lr: γ ≥ 0: a number, a scalar array, or a schedule.
        beta2_decay: τ ≤ 0, likewise.
        eps: ε₁ ≥ 0 and ε₂ ≥ 0, likewise. ε₁ may be None: the machine epsilon of the
            parameter's dtype, which is 0.0078 for bfloat16.
        d: The largest root mean square of u, ≥ 1, likewise.
        weight_decay: λ ≥ 0, likewise.
        maximize: Step up the gradient. The weights still decay.
        factored_axes: The axes of an array that are torch's last two: a pair of
            axes or of tuples of axes, which are taken as one; ``()`` for an array that
            torch has as a vector, and does not factor; or a function of the leaf's
            path and of the array that returns one of these, or None. A pair counts
            for those arrays that have two axes or more. None takes both axes of an
            array that has two, and refuses one that has more.

    Returns:
        A transformation with an `AdafactorState`. ``update`` needs the parameters.

    Raises:
        TypeError: A hyperparameter is no real scalar, or a flag no bool; in ``init``
            and ``update``: a parameter is complex.
        ValueError: One is out of range; in ``init`` and ``update``: an array of three
            axes or more is not spoken of by ``factored_axes``, or it does not have
            these axes, or it is a shard of one, inside ``shard_map``.

    Example:
        >>> import jax.numpy as jnp
        >>> def factored_axes(path, array):
        ...     return (0, 1) if "conv" in path else None
        >>> optimizer = adafactor(0.1, factored_axes=factored_axes)
        >>> params = {"conv": jnp.ones((3, 3, 8, 16)), "dense": jnp.ones((4, 2))}
        >>> state = optimizer.init(params)
        >>> print(state.row_var["conv"].shape, state.row_var["dense"].shape)
        (3, 1, 8, 16) (4, 1)
        >>> updates, state = optimizer.update(params, state, params)
        >>> print(updates["dense"][0])
        [-0.1 -0.1]

    Differs from ``optax.adafactor``: that one factors the two largest axes, and none
    shorter than 128; its steps do not shrink with :math:`1 / \sqrt t`; and it adds its
    eps to squares. Where none of that counts, the two are equal to 1e-8.

    Differs from torch where parameters of several
    dtypes are in one group: there torch takes the ε₁ of the first for all. In bfloat16
    torch keeps its averages in it, and this in float32.

    References:
        Shazeer and Stern, `Adafactor <https://arxiv.org/abs/1804.04235>`_, 2018.
        `torch.optim.Adafactor
        <https://docs.pytorch.org/docs/stable/generated/torch.optim.Adafactor.html>`_.
    """
    caller = "adafactor"
    try:
        eps1, eps2 = eps
    except (TypeError, ValueError):
        raise ValueError(
            f"{caller}(eps={eps!r}): expected a pair, such as (None, 1e-3)."
        ) from None
    floor = {} if eps1 is None else {"eps1": check.at_least(caller, "eps[0]", eps1)}
    return transformation(
        _RULE,
        {
            "lr": check.at_least(caller, "lr", lr),
            "beta2_decay": check.at_most(caller, "beta2_decay", beta2_decay),
            **floor,
            "eps2": check.at_least(caller, "eps[1]", eps2),
            "d": check.at_least(caller, "d", d, 1.0),
            "weight_decay": check.at_least(caller, "weight_decay", weight_decay),
        },
        needs_params=True,
        maximize=check.flag(caller, "maximize", maximize),
        factored_axes=_hashable(factored_axes),
    )


def _hashable(axes: Any) -> Any:
    """Return what was given with tuples in the place of lists."""
    return tuple(map(_hashable, axes)) if isinstance(axes, list | tuple) else axes


def _of_leaf(path: str, array: Any, *, factored_axes: Any, **given: Any) -> Numbers:
    refuse_complex("adafactor", path, array)
    refuse_shard("adafactor", path, array)
    axes = factored_axes
    if callable(axes):
        axes = _hashable(axes(path, array))
    elif np.ndim(array) < 2:
        axes = ()
    own = {"axes": _both_axes(axes, path, array)}
    if "eps1" not in given:
        own["eps1"] = float(jnp.finfo(array.dtype).eps)
    return own


def _both_axes(axes: Any, path: str, array: Any) -> Any:
    """Return the rows' and the columns' axes, each a tuple; () of what has none."""
    ndim = np.ndim(array)
    if axes == () or (axes is None and ndim < 2):
        return ()
    if axes is None and ndim == 2:
        return (0,), (1,)
    if axes is None:
        raise ValueError(
            f"adafactor: the parameter {path!r} has the shape {np.shape(array)}, which "
            "does not say which axes torch's last two are. Say it: "
            "adafactor(factored_axes=(-2, -1)) if it is laid out as in torch, (0, 1) "
            "for a Flax convolution over a plane, or a function of path and array."
        )
    if not isinstance(axes, tuple) or len(axes) != 2:
        raise ValueError(
            f"adafactor(factored_axes=...): got {axes!r} for {path!r}; expected a pair "
            "of axes or of tuples of axes, (), or None."
        )
    rows, cols = (
        tuple(
            axis_within("adafactor", "factored_axes", axis, path, array)
            for axis in (part if isinstance(part, tuple) else (part,))
        )
        for part in axes
    )
    if not rows or not cols or len({*rows, *cols}) < len(rows) + len(cols):
        raise ValueError(
            f"adafactor(factored_axes=...): got {axes!r} for {path!r}; expected axes "
            "that differ."
        )
    return rows, cols


def _slots(param: jax.Array, *, axes: Any = (), **_: Any) -> Slots:
    if not axes:
        return {"row_var": None, "col_var": None, "variance": jnp.zeros_like(param)}
    rows, cols = axes
    return {
        "row_var": jnp.zeros_like(_mean(param, cols)),
        "col_var": jnp.zeros_like(_mean(param, rows)),
        "variance": None,
    }


def _clock(
    step: jax.Array, *, lr: Any, beta2_decay: Any, **_: Any
) -> tuple[Arrays, Arrays]:
    return {"share": step**beta2_decay, "rho": jnp.minimum(lr, 1 / jnp.sqrt(step))}, {}


def _step(
    grad: jax.Array,
    param: jax.Array,
    *,
    lr: Any,
    eps1: Any,
    eps2: Any,
    d: Any,
    weight_decay: Any,
    maximize: bool,
    axes: Any,
    share: jax.Array,
    rho: jax.Array,
    row_var: jax.Array | None = None,
    col_var: jax.Array | None = None,
    variance: jax.Array | None = None,
    **_: Any,
) -> tuple[jax.Array, Arrays]:
    grad = -grad if maximize else grad
    square = grad * grad
    if row_var is None or col_var is None:
        assert variance is not None
        estimate = lerp(variance, square, share)
        slots = {"variance": estimate}
    else:
        rows, cols = axes
        row_var = lerp(row_var, _mean(square, cols), share)
        col_var = lerp(col_var, _mean(square, rows), share)
        estimate = row_var * col_var / jnp.maximum(_mean(row_var, rows), eps1)
        slots = {"row_var": row_var, "col_var": col_var}
    direction = grad * jax.lax.rsqrt(jnp.maximum(estimate, eps1 * eps1))
    size = rho * jnp.maximum(eps2, _rms(param))
    update = -size / jnp.maximum(1.0, _rms(direction) / d) * direction
    if not is_zero(weight_decay):
        update -= lr * weight_decay * param
    return update, slots


def _mean(array: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return jnp.mean(array, axis=axes, keepdims=True)


def _rms(array: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean(array * array))


_RULE = Rule(
    "adafactor", AdafactorState, _step, slots=_slots, clock=_clock, of_leaf=_of_leaf
)

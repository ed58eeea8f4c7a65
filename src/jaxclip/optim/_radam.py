"""RAdam."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip.optim import _arguments as check
from jaxclip.optim._arguments import Hyperparameter, Pair
from jaxclip.optim._numbers import (
    average_square,
    bias_correction,
    decay_weights,
    decayed,
    is_zero,
    lerp,
)
from jaxclip.optim._rule import Arrays, Rule, transformation


class RAdamState(NamedTuple):
    """The state of `radam`.

    Attributes:
        count: int32 scalar: the updates so far.
        step: int32 of (parameters,): the steps that each parameter has taken.
        exp_avg: The average of gradients: a tree like the parameters, in at least
            float32.
        exp_avg_sq: The average of their squares, likewise.
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count
    step: jax.Array
    exp_avg: Any
    exp_avg_sq: Any


def radam(
    lr: Hyperparameter = 1e-3,
    betas: Pair = (0.9, 0.999),
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 0.0,
    decoupled_weight_decay: bool = False,
    *,
    maximize: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Step as Adam does once its variance is known: ``torch.optim.RAdam``.

    .. math:: m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, \quad
              v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
              \rho_\infty &= \frac{2}{1 - \beta_2} - 1, \quad
              \rho_t = \rho_\infty - \frac{2 t \beta_2^t}{1 - \beta_2^t}, \quad
              r_t = \sqrt{\frac{(\rho_t - 4)(\rho_t - 2) \rho_\infty}
              {(\rho_\infty - 4)(\rho_\infty - 2) \rho_t}} \\
              p &\leftarrow p - \gamma \,\frac{m_t}{1 - \beta_1^t}
              \begin{cases} r_t \sqrt{1 - \beta_2^t} / (\sqrt{v_t} + \epsilon)
              & \rho_t > 5 \\ 1 & \text{otherwise} \end{cases}

    Args:
        lr: γ ≥ 0: a number, a scalar array, or a schedule.
        betas: :math:`\beta_1` and :math:`\beta_2`, in [0, 1), likewise.
        eps: ε ≥ 0, likewise.
        weight_decay: λ ≥ 0, likewise. λp is added to the gradient.
        decoupled_weight_decay: Take γλp from the weights instead.
        maximize: Step up the gradient. The weights still decay.

    Returns:
        A transformation. ``update`` needs the parameters if weights decay.

    Raises:
        TypeError: A hyperparameter is no real scalar, or a flag no bool.
        ValueError: One is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer = radam(0.1)
        >>> params = jnp.array([1.0, 2.0])
        >>> updates, state = optimizer.update(
        ...     jnp.array([3.0, -0.01]), optimizer.init(params)
        ... )
        >>> with jnp.printoptions(precision=4, suppress=True):
        ...     print(params + updates)
        [0.7   2.001]

    Differs from ``optax.radam``: ε is added to the root of v before v is corrected, and
    after in Optax; in float32 :math:`\rho_t` keeps its digits.

    References:
        Liu et al., `On the Variance of the Adaptive Learning Rate and Beyond
        <https://arxiv.org/abs/1908.03265>`_, 2019. `torch.optim.RAdam
        <https://docs.pytorch.org/docs/stable/generated/torch.optim.RAdam.html>`_.
    """
    caller = "radam"
    return transformation(
        _RULE,
        {
            "lr": check.at_least(caller, "lr", lr),
            **check.decay_rates(caller, betas),
            "eps": check.at_least(caller, "eps", eps),
            "weight_decay": check.at_least(caller, "weight_decay", weight_decay),
        },
        needs_params=not is_zero(weight_decay),
        decoupled=check.flag(caller, "decoupled_weight_decay", decoupled_weight_decay),
        maximize=check.flag(caller, "maximize", maximize),
    )


def _slots(param: jax.Array, **_: Any) -> Arrays:
    return {"exp_avg": jnp.zeros_like(param), "exp_avg_sq": jnp.zeros_like(param)}


def _clock(
    step: jax.Array, *, lr: Any, beta1: Any, beta2: Any, **_: Any
) -> tuple[Arrays, Arrays]:
    rho, rho_inf = sma_length(beta2, step)
    adaptive = rho > 5
    # Roots and quotients of 1 where they are not used.
    share = jnp.where(adaptive, (rho - 4) * (rho - 2) / rho, 1)
    whole = jnp.where(adaptive, (rho_inf - 4) * (rho_inf - 2) / rho_inf, 1)
    now = {
        "adaptive": adaptive,
        "scale": jnp.sqrt(bias_correction(beta2, step) * share / whole),
        "step_size": lr / bias_correction(beta1, step),
    }
    return now, {}


def sma_length(beta: Any, step: jax.Array) -> tuple[jax.Array, Any]:
    r"""Return :math:`\rho_t` and :math:`\rho_\infty` to rounding.

    For a β of 0.999 the plain form takes 1993 from 1999 at the step that decides. With
    :math:`h = -\log \beta` it is

    .. math:: \rho_\infty = \coth \tfrac h2, \quad
              \rho_t = t - t \coth \tfrac{ht}2 + \coth \tfrac h2
              = t - \tfrac2h \bigl(c(\tfrac{ht}2) - c(\tfrac h2)\bigr), \quad
              c(x) = x \coth x - 1

    where what is taken from t is small. Once ht is large, it is the plain form that
    takes something small.

    Args:
        beta: In [0, 1).
        step: t, at least 1.
    """
    h: Any
    if isinstance(beta, jax.Array):
        h = jnp.minimum(-jnp.log1p(beta - 1), _LARGE)
    else:
        h = -math.log(beta) if beta > 0 else _LARGE
    rho_inf = 2 / (1 - beta) - 1
    early = step - (2 / h) * (_coth_rest(step * (h / 2)) - _coth_rest(h / 2))
    late = rho_inf + 2 * step * jnp.exp(-h * step) / jnp.expm1(-h * step)
    return jnp.where(step * h < 2, early, late), rho_inf


_LARGE = 80.0  # of which exp(-h) is nothing, and no infinity arises


def _coth_rest(x: Any) -> Any:
    """Return ``x * coth(x) - 1`` for x in [0, 1], by Lambert's continued fraction."""
    square, rest = x * x, 0.0
    for odd in range(19, 1, -2):
        rest = square / (odd + rest)
    return rest


def _step(
    grad: jax.Array,
    param: jax.Array | None,
    *,
    lr: Any,
    beta1: Any,
    beta2: Any,
    eps: Any,
    weight_decay: Any,
    maximize: bool,
    decoupled: bool,
    adaptive: jax.Array,
    scale: jax.Array,
    step_size: jax.Array,
    exp_avg: jax.Array,
    exp_avg_sq: jax.Array,
    **_: Any,
) -> tuple[jax.Array, Arrays]:
    grad = -grad if maximize else grad
    if not decoupled:
        grad = decayed(grad, param, weight_decay)
    exp_avg = lerp(exp_avg, grad, 1 - beta1)
    exp_avg_sq = average_square(exp_avg_sq, grad, beta2)
    adaptive_size = scale / (jnp.sqrt(exp_avg_sq) + eps)
    update = -step_size * exp_avg * jnp.where(adaptive, adaptive_size, 1)
    if decoupled:
        update = decay_weights(update, param, lr, weight_decay)
    return update, {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}


_RULE = Rule("radam", RAdamState, _step, slots=_slots, clock=_clock)

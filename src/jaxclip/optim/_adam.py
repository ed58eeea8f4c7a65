"""Adam and AdamW."""

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


class AdamState(NamedTuple):
    """The state of `adam` and `adamw`.

    Attributes:
        count: int32 scalar: the updates so far.
        step: int32 of (parameters,): the steps that each parameter has taken.
        exp_avg: The average of gradients: a tree like the parameters, in at least
            float32.
        exp_avg_sq: The average of their squares, likewise.
        max_exp_avg_sq: Its largest values; None without amsgrad.
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count
    step: jax.Array
    exp_avg: Any
    exp_avg_sq: Any
    max_exp_avg_sq: Any


def adam(
    lr: Hyperparameter = 1e-3,
    betas: Pair = (0.9, 0.999),
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 0.0,
    amsgrad: bool = False,
    *,
    maximize: bool = False,
    decoupled_weight_decay: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Step by averages of gradients and of their squares: ``torch.optim.Adam``.

    .. math:: m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, \quad
              v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
              p &\leftarrow p - \gamma \,\frac{m_t / (1 - \beta_1^t)}
              {\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}

    Args:
        lr: γ ≥ 0: a number, a scalar array, or a schedule.
        betas: :math:`\beta_1` and :math:`\beta_2`, in [0, 1), likewise.
        eps: ε ≥ 0, likewise.
        weight_decay: λ ≥ 0, likewise. λp is added to the gradient.
        amsgrad: Divide by the largest v so far instead of the last.
        maximize: Step up the gradient. The weights still decay.
        decoupled_weight_decay: Take γλp from the weights instead, as `adamw` does.

    Returns:
        A transformation. ``update`` needs the parameters if weights decay.

    Raises:
        TypeError: A hyperparameter is no real scalar, or a flag no bool.
        ValueError: One is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer = adam(0.1)
        >>> params = jnp.array([1.0, 2.0])
        >>> updates, state = optimizer.update(
        ...     jnp.array([3.0, -0.01]), optimizer.init(params)
        ... )
        >>> print(params + updates)
        [0.9 2.1]

    Differs from ``optax.adam``: in float32 the corrections ``1 - beta ** t`` keep
    their digits, of which Optax loses two; amsgrad takes the largest v before it is
    corrected, as torch does, and ``optax.amsgrad`` after.

    References:
        Kingma and Ba, `Adam <https://arxiv.org/abs/1412.6980>`_, 2014. Reddi et al.,
        `On the Convergence of Adam and Beyond <https://arxiv.org/abs/1904.09237>`_,
        2018. `torch.optim.Adam
        <https://docs.pytorch.org/docs/stable/generated/torch.optim.Adam.html>`_.
    """
    return _adam(
        "adam",
        lr,
        betas,
        eps,
        weight_decay,
        amsgrad=amsgrad,
        maximize=maximize,
        decoupled=check.flag("adam", "decoupled_weight_decay", decoupled_weight_decay),
    )


def adamw(
    lr: Hyperparameter = 1e-3,
    betas: Pair = (0.9, 0.999),
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 1e-2,
    amsgrad: bool = False,
    *,
    maximize: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Step as `adam` does, and let the weights decay by themselves: AdamW.

    .. math:: p \leftarrow p - \gamma \lambda p
              - \gamma \,\frac{m_t / (1 - \beta_1^t)}
              {\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}

    Args:
        lr: γ ≥ 0: a number, a scalar array, or a schedule.
        betas: :math:`\beta_1` and :math:`\beta_2`, in [0, 1), likewise.
        eps: ε ≥ 0, likewise.
        weight_decay: λ ≥ 0, likewise.
        amsgrad: Divide by the largest v so far instead of the last.
        maximize: Step up the gradient. The weights still decay.

    Returns:
        A transformation with an `AdamState`. ``update`` needs the parameters if
        weights decay.

    Raises:
        TypeError: A hyperparameter is no real scalar, or a flag no bool.
        ValueError: One is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer = adamw(0.1, weight_decay=0.5)
        >>> params = jnp.array([1.0, 2.0])
        >>> updates, state = optimizer.update(
        ...     jnp.array([3.0, -0.01]), optimizer.init(params), params
        ... )
        >>> with jnp.printoptions(precision=4, suppress=True):
        ...     print(params + updates)
        [0.85 2.  ]

    Differs from ``optax.adamw``: weights decay by 1e-2 as torch's, not 1e-4; see
    `adam` for the rest.

    References:
        Loshchilov and Hutter, `Decoupled Weight Decay Regularization
        <https://arxiv.org/abs/1711.05101>`_, 2017. `torch.optim.AdamW
        <https://docs.pytorch.org/docs/stable/generated/torch.optim.AdamW.html>`_.
    """
    return _adam(
        "adamw",
        lr,
        betas,
        eps,
        weight_decay,
        amsgrad=amsgrad,
        maximize=maximize,
        decoupled=True,
    )


def _adam(
    caller: str,
    lr: Hyperparameter,
    betas: Pair,
    eps: Hyperparameter,
    weight_decay: Hyperparameter,
    *,
    amsgrad: bool,
    maximize: bool,
    decoupled: bool,
) -> optax.GradientTransformationExtraArgs:
    return transformation(
        Rule(caller, AdamState, _step, slots=_slots, clock=_clock),
        {
            "lr": check.at_least(caller, "lr", lr),
            **check.decay_rates(caller, betas),
            "eps": check.at_least(caller, "eps", eps),
            "weight_decay": check.at_least(caller, "weight_decay", weight_decay),
        },
        needs_params=not is_zero(weight_decay),
        amsgrad=check.flag(caller, "amsgrad", amsgrad),
        maximize=check.flag(caller, "maximize", maximize),
        decoupled=decoupled,
    )


def _slots(param: jax.Array, *, amsgrad: bool, **_: Any) -> Arrays:
    names = ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if amsgrad else [])]
    return {name: jnp.zeros_like(param) for name in names}


def _clock(
    step: jax.Array, *, lr: Any, beta1: Any, beta2: Any, eps: Any, **_: Any
) -> tuple[Arrays, Arrays]:
    """Form the scalars of ``step_size * m / (sqrt(v) + floor)``."""
    root = jnp.sqrt(bias_correction(beta2, step))
    step_size = lr * root / bias_correction(beta1, step)
    return {"step_size": step_size, "floor": eps * root}, {}


def _step(
    grad: jax.Array,
    param: jax.Array | None,
    *,
    lr: Any,
    beta1: Any,
    beta2: Any,
    weight_decay: Any,
    maximize: bool,
    decoupled: bool,
    step_size: jax.Array,
    floor: jax.Array,
    exp_avg: jax.Array,
    exp_avg_sq: jax.Array,
    max_exp_avg_sq: jax.Array | None = None,
    **_: Any,
) -> tuple[jax.Array, Arrays]:
    grad = -grad if maximize else grad
    if not decoupled:
        grad = decayed(grad, param, weight_decay)
    exp_avg = lerp(exp_avg, grad, 1 - beta1)
    exp_avg_sq = average_square(exp_avg_sq, grad, beta2)
    slots = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    largest = exp_avg_sq
    if max_exp_avg_sq is not None:
        largest = jnp.maximum(max_exp_avg_sq, exp_avg_sq)
        slots["max_exp_avg_sq"] = largest
    update = -step_size * exp_avg / (jnp.sqrt(largest) + floor)
    if decoupled:
        update = decay_weights(update, param, lr, weight_decay)
    return update, slots

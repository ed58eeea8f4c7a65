"""NAdam."""

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
from jaxclip.optim._rule import Arrays, Numbers, Rule, transformation


class NAdamState(NamedTuple):
    r"""The state of `nadam`.

    Attributes:
        count: int32 scalar: the updates so far.
        step: int32 of (parameters,): the steps that each parameter has taken.
        exp_avg: The average of gradients: a tree like the parameters, in at least
            float32.
        exp_avg_sq: The average of their squares, likewise.
        mu_product: Of (parameters,), in at least float32: the product of all
            :math:`\mu_t` so far.
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count
    step: jax.Array
    exp_avg: Any
    exp_avg_sq: Any
    mu_product: jax.Array


def nadam(
    lr: Hyperparameter = 2e-3,
    betas: Pair = (0.9, 0.999),
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 0.0,
    momentum_decay: Hyperparameter = 4e-3,
    decoupled_weight_decay: bool = False,
    *,
    maximize: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Step as Adam does, with Nesterov's momentum: ``torch.optim.NAdam``.

    .. math:: m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, \quad
              v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2, \quad
              \mu_t = \beta_1 \bigl(1 - \tfrac12 \, 0.96^{t \psi}\bigr) \\
              p &\leftarrow p - \frac{\gamma}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}
              \left(\frac{1 - \mu_t}{1 - \prod_{i=1}^t \mu_i} \, g_t
              + \frac{\mu_{t+1}}{1 - \prod_{i=1}^{t+1} \mu_i} \, m_t\right)

    Args:
        lr: γ ≥ 0: a number, a scalar array, or a schedule.
        betas: :math:`\beta_1` and :math:`\beta_2`, in [0, 1), likewise.
        eps: ε ≥ 0, likewise.
        weight_decay: λ ≥ 0, likewise. λp is added to the gradient.
        momentum_decay: ψ ≥ 0, likewise: how fast the momentum grows to β₁.
        decoupled_weight_decay: Take γλp from the weights instead.
        maximize: Step up the gradient. The weights still decay.

    Returns:
        A transformation. ``update`` needs the parameters if weights decay.

    Raises:
        TypeError: A hyperparameter is no real scalar, or a flag no bool.
        ValueError: One is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer = nadam(0.1)
        >>> params = jnp.array([1.0, 2.0])
        >>> updates, state = optimizer.update(
        ...     jnp.array([3.0, -0.01]), optimizer.init(params)
        ... )
        >>> with jnp.printoptions(precision=4, suppress=True):
        ...     print(params + updates, state.mu_product)
        [0.8944 2.1056] [0.4501]

    Differs from ``optax.nadam``: the momentum grows with the steps, as in the paper,
    and is β₁ from the first step on in Optax, with ``momentum_decay=0`` too.

    References:
        Dozat, `Incorporating Nesterov Momentum into Adam
        <https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ>`_, 2016.
        `torch.optim.NAdam
        <https://docs.pytorch.org/docs/stable/generated/torch.optim.NAdam.html>`_.
    """
    caller = "nadam"
    return transformation(
        _RULE,
        {
            "lr": check.at_least(caller, "lr", lr),
            **check.decay_rates(caller, betas),
            "eps": check.at_least(caller, "eps", eps),
            "weight_decay": check.at_least(caller, "weight_decay", weight_decay),
            "momentum_decay": check.at_least(caller, "momentum_decay", momentum_decay),
        },
        needs_params=not is_zero(weight_decay),
        decoupled=check.flag(caller, "decoupled_weight_decay", decoupled_weight_decay),
        maximize=check.flag(caller, "maximize", maximize),
    )


def _slots(param: jax.Array, **_: Any) -> Arrays:
    return {"exp_avg": jnp.zeros_like(param), "exp_avg_sq": jnp.zeros_like(param)}


def _vectors(**_: Any) -> Numbers:
    return {"mu_product": 1.0}


def _clock(
    step: jax.Array,
    *,
    lr: Any,
    beta1: Any,
    beta2: Any,
    eps: Any,
    momentum_decay: Any,
    mu_product: jax.Array,
    **_: Any,
) -> tuple[Arrays, Arrays]:
    """Form the scalars of ``-(g_size * g + m_size * m) / (sqrt(v) + floor)``."""
    one_minus_mu = _one_minus_mu(beta1, momentum_decay, step)
    one_minus_next = _one_minus_mu(beta1, momentum_decay, step + 1)
    # A product near 1 is not taken from 1, but the parts that each factor takes added.
    rest = (1 - mu_product) + mu_product * one_minus_mu
    mu_product = mu_product * (1 - one_minus_mu)
    rest_next = rest + mu_product * one_minus_next
    root = jnp.sqrt(bias_correction(beta2, step))
    now = {
        "grad_size": lr * root * one_minus_mu / rest,
        "avg_size": lr * root * (1 - one_minus_next) / rest_next,
        "floor": eps * root,
    }
    return now, {"mu_product": mu_product}


def _one_minus_mu(beta1: Any, momentum_decay: Any, step: jax.Array) -> jax.Array:
    r"""Return :math:`1 - \mu_t`, with its digits where β₁ is almost 1."""
    missing = 0.5 * jnp.exp(step * (momentum_decay * math.log(0.96)))
    rest: jax.Array = (1 - beta1) + beta1 * missing
    return rest


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
    grad_size: jax.Array,
    avg_size: jax.Array,
    floor: jax.Array,
    exp_avg: jax.Array,
    exp_avg_sq: jax.Array,
    **_: Any,
) -> tuple[jax.Array, Arrays]:
    grad = -grad if maximize else grad
    if not decoupled:
        grad = decayed(grad, param, weight_decay)
    exp_avg = lerp(exp_avg, grad, 1 - beta1)
    exp_avg_sq = average_square(exp_avg_sq, grad, beta2)
    direction = grad_size * grad + avg_size * exp_avg
    update = -direction / (jnp.sqrt(exp_avg_sq) + floor)
    if decoupled:
        update = decay_weights(update, param, lr, weight_decay)
    return update, {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}


_RULE = Rule("nadam", NAdamState, _step, slots=_slots, vectors=_vectors, clock=_clock)

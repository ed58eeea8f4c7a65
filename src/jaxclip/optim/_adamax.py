"""Adamax."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip.optim import _arguments as check
from jaxclip.optim._arguments import Hyperparameter, Pair
from jaxclip.optim._numbers import bias_correction, decayed, is_zero, lerp
from jaxclip.optim._rule import Arrays, Rule, transformation


class AdamaxState(NamedTuple):
    """The state of `adamax`.

    Attributes:
        count: int32 scalar: the updates so far.
        step: int32 of (parameters,): the steps that each parameter has taken.
        exp_avg: The average of gradients: a tree like the parameters, in at least
            float32.
        exp_inf: Their largest magnitudes, which fade, likewise.
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count
    step: jax.Array
    exp_avg: Any
    exp_inf: Any


def adamax(
    lr: Hyperparameter = 2e-3,
    betas: Pair = (0.9, 0.999),
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 0.0,
    *,
    maximize: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Step by the average of gradients over their largest: ``torch.optim.Adamax``.

    .. math:: m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, \quad
              u_t = \max(\beta_2 u_{t-1}, |g_t| + \epsilon) \\
              p &\leftarrow p - \frac{\gamma}{1 - \beta_1^t} \,\frac{m_t}{u_t}

    Args:
        lr: γ ≥ 0: a number, a scalar array, or a schedule.
        betas: :math:`\beta_1` and :math:`\beta_2`, in [0, 1), likewise.
        eps: ε ≥ 0, likewise.
        weight_decay: λ ≥ 0, likewise. λp is added to the gradient.
        maximize: Step up the gradient. The weights still decay.

    Returns:
        A transformation. ``update`` needs the parameters if weights decay.

    Raises:
        TypeError: A hyperparameter is no real scalar, or ``maximize`` no bool.
        ValueError: One is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer = adamax(0.1)
        >>> params = jnp.array([1.0, 2.0])
        >>> updates, state = optimizer.update(
        ...     jnp.array([3.0, -0.01]), optimizer.init(params)
        ... )
        >>> with jnp.printoptions(precision=4, suppress=True):
        ...     print(params + updates)
        [0.9 2.1]

    Differs from ``optax.adamax``: the learning rate is 2e-3 unless one is given;
    weights decay by way of the gradient, by themselves in ``optax.adamaxw``.

    References:
        Kingma and Ba, `Adam <https://arxiv.org/abs/1412.6980>`_, 2014.
        `torch.optim.Adamax
        <https://docs.pytorch.org/docs/stable/generated/torch.optim.Adamax.html>`_.
    """
    caller = "adamax"
    return transformation(
        _RULE,
        {
            "lr": check.at_least(caller, "lr", lr),
            **check.decay_rates(caller, betas),
            "eps": check.at_least(caller, "eps", eps),
            "weight_decay": check.at_least(caller, "weight_decay", weight_decay),
        },
        needs_params=not is_zero(weight_decay),
        maximize=check.flag(caller, "maximize", maximize),
    )


def _slots(param: jax.Array, **_: Any) -> Arrays:
    return {"exp_avg": jnp.zeros_like(param), "exp_inf": jnp.zeros_like(param)}


def _clock(step: jax.Array, *, lr: Any, beta1: Any, **_: Any) -> tuple[Arrays, Arrays]:
    return {"step_size": lr / bias_correction(beta1, step)}, {}


def _step(
    grad: jax.Array,
    param: jax.Array | None,
    *,
    beta1: Any,
    beta2: Any,
    eps: Any,
    weight_decay: Any,
    maximize: bool,
    step_size: jax.Array,
    exp_avg: jax.Array,
    exp_inf: jax.Array,
    **_: Any,
) -> tuple[jax.Array, Arrays]:
    grad = decayed(-grad if maximize else grad, param, weight_decay)
    exp_avg = lerp(exp_avg, grad, 1 - beta1)
    exp_inf = jnp.maximum(beta2 * exp_inf, jnp.abs(grad) + eps)
    update = -step_size * (exp_avg / exp_inf)
    return update, {"exp_avg": exp_avg, "exp_inf": exp_inf}


_RULE = Rule("adamax", AdamaxState, _step, slots=_slots, clock=_clock)

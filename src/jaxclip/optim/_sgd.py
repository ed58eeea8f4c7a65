"""Stochastic gradient descent."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip.optim import _arguments as check
from jaxclip.optim._arguments import Hyperparameter
from jaxclip.optim._numbers import decayed, is_zero
from jaxclip.optim._rule import Arrays, Rule, transformation


class SGDState(NamedTuple):
    """The state of `sgd`.

    Attributes:
        count: int32 scalar: the updates so far.
        step: int32 of (parameters,): the steps that each parameter has taken; None
            without momentum.
        momentum_buffer: A tree like the parameters, in at least float32; None without
            momentum.
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count
    step: jax.Array | None
    momentum_buffer: Any


def sgd(
    lr: Hyperparameter = 1e-3,
    momentum: Hyperparameter = 0.0,
    dampening: Hyperparameter = 0.0,
    weight_decay: Hyperparameter = 0.0,
    nesterov: bool = False,
    *,
    maximize: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Step down the gradient, with momentum: ``torch.optim.SGD``.

    .. math:: g &\leftarrow g + \lambda p \\
              b_1 = g_1, \quad b_t &= \mu b_{t-1} + (1 - \tau) g_t \\
              p &\leftarrow p - \gamma
              \begin{cases} g + \mu b & \text{nesterov} \\ b \end{cases}

    Args:
        lr: γ ≥ 0: a number, a scalar array, or a schedule.
        momentum: μ ≥ 0, likewise.
        dampening: τ, likewise. The first gradient is not damped.
        weight_decay: λ ≥ 0, likewise. It is added to the gradient.
        nesterov: Look ahead. Needs a momentum, and no dampening.
        maximize: Step up the gradient. The weights still decay.

    Returns:
        A transformation. ``update`` needs the parameters if weights decay.

    Raises:
        TypeError: A hyperparameter is no real scalar, or a flag no bool.
        ValueError: One is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer = sgd(0.1, momentum=0.9, dampening=0.5)
        >>> params = jnp.array([1.0, 2.0])
        >>> state = optimizer.init(params)
        >>> for _ in range(2):
        ...     updates, state = optimizer.update(jnp.array([1.0, 0.0]), state)
        >>> print(updates, state.momentum_buffer)
        [-0.14 -0.  ] [1.4 0. ]

    Differs from ``optax.sgd``: has dampening, weight decay and maximize; Optax's
    buffer starts at 0, which is the same without dampening.

    References:
        `torch.optim.SGD
        <https://docs.pytorch.org/docs/stable/generated/torch.optim.SGD.html>`_.
    """
    caller = "sgd"
    hyperparameters = {
        "lr": check.at_least(caller, "lr", lr),
        "momentum": check.at_least(caller, "momentum", momentum),
        "dampening": check.real(caller, "dampening", dampening),
        "weight_decay": check.at_least(caller, "weight_decay", weight_decay),
    }
    damped = isinstance(dampening, int | float) and dampening != 0
    if check.flag(caller, "nesterov", nesterov) and (is_zero(momentum) or damped):
        raise ValueError(
            f"{caller}(nesterov=True, momentum={momentum}, dampening={dampening}): "
            "expected a momentum above 0, and a dampening of 0."
        )
    return transformation(
        _RULE,
        hyperparameters,
        needs_params=not is_zero(weight_decay),
        nesterov=nesterov,
        maximize=check.flag(caller, "maximize", maximize),
    )


def _slots(param: jax.Array, *, momentum: Any, **_: Any) -> Arrays:
    return {} if is_zero(momentum) else {"momentum_buffer": jnp.zeros_like(param)}


def _clock(step: jax.Array, *, dampening: Any, **_: Any) -> tuple[Arrays, Arrays]:
    if is_zero(dampening):
        return {}, {}
    return {"share": jnp.where(step == 1, 1.0, 1.0 - dampening)}, {}


def _step(
    grad: jax.Array,
    param: jax.Array | None,
    *,
    lr: Any,
    momentum: Any,
    weight_decay: Any,
    nesterov: bool,
    maximize: bool,
    momentum_buffer: jax.Array | None = None,
    share: Any = 1.0,
    **_: Any,
) -> tuple[jax.Array, Arrays]:
    grad = decayed(-grad if maximize else grad, param, weight_decay)
    if momentum_buffer is None:
        return -lr * grad, {}
    buffer = momentum * momentum_buffer + share * grad
    direction = grad + momentum * buffer if nesterov else buffer
    return -lr * direction, {"momentum_buffer": buffer}


_RULE = Rule("sgd", SGDState, _step, slots=_slots, clock=_clock)

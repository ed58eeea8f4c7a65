"""Adadelta."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip.optim import _arguments as check
from jaxclip.optim._arguments import Hyperparameter
from jaxclip.optim._numbers import average_square, decayed, is_zero
from jaxclip.optim._rule import Arrays, Rule, transformation


class AdadeltaState(NamedTuple):
    """The state of `adadelta`.

    Attributes:
        count: int32 scalar: the updates so far.
        step: int32 of (parameters,): the steps that each parameter has taken.
        square_avg: The average of squared gradients: a tree like the parameters, in
            at least float32.
        acc_delta: The average of squared steps, likewise.
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count
    step: jax.Array
    square_avg: Any
    acc_delta: Any


def adadelta(
    lr: Hyperparameter = 1.0,
    rho: Hyperparameter = 0.9,
    eps: Hyperparameter = 1e-6,
    weight_decay: Hyperparameter = 0.0,
    *,
    maximize: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Step by gradients in units of the last steps: ``torch.optim.Adadelta``.

    .. math:: v_t &= \rho v_{t-1} + (1 - \rho) g_t^2, \quad
              \Delta_t = \frac{\sqrt{u_{t-1} + \epsilon}}{\sqrt{v_t + \epsilon}} \, g_t
              \\ u_t &= \rho u_{t-1} + (1 - \rho) \Delta_t^2, \quad
              p \leftarrow p - \gamma \Delta_t

    Args:
        lr: γ ≥ 0: a number, a scalar array, or a schedule.
        rho: ρ, in [0, 1], likewise.
        eps: ε ≥ 0, likewise. It is inside of both roots.
        weight_decay: λ ≥ 0, likewise. λp is added to the gradient.
        maximize: Step up the gradient. The weights still decay.

    Returns:
        A transformation. ``update`` needs the parameters if weights decay.

    Raises:
        TypeError: A hyperparameter is no real scalar, or ``maximize`` no bool.
        ValueError: One is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer = adadelta()
        >>> params = jnp.array([1.0, 2.0])
        >>> updates, state = optimizer.update(
        ...     jnp.array([3.0, -0.01]), optimizer.init(params)
        ... )
        >>> with jnp.printoptions(precision=4, suppress=True):
        ...     print(params + updates)
        [0.9968 2.003 ]

    Differs from ``optax.adadelta``: the learning rate is 1 unless one is given; has
    maximize.

    References:
        Zeiler, `ADADELTA <https://arxiv.org/abs/1212.5701>`_, 2012.
        `torch.optim.Adadelta
        <https://docs.pytorch.org/docs/stable/generated/torch.optim.Adadelta.html>`_.
    """
    caller = "adadelta"
    return transformation(
        _RULE,
        {
            "lr": check.at_least(caller, "lr", lr),
            "rho": check.between(caller, "rho", rho, 0, 1),
            "eps": check.at_least(caller, "eps", eps),
            "weight_decay": check.at_least(caller, "weight_decay", weight_decay),
        },
        needs_params=not is_zero(weight_decay),
        maximize=check.flag(caller, "maximize", maximize),
    )


def _slots(param: jax.Array, **_: Any) -> Arrays:
    return {"square_avg": jnp.zeros_like(param), "acc_delta": jnp.zeros_like(param)}


def _step(
    grad: jax.Array,
    param: jax.Array | None,
    *,
    lr: Any,
    rho: Any,
    eps: Any,
    weight_decay: Any,
    maximize: bool,
    square_avg: jax.Array,
    acc_delta: jax.Array,
    **_: Any,
) -> tuple[jax.Array, Arrays]:
    grad = decayed(-grad if maximize else grad, param, weight_decay)
    square_avg = average_square(square_avg, grad, rho)
    delta = jnp.sqrt(acc_delta + eps) / jnp.sqrt(square_avg + eps) * grad
    acc_delta = average_square(acc_delta, delta, rho)
    return -lr * delta, {"square_avg": square_avg, "acc_delta": acc_delta}


_RULE = Rule("adadelta", AdadeltaState, _step, slots=_slots)

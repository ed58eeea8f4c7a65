"""Averaged stochastic gradient descent."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip.optim import _arguments as check
from jaxclip.optim._arguments import Hyperparameter
from jaxclip.optim._numbers import decayed
from jaxclip.optim._rule import Arrays, Numbers, Rule, transformation


class ASGDState(NamedTuple):
    r"""The state of `asgd`.

    Attributes:
        count: int32 scalar: the updates so far.
        step: int32 of (parameters,): the steps that each parameter has taken.
        ax: The average of the parameters, which is what to evaluate: a tree like
            them, in at least float32.
        eta: Of (parameters,), in at least float32: η of the next step.
        mu: Likewise: the next step's weight in the average.
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count
    step: jax.Array
    ax: Any
    eta: jax.Array
    mu: jax.Array


def asgd(
    lr: Hyperparameter = 1e-2,
    lambd: Hyperparameter = 1e-4,
    alpha: Hyperparameter = 0.75,
    t0: Hyperparameter = 1e6,
    weight_decay: Hyperparameter = 0.0,
    *,
    maximize: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Step down the gradient, and average the parameters: ``torch.optim.ASGD``.

    .. math:: p_t &= p_{t-1} - \eta_t (\lambda_d \, p_{t-1} + g_t), \quad
              \eta_1 = \gamma, \quad
              \eta_{t+1} = \gamma / (1 + \lambda_d \gamma t)^\alpha \\
              a_t &= a_{t-1} + \frac{p_t - a_{t-1}}{\max(1, t - 1 - t_0)}

    The average is the state's ``ax``. It is of the parameters as this transformation
    leaves them: put nothing after it in a chain.

    Args:
        lr: γ ≥ 0: a number, a scalar array, or a schedule.
        lambd: :math:`\lambda_d`, likewise: decays the weights, and the step.
        alpha: Likewise: the power by which the step decays.
        t0: :math:`t_0`, likewise: the step at which the average begins.
        weight_decay: λ ≥ 0, likewise. λp is added to the gradient.
        maximize: Step up the gradient. The weights still decay.

    Returns:
        A transformation. ``update`` needs the parameters.

    Raises:
        TypeError: A hyperparameter is no real scalar, or ``maximize`` no bool.
        ValueError: One is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer = asgd(0.1, t0=0)
        >>> params = jnp.array([1.0, 2.0])
        >>> state = optimizer.init(params)
        >>> for _ in range(3):
        ...     updates, state = optimizer.update(jnp.array([1.0, 0.0]), state, params)
        ...     params = params + updates
        >>> with jnp.printoptions(precision=4, suppress=True):
        ...     print(params, state.ax)
        [0.7 1.9999] [0.75 1.9999]

    Optax has no counterpart.

    References:
        Polyak and Juditsky, `Acceleration of stochastic approximation by averaging
        <https://doi.org/10.1137/0330046>`_, 1992. `torch.optim.ASGD
        <https://docs.pytorch.org/docs/stable/generated/torch.optim.ASGD.html>`_.
    """
    caller = "asgd"
    return transformation(
        _RULE,
        {
            "lr": check.at_least(caller, "lr", lr),
            "lambd": check.real(caller, "lambd", lambd),
            "alpha": check.real(caller, "alpha", alpha),
            "t0": check.real(caller, "t0", t0),
            "weight_decay": check.at_least(caller, "weight_decay", weight_decay),
        },
        needs_params=True,
        maximize=check.flag(caller, "maximize", maximize),
    )


def _slots(param: jax.Array, **_: Any) -> Arrays:
    return {"ax": jnp.zeros_like(param)}


def _vectors(*, lr: Any, **_: Any) -> Numbers:
    return {"eta": lr, "mu": 1.0}


def _clock(
    step: jax.Array,
    *,
    lr: Any,
    lambd: Any,
    alpha: Any,
    t0: Any,
    eta: jax.Array,
    mu: jax.Array,
    **_: Any,
) -> tuple[Arrays, Arrays]:
    # A parameter starts with the learning rate of its own first step.
    now = {"eta": jnp.where(step == 1, lr, eta), "mu": mu}
    kept = {
        "eta": lr * jnp.exp(-alpha * jnp.log1p(lambd * lr * step)),
        "mu": 1 / jnp.maximum(1, step - t0),
    }
    return now, kept


def _step(
    grad: jax.Array,
    param: jax.Array,
    *,
    lambd: Any,
    weight_decay: Any,
    maximize: bool,
    eta: jax.Array,
    mu: jax.Array,
    ax: jax.Array,
    **_: Any,
) -> tuple[jax.Array, Arrays]:
    grad = decayed(-grad if maximize else grad, param, weight_decay)
    update = -eta * (lambd * param + grad)
    moved = param + update
    return update, {"ax": jnp.where(mu == 1, moved, ax + mu * (moved - ax))}


_RULE = Rule("asgd", ASGDState, _step, slots=_slots, vectors=_vectors, clock=_clock)

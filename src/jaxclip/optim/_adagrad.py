"""Adagrad."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip.optim import _arguments as check
from jaxclip.optim._arguments import Hyperparameter
from jaxclip.optim._numbers import decayed, is_zero
from jaxclip.optim._rule import Arrays, Rule, transformation


class AdagradState(NamedTuple):
    """The state of `adagrad`.

    Attributes:
        count: int32 scalar: the updates so far.
        step: int32 of (parameters,): the steps that each parameter has taken.
        sum: The sum of squared gradients: a tree like the parameters, in at least
            float32.
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count
    step: jax.Array
    sum: Any


def adagrad(
    lr: Hyperparameter = 1e-2,
    lr_decay: Hyperparameter = 0.0,
    weight_decay: Hyperparameter = 0.0,
    initial_accumulator_value: Hyperparameter = 0.0,
    eps: Hyperparameter = 1e-10,
    *,
    maximize: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Divide gradients by the root of their squares' sum: ``torch.optim.Adagrad``.

    .. math:: s_t = s_{t-1} + g_t^2, \quad
              p \leftarrow p - \frac{\gamma}{1 + (t - 1) \eta} \,
              \frac{g_t}{\sqrt{s_t} + \epsilon}

    Args:
        lr: γ ≥ 0: a number, a scalar array, or a schedule.
        lr_decay: η ≥ 0, likewise.
        weight_decay: λ ≥ 0, likewise. λp is added to the gradient.
        initial_accumulator_value: :math:`s_0` ≥ 0, likewise, when ``init`` is called.
        eps: ε ≥ 0, likewise. It is outside of the root.
        maximize: Step up the gradient. The weights still decay.

    Returns:
        A transformation. ``update`` needs the parameters if weights decay.

    Raises:
        TypeError: A hyperparameter is no real scalar, or ``maximize`` no bool.
        ValueError: One is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer = adagrad(0.1)
        >>> params = jnp.array([1.0, 2.0])
        >>> updates, state = optimizer.update(
        ...     jnp.array([3.0, -0.01]), optimizer.init(params)
        ... )
        >>> with jnp.printoptions(precision=4, suppress=True):
        ...     print(params + updates)
        [0.9 2.1]

    Differs from ``optax.adagrad``: the sum starts at 0, not 0.1; ε is 1e-10, not 1e-7,
    and outside of the root.

    References:
        Duchi et al., `Adaptive Subgradient Methods
        <https://jmlr.org/papers/v12/duchi11a.html>`_, 2011. `torch.optim.Adagrad
        <https://docs.pytorch.org/docs/stable/generated/torch.optim.Adagrad.html>`_.
    """
    caller = "adagrad"
    initial = initial_accumulator_value
    return transformation(
        _RULE,
        {
            "lr": check.at_least(caller, "lr", lr),
            "lr_decay": check.at_least(caller, "lr_decay", lr_decay),
            "weight_decay": check.at_least(caller, "weight_decay", weight_decay),
            "initial": check.at_least(caller, "initial_accumulator_value", initial),
            "eps": check.at_least(caller, "eps", eps),
        },
        needs_params=not is_zero(weight_decay),
        maximize=check.flag(caller, "maximize", maximize),
    )


def _slots(param: jax.Array, *, initial: Any, **_: Any) -> Arrays:
    return {"sum": jnp.full_like(param, initial)}


def _clock(
    step: jax.Array, *, lr: Any, lr_decay: Any, **_: Any
) -> tuple[Arrays, Arrays]:
    return {"step_size": lr / (1 + (step - 1) * lr_decay)}, {}


def _step(
    grad: jax.Array,
    param: jax.Array | None,
    *,
    eps: Any,
    weight_decay: Any,
    maximize: bool,
    step_size: jax.Array,
    sum: jax.Array,
    **_: Any,
) -> tuple[jax.Array, Arrays]:
    grad = decayed(-grad if maximize else grad, param, weight_decay)
    total = sum + grad * grad
    return -step_size * (grad / (jnp.sqrt(total) + eps)), {"sum": total}


_RULE = Rule("adagrad", AdagradState, _step, slots=_slots, clock=_clock)

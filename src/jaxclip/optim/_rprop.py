"""Rprop."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip.optim import _arguments as check
from jaxclip.optim._arguments import Hyperparameter, Pair
from jaxclip.optim._rule import Arrays, Rule, transformation


class RpropState(NamedTuple):
    """The state of `rprop`.

    Attributes:
        count: int32 scalar: the updates so far.
        step: int32 of (parameters,): the steps that each parameter has taken.
        prev: The last gradients, 0 where one had turned: a tree like the parameters,
            in at least float32.
        step_size: The size of each element's next step, likewise.
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count
    step: jax.Array
    prev: Any
    step_size: Any


def rprop(
    lr: Hyperparameter = 1e-2,
    etas: Pair = (0.5, 1.2),
    step_sizes: Pair = (1e-6, 50.0),
    *,
    maximize: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Step by the signs of gradients alone: ``torch.optim.Rprop``.

    .. math:: s_t &= \operatorname{clip}\left(s_{t-1}
              \begin{cases} \eta_+ & g_t g_{t-1} > 0 \\ \eta_- & g_t g_{t-1} < 0 \\
              1 & g_t g_{t-1} = 0 \end{cases}, \; s_{min}, s_{max}\right) \\
              g_t &\leftarrow 0 \quad\text{where } g_t g_{t-1} < 0 \\
              p &\leftarrow p - s_t \operatorname{sign}(g_t)

    Args:
        lr: :math:`s_0` ≥ 0: a number, a scalar array, or a schedule, of which a
            parameter's first step is all that counts.
        etas: :math:`0 < \eta_- < 1 < \eta_+`, likewise.
        step_sizes: :math:`s_{min}` and :math:`s_{max}`, likewise.
        maximize: Step up the gradient.

    Returns:
        A transformation.

    Raises:
        TypeError: A hyperparameter is no real scalar, or ``maximize`` no bool.
        ValueError: One is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer = rprop(0.1)
        >>> params = jnp.array([1.0, 2.0])
        >>> state = optimizer.init(params)
        >>> for grads in (jnp.array([3.0, -0.01]), jnp.array([2.0, 0.01])):
        ...     updates, state = optimizer.update(grads, state)
        >>> print(updates, state.step_size)
        [-0.12 -0.  ] [0.12 0.05]

    Differs from ``optax.rprop``: steps by the gradient that it is given. Optax steps by
    the one before, and by 0 at first.

    Differs from torch: gradients agree by their signs, and in torch by their product,
    which is 0 for small ones.

    References:
        Riedmiller and Braun, `A Direct Adaptive Method for Faster Backpropagation
        Learning <https://doi.org/10.1109/ICNN.1993.298623>`_, 1993.
        `torch.optim.Rprop
        <https://docs.pytorch.org/docs/stable/generated/torch.optim.Rprop.html>`_.
    """
    caller = "rprop"
    etaminus, etaplus = check.pair(caller, "etas", etas, (0.5, 1.2))
    least, most = check.pair(caller, "step_sizes", step_sizes, (1e-6, 50.0))
    return transformation(
        _RULE,
        {
            "lr": check.at_least(caller, "lr", lr),
            "etaminus": check.inside(caller, "etas[0]", etaminus, 0, 1),
            "etaplus": check.inside(caller, "etas[1]", etaplus, 1, float("inf")),
            "least": check.real(caller, "step_sizes[0]", least),
            "most": check.real(caller, "step_sizes[1]", most),
        },
        needs_params=False,
        maximize=check.flag(caller, "maximize", maximize),
    )


def _slots(param: jax.Array, *, lr: Any, **_: Any) -> Arrays:
    return {"prev": jnp.zeros_like(param), "step_size": jnp.full_like(param, lr)}


def _clock(step: jax.Array, **_: Any) -> tuple[Arrays, Arrays]:
    return {"is_first": step == 1}, {}


def _step(
    grad: jax.Array,
    param: jax.Array | None,
    *,
    lr: Any,
    etaminus: Any,
    etaplus: Any,
    least: Any,
    most: Any,
    maximize: bool,
    is_first: jax.Array,
    prev: jax.Array,
    step_size: jax.Array,
    **_: Any,
) -> tuple[jax.Array, Arrays]:
    del param
    grad = -grad if maximize else grad
    # Of signs, as the product of small gradients may be 0.
    agreement = jnp.sign(grad) * jnp.sign(prev)
    factor = jnp.where(agreement > 0, etaplus, jnp.where(agreement < 0, etaminus, 1))
    # A parameter starts with the learning rate of its own first step.
    step_size = jnp.where(is_first, lr, step_size)
    step_size = jnp.clip(step_size * factor, least, most)
    grad = jnp.where(agreement < 0, 0, grad)
    return -step_size * jnp.sign(grad), {"prev": grad, "step_size": step_size}


_RULE = Rule("rprop", RpropState, _step, slots=_slots, clock=_clock)

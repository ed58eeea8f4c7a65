"""RMSprop."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip.optim import _arguments as check
from jaxclip.optim._arguments import Hyperparameter
from jaxclip.optim._numbers import average_square, decayed, is_zero, lerp
from jaxclip.optim._rule import Arrays, Rule, transformation


class RMSpropState(NamedTuple):
    """The state of `rmsprop`.

    Attributes:
        count: int32 scalar: the updates so far.
        step: int32 of (parameters,): the steps that each parameter has taken.
        square_avg: The average of squared gradients: a tree like the parameters, in
            at least float32.
        momentum_buffer: Likewise; None without momentum.
        grad_avg: The average of gradients, likewise; None if not centered.
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count
    step: jax.Array
    square_avg: Any
    momentum_buffer: Any
    grad_avg: Any


def rmsprop(
    lr: Hyperparameter = 1e-2,
    alpha: Hyperparameter = 0.99,
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 0.0,
    momentum: Hyperparameter = 0.0,
    centered: bool = False,
    *,
    maximize: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Divide gradients by the root of their mean square: ``torch.optim.RMSprop``.

    .. math:: v_t &= \alpha v_{t-1} + (1 - \alpha) g_t^2, \quad
              a_t = \alpha a_{t-1} + (1 - \alpha) g_t \\
              d_t &= \frac{g_t}{\sqrt{v} + \epsilon}, \quad
              v = \begin{cases} v_t - a_t^2 & \text{centered} \\ v_t \end{cases} \\
              b_t &= \mu b_{t-1} + d_t, \quad p \leftarrow p - \gamma b_t

    Args:
        lr: γ ≥ 0: a number, a scalar array, or a schedule.
        alpha: :math:`\alpha` ≥ 0, likewise.
        eps: ε ≥ 0, likewise. It is outside of the root.
        weight_decay: λ ≥ 0, likewise. λp is added to the gradient.
        momentum: μ ≥ 0, likewise.
        centered: Divide by the standard deviation instead.
        maximize: Step up the gradient. The weights still decay.

    Returns:
        A transformation. ``update`` needs the parameters if weights decay.

    Raises:
        TypeError: A hyperparameter is no real scalar, or a flag no bool.
        ValueError: One is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer = rmsprop(0.1)
        >>> params = jnp.array([1.0, 2.0])
        >>> updates, state = optimizer.update(
        ...     jnp.array([3.0, -0.01]), optimizer.init(params)
        ... )
        >>> with jnp.printoptions(precision=4, suppress=True):
        ...     print(params + updates)
        [-0.  3.]

    Differs from ``optax.rmsprop``: averages are over 100 steps, not 10; ε is outside of
    the root, as with ``eps_in_sqrt=False``; the momentum is of directions, and with
    Optax of steps, which a new learning rate leaves as they were.

    Differs from torch: a variance that rounding has made negative is 0, of whose root
    torch makes NaN.

    References:
        Hinton, `Lecture 6
        <https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf>`_,
        2012. Graves, `Generating Sequences With Recurrent Neural Networks
        <https://arxiv.org/abs/1308.0850>`_, 2013, centers. `torch.optim.RMSprop
        <https://docs.pytorch.org/docs/stable/generated/torch.optim.RMSprop.html>`_.
    """
    caller = "rmsprop"
    return transformation(
        _RULE,
        {
            "lr": check.at_least(caller, "lr", lr),
            "alpha": check.at_least(caller, "alpha", alpha),
            "eps": check.at_least(caller, "eps", eps),
            "weight_decay": check.at_least(caller, "weight_decay", weight_decay),
            "momentum": check.at_least(caller, "momentum", momentum),
        },
        needs_params=not is_zero(weight_decay),
        centered=check.flag(caller, "centered", centered),
        maximize=check.flag(caller, "maximize", maximize),
    )


def _slots(param: jax.Array, *, momentum: Any, centered: bool, **_: Any) -> Arrays:
    names = ["square_avg"]
    if not is_zero(momentum):
        names.append("momentum_buffer")
    if centered:
        names.append("grad_avg")
    return {name: jnp.zeros_like(param) for name in names}


def _step(
    grad: jax.Array,
    param: jax.Array | None,
    *,
    lr: Any,
    alpha: Any,
    eps: Any,
    weight_decay: Any,
    momentum: Any,
    maximize: bool,
    square_avg: jax.Array,
    momentum_buffer: jax.Array | None = None,
    grad_avg: jax.Array | None = None,
    **_: Any,
) -> tuple[jax.Array, Arrays]:
    grad = decayed(-grad if maximize else grad, param, weight_decay)
    square_avg = average_square(square_avg, grad, alpha)
    slots = {"square_avg": square_avg}
    variance = square_avg
    if grad_avg is not None:
        grad_avg = lerp(grad_avg, grad, 1 - alpha)
        slots["grad_avg"] = grad_avg
        # Which rounding can make negative, where a gradient has long been the same.
        variance = jnp.maximum(square_avg - grad_avg * grad_avg, 0)
    direction = grad / (jnp.sqrt(variance) + eps)
    if momentum_buffer is not None:
        direction = momentum * momentum_buffer + direction
        slots["momentum_buffer"] = direction
    return -lr * direction, slots


_RULE = Rule("rmsprop", RMSpropState, _step, slots=_slots)

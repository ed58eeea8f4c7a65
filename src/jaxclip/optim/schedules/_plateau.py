"""A learning rate that falls when a value stops improving: ReduceLROnPlateau."""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from jaxclip._core.arguments import check_choice
from jaxclip.optim.schedules._arguments import learning_rate, number, whole_number
from jaxclip.optim.schedules._arithmetic import float_dtype

Mode = Literal["min", "max"]
ThresholdMode = Literal["rel", "abs"]


class PlateauState(NamedTuple):
    """What `reduce_lr_on_plateau` remembers; scalars.

    Attributes:
        lr: The learning rate for the next update.
        best: The best value so far.
        num_bad_epochs: How many values in a row were no better. int32.
        cooldown_counter: How many more values pass before the next count. int32.
        count: Updates so far, with or without a value. int32.
    """

    lr: jax.Array
    best: jax.Array
    num_bad_epochs: jax.Array
    cooldown_counter: jax.Array
    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, as Optax's do


class _Settings(NamedTuple):
    mode: Mode
    factor: float
    patience: int
    threshold: float
    threshold_mode: ThresholdMode
    cooldown: int
    min_lr: float
    eps: float


def reduce_lr_on_plateau(
    base_lr: float | jax.Array,
    mode: Mode = "min",
    factor: float = 0.1,
    patience: int = 10,
    *,
    threshold: float = 1e-4,
    threshold_mode: ThresholdMode = "rel",
    cooldown: int = 0,
    min_lr: float = 0.0,
    eps: float = 1e-8,
    steps_per_epoch: int = 1,
) -> optax.GradientTransformationExtraArgs:
    r"""Reduce the learning rate when a value has stopped improving.

    .. math:: u_t \leftarrow \frac{\eta_t}{\eta_0}\, u_t, \qquad
              \eta_{t+1} = \max(\eta_t \cdot \text{factor}, \text{min\_lr})

    after more than ``patience`` values in a row that were no better than the best so
    far. It stands in a chain behind an optimizer of the learning rate ``base_lr``, and
    is exact where the update is proportional to it: for all of torch's optimizers but
    ``Rprop``, ``ASGD``, ``Adafactor`` and ``LBFGS``.

    ``update`` takes the value as ``value=``. It counts from the next update on, as
    torch's ``scheduler.step(value)`` after ``optimizer.step()``. Without a value the
    updates are scaled and nothing is learned; without updates, ``update((), state,
    value=value)``, the value is learned, which is ``scheduler.step(value)`` after an
    epoch.

    Args:
        base_lr: The learning rate of the optimizer, > 0.
        mode: Whether a better value is a smaller one, "min", or a larger one, "max".
        factor: What the learning rate is multiplied by, below 1.
        patience: How many values may be no better, ≥ 0.
        threshold: By how much a better value is better, of the best one or beyond it.
        threshold_mode: "rel" or "abs".
        cooldown: How many values after a reduction are not counted, ≥ 0.
        min_lr: The least learning rate.
        eps: A reduction by no more than this is not made.
        steps_per_epoch: With it, only the value of each such last update counts, for
            loops that hand over a value at every update.

    Returns:
        A transformation whose state is a `PlateauState`.

    Raises:
        TypeError: A number is no scalar, or one besides ``base_lr`` is traced; in
            ``update``: the value is no scalar.
        ValueError: An argument is out of range.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> optimizer = optax.sgd(0.1)
        >>> scheduler = reduce_lr_on_plateau(0.1, factor=0.5, patience=1)
        >>> state, scale = optimizer.init(jnp.zeros(1)), scheduler.init(jnp.zeros(1))
        >>> for validation_loss in [1.0, 1.0, 1.0, 1.0]:
        ...     for _ in range(3):  # the updates of an epoch
        ...         updates, state = optimizer.update(jnp.ones(1), state)
        ...         updates, scale = scheduler.update(updates, scale)
        ...     _, scale = scheduler.update((), scale, value=validation_loss)
        ...     print(f"{updates[0]:.3f}, then {scale.lr:.3f}")
        -0.100, then 0.100
        -0.100, then 0.100
        -0.100, then 0.050
        -0.050, then 0.050

    Differs from ``optax.contrib.reduce_on_plateau``, by which a value counts for the
    update that it comes with, and a plateau of ``patience`` values is long enough; it
    has a least scale, not a least learning rate, no ``eps`` and no mode "max".
    """
    caller = "reduce_lr_on_plateau"
    check_choice(caller, "mode", mode, get_args(Mode))
    check_choice(caller, "threshold_mode", threshold_mode, get_args(ThresholdMode))
    start = learning_rate(caller, "base_lr", base_lr)
    if not isinstance(start, jax.Array) and start == 0:
        raise ValueError(
            f"{caller}(base_lr=0): expected a number above 0, as updates are scaled by "
            "the learning rate over it."
        )
    if not (known := number(caller, "factor", factor)) < 1:
        raise ValueError(f"{caller}(factor={known:g}): expected a number below 1.")
    settings = _Settings(
        mode=mode,
        factor=known,
        patience=whole_number(caller, "patience", patience, least=0),
        threshold=number(caller, "threshold", threshold),
        threshold_mode=threshold_mode,
        cooldown=whole_number(caller, "cooldown", cooldown, least=0),
        min_lr=number(caller, "min_lr", min_lr),
        eps=number(caller, "eps", eps),
    )
    period = whole_number(caller, "steps_per_epoch", steps_per_epoch)

    def init(params: optax.Params) -> PlateauState:
        del params
        zero = jnp.zeros((), jnp.int32)
        worst = float("inf") if mode == "min" else float("-inf")
        lr, best = (jnp.asarray(each, float_dtype()) for each in (start, worst))
        return PlateauState(lr, best, zero, zero, zero)

    def update(
        updates: optax.Updates,
        state: PlateauState,
        params: optax.Params | None = None,
        *,
        value: jax.Array | float | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, PlateauState]:
        del params, extra_args
        scale = state.lr / start
        scaled = jax.tree.map(lambda leaf: _scaled(leaf, scale), updates)
        if jax.tree.leaves(updates):
            state = state._replace(count=optax.safe_increment(state.count))
        if value is None:
            return scaled, state
        if jnp.shape(value) != ():
            raise TypeError(
                f"{caller}: update got a value of shape {jnp.shape(value)}, expected a "
                "scalar: the loss or the metric to watch."
            )
        learned = _step(state, jnp.asarray(value, state.best.dtype), settings)
        counts = state.count % period == 0
        return scaled, jax.tree.map(
            lambda new, old: jnp.where(counts, new, old), learned, state
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _scaled(leaf: jax.Array, scale: jax.Array) -> jax.Array:
    wide = leaf.astype(jnp.promote_types(leaf.dtype, scale.dtype))
    return (wide * scale.astype(wide.dtype)).astype(leaf.dtype)


def _step(state: PlateauState, value: jax.Array, settings: _Settings) -> PlateauState:
    """Learn a value, as torch's scheduler does."""
    better = _is_better(value, state.best, settings)
    bad = jnp.where(better, 0, state.num_bad_epochs + 1)
    cooling = state.cooldown_counter > 0
    bad = jnp.where(cooling, 0, bad)
    cooldown = state.cooldown_counter - cooling

    reduced = jnp.maximum(state.lr * settings.factor, settings.min_lr)
    over = bad > settings.patience
    enough = state.lr - reduced > settings.eps
    return PlateauState(
        lr=jnp.where(over & enough, reduced, state.lr),
        best=jnp.where(better, value, state.best),
        num_bad_epochs=jnp.where(over, 0, bad),
        cooldown_counter=jnp.where(over, settings.cooldown, cooldown),
        count=state.count,
    )


def _is_better(value: jax.Array, best: jax.Array, settings: _Settings) -> jax.Array:
    sign = 1.0 if settings.mode == "max" else -1.0
    if settings.threshold_mode == "rel":
        bar = best * (1.0 + sign * settings.threshold)
    else:
        bar = best + sign * settings.threshold
    return value > bar if settings.mode == "max" else value < bar

"""A line search to the strong Wolfe conditions, as torch's L-BFGS has it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxclip.optim._vectors import (
    Evaluate,
    Vector,
    along,
    choose,
    dot,
    largest_magnitude,
)

# How much of the slope a decrease has to have, and what may be left of the slope.
DECREASE, CURVATURE = 1e-4, 0.9


class Trial(NamedTuple):
    """A point on the line, at ``start + t · direction``.

    Attributes:
        t: Where it is.
        value: The value there.
        slope: The derivative along the line.
        grad: The gradient.
    """

    t: jax.Array
    value: jax.Array
    slope: jax.Array
    grad: Vector


class _Bracket(NamedTuple):
    """Two trials with a minimum in between.

    torch keeps them in the order in which they were found, and takes the first for the
    lower one where both are as low.
    """

    first: Trial
    second: Trial
    first_is_low: jax.Array

    @property
    def low(self) -> Trial:
        trial: Trial = choose(self.first_is_low, self.first, self.second)
        return trial

    @property
    def high(self) -> Trial:
        trial: Trial = choose(self.first_is_low, self.second, self.first)
        return trial

    def with_high(self, trial: Trial) -> "_Bracket":
        """Put a trial in the place of the higher one, and see which is lower now."""
        first: Trial = choose(self.first_is_low, self.first, trial)
        second: Trial = choose(self.first_is_low, trial, self.second)
        return _Bracket(first, second, first.value <= second.value)

    def with_low(self, low: Trial, high: Trial) -> "_Bracket":
        """Put a trial in the place of the lower one, where it is the lower one too."""
        return _Bracket(
            choose(self.first_is_low, low, high),
            choose(self.first_is_low, high, low),
            self.first_is_low,
        )


# How many trials there were after the first, and the last two.
_Search = tuple[jax.Array, Trial, Trial]
# How many, the bracket, whether the last step was little, and whether all is done.
_Zoom = tuple[jax.Array, _Bracket, jax.Array, jax.Array]


def strong_wolfe(
    evaluate: Evaluate,
    point: Vector,
    direction: Vector,
    start: Trial,
    t: jax.Array,
    *,
    max_trials: jax.Array,
    tolerance_change: jax.Array,
) -> tuple[Trial, jax.Array]:
    """Find how far to go along a line.

    Args:
        evaluate: The function that is minimised.
        point: Where the line starts.
        direction: Where it goes.
        start: The trial at ``t = 0``.
        t: Where to look first.
        max_trials: How many points to look at after the first one.
        tolerance_change: Of which size a step is too small to be made out.

    Returns:
        Where to go, and how often the function was evaluated.
    """

    def trial_at(t: jax.Array) -> Trial:
        value, grad = evaluate(along(point, t, direction))
        return Trial(t, value, dot(grad, direction), grad)

    def is_high(trial: Trial) -> jax.Array:
        return trial.value > start.value + DECREASE * trial.t * start.slope

    def is_flat(trial: Trial) -> jax.Array:
        return jnp.abs(trial.slope) <= -CURVATURE * start.slope

    def is_past(search: _Search) -> jax.Array:
        """Whether a minimum lies between the last two trials."""
        count, previous, trial = search
        not_lower = (count > 1) & (trial.value >= previous.value)
        return is_high(trial) | not_lower

    def goes_on(search: _Search) -> jax.Array:
        count, _, trial = search
        found = is_past(search) | is_flat(trial) | (trial.slope >= 0)
        return (count < max_trials) & ~found

    def farther(search: _Search) -> _Search:
        count, previous, trial = search
        least = trial.t + 0.01 * (trial.t - previous.t)
        t = _minimum_of_cubic(previous, trial, least, trial.t * 10)
        return count + 1, trial, trial_at(t)

    first = (jnp.zeros((), jnp.int32), start, trial_at(t))
    search = lax.while_loop(goes_on, farther, first)
    count, previous, trial = search
    exhausted = count == max_trials
    done = ~exhausted & ~is_past(search) & is_flat(trial)

    before: Trial = choose(exhausted, start, previous)
    # Where the search is over, it is over at the last trial.
    before = choose(done, trial, before)
    bracket = _Bracket(before, trial, before.value <= trial.value)
    size = largest_magnitude(direction)

    def is_to_narrow(zoom: _Zoom) -> jax.Array:
        count, bracket, _, done = zoom
        width = jnp.abs(bracket.second.t - bracket.first.t)
        return ~done & (count < max_trials) & ~(width * size < tolerance_change)

    def narrow(zoom: _Zoom) -> _Zoom:
        count, bracket, is_slow, _ = zoom
        t, is_slow = _inside(bracket, is_slow)
        trial = trial_at(t)
        low, high = bracket.low, bracket.high
        is_lower = ~is_high(trial) & ~(trial.value >= low.value)
        done = is_lower & is_flat(trial)
        turns = ~done & (trial.slope * (high.t - low.t) >= 0)
        bracket = choose(
            is_lower,
            bracket.with_low(trial, choose(turns, low, high)),
            bracket.with_high(trial),
        )
        return count + 1, bracket, is_slow, done

    zoom = (count, bracket, jnp.zeros((), bool), done)
    count, bracket, *_ = lax.while_loop(is_to_narrow, narrow, zoom)
    return bracket.low, count + 1


def _inside(bracket: _Bracket, is_slow: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return where to look in a bracket, and whether that is a little step.

    Of two little steps in a row, or of one onto an end, the second is made a tenth of
    the bracket.
    """
    left = jnp.minimum(bracket.first.t, bracket.second.t)
    right = jnp.maximum(bracket.first.t, bracket.second.t)
    t = _minimum_of_cubic(bracket.first, bracket.second, left, right)
    margin = 0.1 * (right - left)
    is_near = jnp.minimum(right - t, t - left) < margin
    is_moved = is_near & (is_slow | (t >= right) | (t <= left))
    nearer_right = jnp.abs(t - right) < jnp.abs(t - left)
    away = jnp.where(nearer_right, right - margin, left + margin)
    return jnp.where(is_moved, away, t), is_near & ~is_moved


def _minimum_of_cubic(
    one: Trial, other: Trial, least: jax.Array, most: jax.Array
) -> jax.Array:
    """Return where the cubic through two trials has its minimum, within bounds.

    The middle of the bounds, if it has none.
    """
    in_order = one.t <= other.t
    left: Trial = choose(in_order, one, other)
    right: Trial = choose(in_order, other, one)
    width = right.t - left.t
    middle = left.slope + right.slope - 3 * (right.value - left.value) / width
    square = middle**2 - left.slope * right.slope
    root = jnp.sqrt(jnp.where(square >= 0, square, 0.0))
    share = (right.slope + root - middle) / (right.slope - left.slope + 2 * root)
    within = jnp.minimum(jnp.maximum(right.t - width * share, least), most)
    return jnp.where(square >= 0, within, (least + most) / 2)

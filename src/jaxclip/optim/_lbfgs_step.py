"""One step of torch's L-BFGS: iterations, each with a direction and how far to go."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxclip.optim._strong_wolfe import Trial, strong_wolfe
from jaxclip.optim._vectors import (
    Evaluate,
    Vector,
    along,
    dot,
    largest_magnitude,
    minus,
    scaled,
    sum_of_magnitudes,
)


class Memory(NamedTuple):
    """What is kept from one iteration to the next, and from one step to the next.

    Attributes:
        n_iter: The iterations so far.
        d: The last direction.
        t: How far it was followed.
        old_dirs: Differences of gradients, each array with an axis more, of history.
        old_stps: The steps between them, likewise.
        ro: One over the product of each difference and its step.
        H_diag: The scale of the first approximation of the inverse Hessian.
        prev_flat_grad: The gradient at the start of the last iteration.
        prev_loss: The value there.
        stored: The pairs that were kept so far. The last lies at
            ``(stored - 1) % history_size``.
    """

    n_iter: jax.Array
    d: Vector
    t: jax.Array
    old_dirs: Vector
    old_stps: Vector
    ro: jax.Array
    H_diag: jax.Array
    prev_flat_grad: Vector
    prev_loss: jax.Array
    stored: jax.Array


class Settings(NamedTuple):
    """The arguments of `lbfgs`, and whether it searches along the line."""

    lr: jax.Array
    tolerance_grad: jax.Array
    tolerance_change: jax.Array
    max_iter: int
    max_eval: int
    searches: bool


class _Iterate(NamedTuple):
    point: Vector
    loss: jax.Array
    grad: Vector
    memory: Memory
    iterations: jax.Array
    evaluations: jax.Array
    is_over: jax.Array


def step(
    evaluate: Evaluate | None,
    point: Vector,
    loss: jax.Array,
    grad: Vector,
    memory: Memory,
    settings: Settings,
) -> tuple[Vector, Memory, jax.Array]:
    """Take the iterations of one step, from the value and the gradient at a point.

    Args:
        evaluate: The function that is minimised; None where there is one iteration,
            without a search.
        point: Where to start.
        loss: The value there.
        grad: The gradient there.
        memory: What is kept of the steps before.
        settings: The arguments.

    Returns:
        The new point, what is kept, and how often the function was evaluated, its
        value and gradient at the start among them.
    """
    start = _Iterate(
        point,
        loss,
        grad,
        memory,
        iterations=jnp.zeros((), jnp.int32),
        evaluations=jnp.ones((), jnp.int32),
        is_over=largest_magnitude(grad) <= settings.tolerance_grad,
    )
    end = lax.while_loop(
        lambda now: ~now.is_over & (now.iterations < settings.max_iter),
        lambda now: _iterate(evaluate, now, settings),
        start,
    )
    return end.point, end.memory, end.evaluations


def _iterate(evaluate: Evaluate | None, now: _Iterate, settings: Settings) -> _Iterate:
    grad, loss = now.grad, now.loss
    memory = _remember(now.memory, grad)
    d = _direction(memory, grad)
    n_iter = memory.n_iter + 1
    first = jnp.minimum(1.0, 1.0 / sum_of_magnitudes(grad)) * settings.lr
    t = jnp.where(n_iter == 1, first, settings.lr)
    memory = memory._replace(
        n_iter=n_iter, d=d, t=t, prev_flat_grad=grad, prev_loss=loss
    )
    slope = dot(grad, d)
    now = now._replace(memory=memory, iterations=now.iterations + 1)
    after: _Iterate = lax.cond(
        slope > -settings.tolerance_change,
        lambda now: now._replace(is_over=jnp.ones((), bool)),
        lambda now: _follow(evaluate, now, slope, settings),
        now,
    )
    return after


def _follow(
    evaluate: Evaluate | None, now: _Iterate, slope: jax.Array, settings: Settings
) -> _Iterate:
    """Follow the direction, as far as is set or as a search finds."""
    d, t = now.memory.d, now.memory.t
    loss, grad, evaluations = now.loss, now.grad, now.evaluations
    if evaluate is not None and settings.searches:
        origin = Trial(jnp.zeros_like(t), loss, slope, grad)
        found, more = strong_wolfe(
            evaluate,
            now.point,
            d,
            origin,
            t,
            max_trials=settings.max_eval - evaluations,
            tolerance_change=settings.tolerance_change,
        )
        t, loss, grad = found.t, found.value, found.grad
        evaluations += more
        point = along(now.point, t, d)
    else:
        point = along(now.point, t, d)
        if evaluate is not None:
            is_last = now.iterations == settings.max_iter
            loss, grad = lax.cond(is_last, lambda _: (loss, grad), evaluate, point)
            evaluations += 1 - is_last.astype(jnp.int32)

    is_over = (
        (evaluations >= settings.max_eval)
        | (largest_magnitude(grad) <= settings.tolerance_grad)
        | (largest_magnitude(scaled(d, t)) <= settings.tolerance_change)
        | (jnp.abs(loss - now.memory.prev_loss) < settings.tolerance_change)
    )
    return _Iterate(
        point,
        loss,
        grad,
        now.memory._replace(t=t),
        now.iterations,
        evaluations,
        is_over,
    )


def _remember(memory: Memory, grad: Vector) -> Memory:
    """Keep the last step and the difference that it made, if they curve upwards.

    Before the first iteration the direction is 0, and nothing is kept.
    """
    difference = minus(grad, memory.prev_flat_grad)
    stride = scaled(memory.d, memory.t)
    product = dot(difference, stride)
    curves = product > 1e-10
    place = memory.stored % memory.ro.size

    def put(kept: jax.Array, new: jax.Array) -> jax.Array:
        return kept.at[place].set(jnp.where(curves, new, kept[place]))

    scale = product / dot(difference, difference)
    return memory._replace(
        old_dirs=list(map(put, memory.old_dirs, difference)),
        old_stps=list(map(put, memory.old_stps, stride)),
        ro=put(memory.ro, 1.0 / product),
        H_diag=jnp.where(curves, scale, memory.H_diag),
        stored=memory.stored + curves.astype(jnp.int32),
    )


def _direction(memory: Memory, grad: Vector) -> Vector:
    """Multiply the gradient by minus the inverse Hessian, as far as it is known."""
    size = memory.ro.size
    count = jnp.minimum(memory.stored, size)

    def pair(place: jax.Array) -> tuple[Vector, Vector, jax.Array]:
        return (
            [array[place] for array in memory.old_dirs],
            [array[place] for array in memory.old_stps],
            memory.ro[place],
        )

    def back(index: Any, carry: Any) -> Any:
        q, shares = carry
        place = (memory.stored - 1 - index) % size
        difference, stride, ro = pair(place)
        share = dot(stride, q) * ro
        return along(q, -share, difference), shares.at[place].set(share)

    def forth(index: Any, r: Vector) -> Vector:
        place = (memory.stored - count + index) % size
        difference, stride, ro = pair(place)
        return along(r, shares[place] - dot(difference, r) * ro, stride)

    q, shares = lax.fori_loop(
        0, count, back, (scaled(grad, -1.0), jnp.zeros_like(memory.ro))
    )
    r: Vector = lax.fori_loop(0, count, forth, scaled(q, memory.H_diag))
    return r

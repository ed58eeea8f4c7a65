"""What every clip's Optax transformation shares."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import optax

from jaxclip._core.arguments import Scalar, check_threshold
from jaxclip._core.dispatch import call_compiled
from jaxclip._core.leaves import split_leaves
from jaxclip._core.nonfinite import Nonfinite, check_nonfinite, settle_nonfinite
from jaxclip._core.paths import Where, restrict
from jaxclip._core.scaling import Clipped

Schedule = Callable[[jax.Array], Scalar]
Threshold = Scalar | Schedule
State = TypeVar("State")
# (updates, params) -> arrays to hand to a step, and compile-time constants.
Extras = Callable[[Any, Any], tuple[tuple[Any, ...], dict[str, Any]]]


def transformation(
    caller: str,
    init: Callable[[optax.Params], State],
    step: Callable[..., tuple[Clipped, State]],
    settings: Any,
    *,
    check: Callable[[Any, list[jax.Array], str], None] | None = None,
    extras: Extras | None = None,
    where: Where | None = None,
    nonfinite: Nonfinite = "propagate",
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    """Make a transformation of a step, which runs as one compiled program.

    Args:
        caller: The public function's name, for errors.
        init: ``init(params) -> state``, of those parameters that ``where`` says. The
            state is a `ClipState` or holds one as ``clip``.
        step: ``step(leaves, settings, state, *arrays, **options) -> (Clipped, state)``,
            defined at module level.
        settings: A tree of numbers, each of which may be traced, and of schedules.
        check: Further refuses trees: ``check(updates, leaves, caller)``.
        extras: Makes more arguments for ``step`` of the updates and the parameters.
        where: Which leaves to clip; the others pass as they are.
        nonfinite: What becomes of a step that is not finite.
        **options: Compile-time constants, hashable.
    """
    policy = check_nonfinite(caller, nonfinite)

    def init_part(params: optax.Params) -> State:
        return init(restrict(params, where, caller)[0])

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        del extra_args
        part, restore = restrict(updates, where, caller)
        leaves, rebuild = split_leaves(part, caller)
        if check is not None:
            check(part, leaves, caller)
        arrays, constants = extras(part, params) if extras is not None else ((), {})
        clipped, new_state = call_compiled(
            step,
            leaves,
            _at_step(settings, getattr(state, "clip", state).count),
            state,
            *arrays,
            **constants,
            **options,
        )
        settled = settle_nonfinite(
            part, clipped.leaves, clipped.finite, nonfinite=policy, caller=caller
        )
        return restore(rebuild(settled)), new_state

    return optax.GradientTransformationExtraArgs(init_part, update)


def checked_threshold(caller: str, name: str, threshold: Threshold) -> Threshold:
    """Refuse a threshold that is not a scalar ≥ 0; a schedule's, when it is called."""
    if not callable(threshold):
        return check_threshold(caller, name, threshold)
    return lambda count: check_threshold(caller, name, threshold(count))


def _at_step(settings: Any, count: jax.Array) -> Any:
    """Return the settings, each schedule in them called with the steps so far."""
    return jax.tree.map(
        lambda value: value(count) if callable(value) else value, settings
    )

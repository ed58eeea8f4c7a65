"""From the mathematics of one parameter's step to an Optax transformation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxclip._core.dispatch import call_compiled
from jaxclip._core.leaves import accumulation_dtype, is_inexact, split_leaves
from jaxclip._core.paths import path_name
from jaxclip._core.sums import unstack
from jaxclip.optim._arguments import Hyperparameter

Arrays = dict[str, jax.Array]
Slots = Mapping[str, jax.Array | None]
Numbers = dict[str, Any]


@dataclass(frozen=True)
class Rule:
    """An optimizer: what it keeps of each parameter, and how it steps.

    Its functions are defined at module level. They are given hyperparameters by name,
    and take those that they do not use as ``**_``. A hyperparameter that was given as
    a Python number is one here, so that what is computed of it alone is exact;
    otherwise it is a scalar array, in the dtype of what is computed. A complex
    parameter is a real one to them, with an axis more, of 2, as in torch.

    Attributes:
        name: The public function, for errors.
        state: A ``NamedTuple`` of ``count``, ``step``, and what ``slots`` and
            ``vectors`` make, under the names of torch's state. A field that they do
            not make is None.
        step: ``step(grad, param, **numbers) -> (update, slots)``, in at least float32:
            the numbers are hyperparameters, what is kept of the parameter, and its
            own element of what ``clock`` returned. ``param`` is None where the
            transformation is called without.
        slots: ``slots(param, **hyperparameters)``: what is kept of a parameter, in
            the dtype of ``param``, which is at least float32. The names are the same
            for all parameters; None where one keeps nothing of the name.
        vectors: ``vectors(**hyperparameters)``: scalars that are kept of each
            parameter, all in one array.
        clock: ``clock(step, **numbers) -> (now, kept)``, all of them arrays of
            (parameters,): from the number of each parameter's step, the first being
            1, what its ``step`` is given, and the new ``vectors``. The numbers are
            hyperparameters and the old ``vectors``.
        of_leaf: ``of_leaf(path, array, **numbers)``: compile-time constants of a
            parameter, or of its gradient where the transformation is called without,
            in its own dtype. ``slots`` and ``step`` are given them; what a rule cannot
            take is refused here.
    """

    name: str
    state: Any
    step: Callable[..., tuple[jax.Array, Arrays]]
    slots: Callable[..., Slots] = lambda param, **_: {}
    vectors: Callable[..., Numbers] = lambda **_: {}
    clock: Callable[..., tuple[Arrays, Arrays]] = lambda step, **_: ({}, {})
    of_leaf: Callable[..., Numbers] = lambda path, array, **_: {}


def transformation(
    rule: Rule,
    hyperparameters: Mapping[str, Hyperparameter],
    *,
    needs_params: bool,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    """Make the Optax transformation of a rule.

    ``count`` in its state is the number of updates, of which schedules are functions.
    ``step`` is the number that each parameter has taken part in, as torch counts: a
    gradient that is None is absent, and its parameter stays as it is, with all that
    is kept of it. An optimizer that keeps nothing of its parameters has no ``step``.

    What is kept, and computed, is in float32 or float64; an update has the dtype of
    its parameter, or of its gradient where there are no parameters.

    Args:
        rule: The optimizer.
        hyperparameters: Numbers, scalar arrays and schedules, which are checked.
        needs_params: Whether a step depends on the parameters.
        **options: Compile-time constants, which the rule's functions are given too.
    """

    def init(params: optax.Params) -> Any:
        return _init(rule, params, {**_at(hyperparameters, 0), **options})

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        del extra_args
        if needs_params and params is None and jax.tree.leaves(updates):
            raise ValueError(
                f"{rule.name}: expected the parameters, got None. Call "
                "update(updates, state, params)."
            )
        numbers = {**_at(hyperparameters, state.count), **options}
        constants = {k: v for k, v in numbers.items() if not isinstance(v, jax.Array)}
        arrays = {k: v for k, v in numbers.items() if k not in constants}
        stepped: tuple[optax.Updates, Any] = call_compiled(
            _update,
            *(updates, state, params, arrays),
            rule=rule,
            constants=tuple(constants.items()),
        )
        return stepped

    return optax.GradientTransformationExtraArgs(init, update)


def _at(hyperparameters: Mapping[str, Hyperparameter], count: Any) -> Numbers:
    """Return the numbers, each schedule among them called with the count of updates."""
    return {
        # An array even where a schedule returns a number, which is not known to stay.
        name: jnp.asarray(value(jnp.asarray(count, jnp.int32)))
        if callable(value)
        else value
        for name, value in hyperparameters.items()
    }


def _init(rule: Rule, params: optax.Params, numbers: Numbers) -> Any:
    leaves, treedef = _flatten(params)
    trained = [leaf for leaf in leaves if _is_trained(leaf)]
    dtype = accumulation_dtype(trained)

    def slots(param: jax.Array, **own: Any) -> Slots:
        view = _RealView.of(param)
        kept = rule.slots(view.take(param), **_cast(numbers, view.dtype), **own)
        return {name: _map_some(view.give, value) for name, value in kept.items()}

    # Known without parameters, as Optax looks at states of trees that have none.
    names = jax.eval_shape(slots, jax.ShapeDtypeStruct((), dtype))
    kept = [
        slots(leaf, **rule.of_leaf(name, leaf, **numbers)) if _is_trained(leaf) else {}
        for name, leaf in zip(_names(params), leaves, strict=True)
    ]
    vectors = rule.vectors(**_cast(numbers, dtype))
    fields = {
        "count": jnp.zeros((), jnp.int32),
        "step": jnp.zeros((len(trained),), jnp.int32) if names else None,
        **{name: treedef.unflatten([own.get(name) for own in kept]) for name in names},
        **{n: jnp.full((len(trained),), v, dtype) for n, v in vectors.items()},
    }
    return rule.state(**{**dict.fromkeys(rule.state._fields), **fields})


def _update(
    updates: optax.Updates,
    state: Any,
    params: optax.Params | None,
    arrays: Arrays,
    *,
    rule: Rule,
    constants: tuple[tuple[str, Any], ...],
) -> tuple[optax.Updates, Any]:
    numbers = {**arrays, **dict(constants)}
    vectors = {n: getattr(state, n) for n in rule.vectors(**numbers)}
    names = [
        name
        for name, value in state._asdict().items()
        if value is not None and name not in ("count", "step", *vectors)
    ]
    leaves, treedef = _leaves(rule.name, updates, params, state, names)
    now, step, kept = _tick(rule, leaves, state.step, vectors, numbers)

    shapes = [np.shape(leaf.grad) for leaf in leaves if leaf.is_held]
    scalars = {name: iter(unstack(vector, shapes)) for name, vector in now.items()}
    new_updates, new_slots = [], []
    for leaf in leaves:
        own = {name: next(s) for name, s in scalars.items()} if leaf.is_held else {}
        update, slots = _step(rule, leaf, {**numbers, **own})
        new_updates.append(update)
        new_slots.append(slots)

    new_state = state._replace(
        count=optax.safe_increment(state.count),
        step=step,
        **{n: treedef.unflatten([slots[n] for slots in new_slots]) for n in names},
        **kept,
    )
    return treedef.unflatten(new_updates), new_state


class _Leaf(NamedTuple):
    """A gradient, its parameter, and what is kept of it; each None if there is none."""

    name: str
    grad: Any
    param: Any
    slots: dict[str, Any]

    @property
    def is_held(self) -> bool:
        """Whether the parameter has a place in the arrays of (parameters,)."""
        return any(value is not None for value in self.slots.values())

    @property
    def is_present(self) -> bool:
        return _is_trained(self.grad)


def _leaves(
    caller: str, updates: Any, params: Any, state: Any, names: Sequence[str]
) -> tuple[list[_Leaf], Any]:
    """Bring together what belongs to each gradient."""
    split_leaves(updates, caller)  # refuses integers, which would be added as they are
    grads, treedef = _flatten(updates)

    def aligned(tree: Any, name: str) -> list[Any]:
        try:
            return list(treedef.flatten_up_to(tree))
        except ValueError as error:
            raise ValueError(
                f"{caller}: expected gradients of the structure of the {name}, with "
                f"None where one is absent. {error}"
            ) from None

    weights = [None] * len(grads) if params is None else aligned(params, "parameters")
    columns = [aligned(getattr(state, name), f"state's {name}") for name in names]
    slots = [
        dict(zip(names, row, strict=True))
        for row in (zip(*columns, strict=True) if names else [()] * len(grads))
    ]
    leaves = list(map(_Leaf, _names(updates), grads, weights, slots))
    for leaf in leaves:
        given, expected = np.shape(leaf.grad), np.shape(leaf.param)
        if leaf.is_present and leaf.param is not None and given != expected:
            raise ValueError(
                f"{caller}: the gradient {leaf.name!r} has the shape {given}, "
                f"and its parameter {expected}; expected the same shape."
            )
    return leaves, treedef


def _tick(
    rule: Rule,
    leaves: Sequence[_Leaf],
    step: jax.Array | None,
    vectors: Arrays,
    numbers: Numbers,
) -> tuple[Arrays, jax.Array | None, Arrays]:
    """Count a step of the parameters whose gradients are present."""
    if step is None:
        return {}, None, vectors
    dtype = accumulation_dtype([leaf.grad for leaf in leaves])
    present = np.array([leaf.is_present for leaf in leaves if leaf.is_held], bool)
    counted = jnp.where(present, optax.safe_increment(step), step)
    # The step of a parameter that never had a gradient is not used, but divided by.
    time = lax.convert_element_type(jnp.maximum(counted, 1), dtype)
    now, new = rule.clock(time, **_cast({**numbers, **vectors}, dtype))
    kept = {
        name: jnp.where(present, new[name].astype(old.dtype), old)
        for name, old in vectors.items()
    }
    return now, counted, kept


def _step(rule: Rule, leaf: _Leaf, numbers: Numbers) -> tuple[Any, dict[str, Any]]:
    """Return a parameter's update, and what is kept of it."""
    known = [x for x in (leaf.param, *leaf.slots.values()) if _is_trained(x)]
    if not leaf.is_present:
        absent = leaf.grad is None and known
        return jnp.zeros_like(known[0]) if absent else leaf.grad, leaf.slots
    view = _RealView.of(leaf.grad, *known)
    like = leaf.grad if leaf.param is None else leaf.param
    update, kept = rule.step(
        view.take(leaf.grad),
        _map_some(view.take, leaf.param),
        **_cast(numbers, view.dtype),
        **rule.of_leaf(leaf.name, like, **numbers),
        **{name: _map_some(view.take, value) for name, value in leaf.slots.items()},
    )
    slots = {
        name: None if old is None else view.give(kept[name]).astype(old.dtype)
        for name, old in leaf.slots.items()
    }
    return view.give(update).astype(like.dtype), slots


class _RealView(NamedTuple):
    """How arrays are seen in a step: in a wide dtype, and complex ones as real ones."""

    is_complex: bool
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, *arrays: Any) -> "_RealView":
        return cls(any(map(jnp.iscomplexobj, arrays)), accumulation_dtype(arrays))

    def take(self, array: jax.Array) -> jax.Array:
        if self.is_complex:
            array = jnp.stack([array.real, array.imag], axis=-1)
        return lax.convert_element_type(array, self.dtype)

    def give(self, array: jax.Array) -> jax.Array:
        return lax.complex(array[..., 0], array[..., 1]) if self.is_complex else array


def _cast(numbers: Numbers, dtype: Any) -> Numbers:
    return {
        name: value.astype(dtype) if isinstance(value, jax.Array) else value
        for name, value in numbers.items()
    }


def _flatten(tree: Any) -> tuple[list[Any], Any]:
    return jax.tree.flatten(tree, is_leaf=_is_none)


def _names(tree: Any) -> list[str]:
    """Return the paths of the leaves of `_flatten`."""
    paths = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_none)
    return [path_name(path) for path, _ in paths]


def _map_some(function: Callable[[Any], Any], value: Any) -> Any:
    return None if value is None else function(value)


def _is_none(node: Any) -> bool:
    return node is None


def _is_trained(leaf: Any) -> bool:
    return is_inexact(getattr(leaf, "dtype", None))

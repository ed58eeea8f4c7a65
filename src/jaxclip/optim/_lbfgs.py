"""L-BFGS."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip._core.arguments import Scalar, check_choice, check_scalar
from jaxclip._core.dispatch import call_compiled
from jaxclip._core.leaves import split_leaves
from jaxclip.optim import _arguments as check
from jaxclip.optim._arguments import Hyperparameter
from jaxclip.optim._layout import refuse_complex
from jaxclip.optim._lbfgs_step import Memory, Settings, step
from jaxclip.optim._vectors import Evaluate, TreeOfVector, Vector

ValueFn = Callable[[Any], Any]


class LBFGSState(NamedTuple):
    """The state of `lbfgs`: torch's, in trees like the parameters.

    All is in one dtype, float32 or float64 if a parameter is of it.

    Attributes:
        count: int32 scalar: the updates so far.
        func_evals: int32 scalar: how often the function was evaluated, with the value
            and gradient that ``update`` is given among them.
        n_iter: int32 scalar: the iterations so far.
        d: The last direction.
        t: Scalar: how far it was followed.
        old_dirs: The last differences of gradients: each array has an axis of
            (history_size,) before those of the parameter.
        old_stps: The steps between these gradients, likewise.
        ro: (history_size,): one over the product of each difference and its step.
        H_diag: Scalar: the first approximation of the inverse Hessian.
        prev_flat_grad: The gradient at the start of the last iteration.
        prev_loss: Scalar: the value there, as far as it was ever given.
        stored: int32 scalar: the differences that were kept so far. The last one lies
            at ``(stored - 1) % history_size``.
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count
    func_evals: jax.Array
    n_iter: jax.Array
    d: Any
    t: jax.Array
    old_dirs: Any
    old_stps: Any
    ro: jax.Array
    H_diag: jax.Array
    prev_flat_grad: Any
    prev_loss: jax.Array
    stored: jax.Array


def lbfgs(
    lr: Hyperparameter = 1.0,
    max_iter: int = 20,
    max_eval: int | None = None,
    tolerance_grad: Scalar = 1e-7,
    tolerance_change: Scalar = 1e-9,
    history_size: int = 100,
    line_search_fn: Literal["strong_wolfe"] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Step by a limited memory of curvature: ``torch.optim.LBFGS``.

    .. math:: p \leftarrow p - t H g

    H is the inverse Hessian that the last ``history_size`` differences of gradients
    make of a multiple of the identity, and t is γ, or what a line search finds.

    One ``update`` is one ``step(closure)`` of torch: up to ``max_iter`` such
    iterations. For those after the first, and for a search, it evaluates the function
    itself, which ``update`` is given as Optax's L-BFGS is::

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(
            grads, state, params, value=value, value_fn=loss
        )
        params = optax.apply_updates(params, updates)

    Call it within one ``jit``: outside, the function is compiled at every update.

    Args:
        lr: γ ≥ 0: a number, a scalar array, or a schedule of the count of updates. At
            the first iteration of all it is divided by the sum of the magnitudes of
            the gradient, if that is more than 1.
        max_iter: The most iterations of an update, ≥ 1. With 1, and without a search,
            an update takes the gradient alone, as other optimizers do.
        max_eval: The most evaluations of an update, ≥ 1, with the one that it is given
            among them. A search does not stop in its midst. None is
            ``max_iter * 5 // 4``.
        tolerance_grad: An update is over where no element of the gradient is larger.
        tolerance_change: It is over, too, where no element of a step is larger, where
            the value changes by less, and where the slope is less steep.
        history_size: How many differences are kept, ≥ 1. Each takes twice the memory
            of the parameters.
        line_search_fn: None, or ``"strong_wolfe"``.

    Returns:
        A transformation with an `LBFGSState`. ``update`` takes the parameters, and
        ``value``, the value there, and either ``value_fn``, a function of parameters
        alone that returns the value, or ``value_and_grad_fn``, which returns the
        gradient too, and counts where both are given.

    Raises:
        TypeError: A number is no real scalar; in ``init`` and ``update``: a parameter
            is complex.
        ValueError: An argument is out of range; in ``update``: what it takes was not
            given, a gradient has not the shape of its parameter, or it is a shard of
            one, inside ``shard_map``.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> def rosenbrock(p):
        ...     return (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2
        >>> optimizer = lbfgs(line_search_fn="strong_wolfe")
        >>> @jax.jit
        ... def train(params, state):
        ...     value, grads = jax.value_and_grad(rosenbrock)(params)
        ...     updates, state = optimizer.update(
        ...         grads, state, params, value=value, value_fn=rosenbrock
        ...     )
        ...     return optax.apply_updates(params, updates), state
        >>> params = jnp.array([-1.5, 2.0])
        >>> state = optimizer.init(params)
        >>> for _ in range(3):
        ...     params, state = train(params, state)
        >>> print(params.round(3))
        [1. 1.]

    Rounding is amplified by the division by products of differences, which are small
    near a minimum, and by the comparisons that a search turns on. In float64 this stays
    as near to torch as torch's own run that starts a rounding away: on a small net
    1e-15, relative, after ten iterations, and 1e-10 after a hundred.

    In ``optax.masked`` and ``optax.partition`` the function would be given a masked
    tree: use ``max_iter=1`` there. A clip before it in a chain clips the first gradient
    alone: clip in ``value_and_grad_fn``.

    Differs from ``optax.lbfgs``, which takes one iteration at each update, with a
    zoom search of its own, scales the first approximation by the norm of the gradient,
    and keeps every difference, where this leaves out those that do not curve upwards.

    References:
        Liu and Nocedal, `On the limited memory BFGS method for large scale
        optimization <https://doi.org/10.1007/BF01589116>`_, 1989. `torch.optim.LBFGS
        <https://docs.pytorch.org/docs/stable/generated/torch.optim.LBFGS.html>`_.
    """
    caller = "lbfgs"
    max_iter = _whole(caller, "max_iter", max_iter)
    history_size = _whole(caller, "history_size", history_size)
    if max_eval is None:
        max_eval = max_iter * 5 // 4
    max_eval = _whole(caller, "max_eval", max_eval)
    if line_search_fn is not None:
        check_choice(caller, "line_search_fn", line_search_fn, ("strong_wolfe",))
    numbers = {
        "lr": check.at_least(caller, "lr", lr),
        "tolerance_grad": check_scalar(caller, "tolerance_grad", tolerance_grad),
        "tolerance_change": check_scalar(caller, "tolerance_change", tolerance_change),
    }
    limits = {
        "max_iter": max_iter,
        "max_eval": max_eval,
        "searches": line_search_fn is not None,
    }

    def init(params: optax.Params) -> LBFGSState:
        return _init(params, history_size)

    def update(
        updates: optax.Updates,
        state: LBFGSState,
        params: optax.Params | None = None,
        *,
        value: Any = None,
        value_fn: ValueFn | None = None,
        value_and_grad_fn: ValueFn | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, LBFGSState]:
        del extra_args
        now = {k: v(state.count) if callable(v) else v for k, v in numbers.items()}
        if max_iter == 1 and line_search_fn is None:
            stepped: tuple[optax.Updates, LBFGSState] = call_compiled(
                _update, updates, state, params, value, now, **limits
            )
            return stepped
        if value_and_grad_fn is None and value_fn is not None:
            value_and_grad_fn = jax.value_and_grad(value_fn, allow_int=True)
        if value_and_grad_fn is None or value is None or params is None:
            raise ValueError(
                f"{caller}(max_iter={max_iter}, line_search_fn={line_search_fn!r}): "
                "expected the function, its value and the parameters. Call "
                "update(grads, state, params, value=..., value_fn=...), or use "
                "lbfgs(max_iter=1), which takes the gradient alone."
            )
        return _update(updates, state, params, value, now, value_and_grad_fn, **limits)

    return optax.GradientTransformationExtraArgs(init, update)


def _whole(caller: str, name: str, value: Any) -> int:
    if not isinstance(value, int) or value < 1:
        raise ValueError(
            f"{caller}({name}={value}): expected a whole number ≥ 1, known when the "
            "transformation is made; in optax.inject_hyperparams, name it in "
            "static_args."
        )
    return value


def _init(params: optax.Params, history_size: int) -> LBFGSState:
    shape = TreeOfVector.of(params)
    leaves = jax.tree.leaves(params, is_leaf=lambda node: node is None)
    for name, leaf in zip(shape.names, leaves, strict=True):
        refuse_complex("lbfgs", name, leaf)
    arrays = shape.vector(params, "parameters")

    # Arrays of its own for each: one that stands twice in a state cannot be donated.
    def zeros(*before: int) -> Any:
        return shape.tree([jnp.zeros((*before, *x.shape), x.dtype) for x in arrays])

    return LBFGSState(
        count=jnp.zeros((), jnp.int32),
        func_evals=jnp.zeros((), jnp.int32),
        n_iter=jnp.zeros((), jnp.int32),
        d=zeros(),
        t=jnp.zeros((), shape.dtype),
        old_dirs=zeros(history_size),
        old_stps=zeros(history_size),
        ro=jnp.zeros((history_size,), shape.dtype),
        H_diag=jnp.ones((), shape.dtype),
        prev_flat_grad=zeros(),
        prev_loss=jnp.zeros((), shape.dtype),
        stored=jnp.zeros((), jnp.int32),
    )


def _update(
    updates: optax.Updates,
    state: LBFGSState,
    params: optax.Params | None,
    value: Any,
    numbers: dict[str, Any],
    value_and_grad_fn: ValueFn | None = None,
    **limits: Any,
) -> tuple[optax.Updates, LBFGSState]:
    split_leaves(updates, "lbfgs")  # refuses integers, which would be taken as they are
    shape = TreeOfVector.of(state.d)
    dtype = shape.dtype
    trees = ("d", "old_dirs", "old_stps", "prev_flat_grad")
    kept = {name: getattr(state, name) for name in Memory._fields}
    kept |= {name: shape.vector(kept[name], f"the state's {name}") for name in trees}
    memory = Memory(**kept)
    grad = shape.gradient(updates, memory.d)
    if not grad:
        return updates, state._replace(count=optax.safe_increment(state.count))

    weights = None if params is None else shape.leaves(params, "parameters")
    evaluate: Evaluate | None = None
    start = [jnp.zeros_like(array) for array in grad]
    if value_and_grad_fn is not None:
        start = shape.vector(params, "parameters")
        function = value_and_grad_fn

        def evaluate(point: Vector) -> tuple[jax.Array, Vector]:
            value, grads = function(shape.tree(point, weights))
            return jnp.asarray(value, dtype), shape.gradient(grads, point)

    point, memory, evaluations = step(
        evaluate,
        start,
        jnp.asarray(state.prev_loss if value is None else value, dtype),
        grad,
        memory,
        Settings(
            lr=jnp.asarray(numbers["lr"], dtype),
            tolerance_grad=jnp.asarray(numbers["tolerance_grad"], dtype),
            tolerance_change=jnp.asarray(numbers["tolerance_change"], dtype),
            **limits,
        ),
    )
    moved = [new - old for new, old in zip(point, start, strict=True)]
    like = shape.leaves(updates, "gradients")
    if weights is not None:
        pairs = zip(shape.is_trained, weights, like, strict=True)
        like = [weight if trained else grad for trained, weight, grad in pairs]
    kept = memory._asdict()
    kept |= {name: shape.tree(kept[name]) for name in trees}
    new_state = state._replace(
        count=optax.safe_increment(state.count),
        func_evals=state.func_evals + evaluations,
        **kept,
    )
    return shape.tree(moved, like), new_state

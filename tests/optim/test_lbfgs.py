"""L-BFGS: an update is a step of torch's, with all of its iterations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from jaxclip.optim import lbfgs

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(32, 4))
TARGETS = np.sin(INPUTS.sum(1, keepdims=True))


def rosenbrock(params):
    (x,) = params
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def net(params):
    """Return the loss of a net with one hidden layer, of torch's arrays or of ours."""
    w1, b1, w2, b2 = params
    if isinstance(w1, torch.Tensor):
        inputs, targets, tanh = (
            torch.tensor(INPUTS, dtype=w1.dtype),
            torch.tensor(TARGETS, dtype=w1.dtype),
            torch.tanh,
        )
    else:
        inputs, targets, tanh = (
            jnp.asarray(INPUTS, w1.dtype),
            jnp.asarray(TARGETS, w1.dtype),
            jnp.tanh,
        )
    return ((tanh(inputs @ w1 + b1) @ w2 + b2 - targets) ** 2).mean()


def rounded(array):
    """Keep what float32 holds, so that both dtypes start at the same."""
    return array.astype(np.float32).astype(np.float64)


PROBLEMS = {
    "rosenbrock": (rosenbrock, [np.array([-1.5, 2.0])]),
    "rosenbrock in 6": (rosenbrock, [rounded(np.linspace(-1, 1, 6))]),
    "net": (
        net,
        [
            rounded(RNG.normal(size=shape) * 0.5)
            for shape in ((4, 8), (8,), (8, 1), (1,))
        ],
    ),
}
SEARCH = {"line_search_fn": "strong_wolfe"}


def run_torch(loss, start, steps, dtype=torch.float64, **options):
    """Return the parameters after each step in a row, and torch's state."""
    params = [torch.nn.Parameter(torch.tensor(x, dtype=dtype)) for x in start]
    optimizer = torch.optim.LBFGS(params, **options)

    def closure():
        optimizer.zero_grad()
        value = loss(params)
        value.backward()
        return value

    history = []
    for _ in range(steps):
        optimizer.step(closure)
        history.append(np.concatenate([p.detach().numpy().ravel() for p in params]))
    return np.stack(history).astype(np.float64), optimizer.state[params[0]]


def run_ours(loss, start, steps, dtype=jnp.float64, **options):
    optimizer = lbfgs(**options)

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(
            grads, state, params, value=value, value_fn=loss
        )
        params = optax.apply_updates(params, updates)
        return (params, state), jnp.concatenate([x.ravel() for x in params])

    @jax.jit
    def run(params):
        carry = (params, optimizer.init(params))
        return jax.lax.scan(step, carry, length=steps)

    (_, state), history = run([jnp.asarray(x, dtype) for x in start])
    return np.asarray(history).astype(np.float64), state


def apart(history, expected):
    """Return how far each step is from what is expected, relative to its norm."""
    return np.linalg.norm(history - expected, axis=1) / np.linalg.norm(expected, axis=1)


# The problem, the steps, what of them is equal to 1e-10, and the options.
CASES = [
    ("rosenbrock", 6, 6, SEARCH),
    ("net", 12, 12, {"lr": 0.5, "max_iter": 3, "tolerance_grad": 3e-2}),
    *(
        pytest.param(*case, marks=pytest.mark.long)
        for case in (
            ("rosenbrock", 3, 1, {}),
            ("rosenbrock", 20, 20, {"max_iter": 1}),
            ("rosenbrock", 10, 4, {"max_iter": 4, "history_size": 3, **SEARCH}),
            ("rosenbrock in 6", 8, 8, {"lr": 0.1, "max_iter": 4, "history_size": 3}),
            ("rosenbrock in 6", 8, 8, {"max_iter": 5, "max_eval": 30, **SEARCH}),
            ("rosenbrock in 6", 8, 8, {"max_iter": 1, **SEARCH}),
            ("rosenbrock in 6", 4, 4, {"tolerance_change": 1e-2, **SEARCH}),
            ("net", 6, 1, {}),
            ("net", 4, 4, {"max_eval": 7, **SEARCH}),
            ("net", 4, 4, SEARCH),
            ("net", 20, 20, {"max_iter": 1}),
        )
    ),
]


@pytest.mark.parametrize(("problem", "steps", "equal", "options"), CASES, ids=str)
def test_float64_is_torchs_as_near_as_it_is_to_itself(problem, steps, equal, options):
    loss, start = PROBLEMS[problem]
    expected, kept = run_torch(loss, start, steps, **options)
    with jax.enable_x64(True):
        history, state = run_ours(loss, start, steps, **options)
    distance = apart(history, expected)
    assert distance[:equal].max() < 1e-10
    assert int(state.n_iter) == kept["n_iter"]
    assert int(state.func_evals) == kept["func_evals"]

    # What rounding comes to: torch again, from starts that are a rounding away.
    nearby = np.max(
        [
            apart(run_torch(loss, moved, steps, **options)[0], expected)
            for way in (-np.inf, np.inf)
            for moved in [[np.nextafter(x, way) for x in start]]
        ],
        axis=0,
    )
    assert (distance <= 20 * np.maximum.accumulate(nearby)).all()


def test_the_state_is_torchs():
    loss, start = PROBLEMS["net"]
    options = {"max_iter": 3, "history_size": 4, **SEARCH}
    _, kept = run_torch(loss, start, 3, **options)
    with jax.enable_x64(True):
        _, state = run_ours(loss, start, 3, **options)

    def flat(tree):
        return np.concatenate([np.asarray(x).ravel() for x in tree])

    for name in ("d", "prev_flat_grad"):
        np.testing.assert_allclose(
            flat(getattr(state, name)), kept[name].numpy(), rtol=1e-8, atol=1e-14
        )
    for name in ("t", "H_diag", "prev_loss"):
        np.testing.assert_allclose(getattr(state, name), float(kept[name]), rtol=1e-8)
    assert int(state.stored) > len(kept["ro"]) == 4
    for age in range(4):
        place = (int(state.stored) - 1 - age) % 4
        np.testing.assert_allclose(
            state.ro[place], float(kept["ro"][-1 - age]), rtol=1e-8
        )
        for name in ("old_dirs", "old_stps"):
            np.testing.assert_allclose(
                flat([x[place] for x in getattr(state, name)]),
                kept[name][-1 - age].numpy(),
                rtol=1e-8,
                atol=1e-14,
            )


@pytest.mark.parametrize(
    ("steps", "options"),
    [
        (10, {"max_iter": 4, "history_size": 3, **SEARCH}),
        pytest.param(20, {"max_iter": 1}, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_float32_is_as_near_to_float64_as_torchs(steps, options):
    loss, start = PROBLEMS["net"]
    truth, _ = run_torch(loss, start, steps, **options)
    theirs, _ = run_torch(loss, start, steps, torch.float32, **options)
    ours, _ = run_ours(loss, start, steps, jnp.float32, **options)
    assert apart(ours, truth).max() <= 2 * apart(theirs, truth).max()


def test_one_iteration_takes_the_gradient_alone():
    loss, start = PROBLEMS["net"]
    expected, _ = run_torch(loss, start, 3, torch.float32, max_iter=1)
    optimizer = lbfgs(max_iter=1)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    params = [jnp.asarray(x, jnp.float32) for x in start]
    state = optimizer.init(params)
    for step_of_torch in expected:
        params, state = step(params, state)
        got = np.concatenate([np.asarray(x).ravel() for x in params])
        np.testing.assert_allclose(got, step_of_torch, rtol=1e-4, atol=1e-6)


def test_value_and_grad_fn_is_value_fn_with_its_gradient():
    optimizer = lbfgs(max_iter=2)

    @jax.jit
    def steps(params):
        value, grads = jax.value_and_grad(rosenbrock)(params)
        state = optimizer.init(params)
        return [
            optimizer.update(grads, state, params, value=value, grad=grads, **function)
            for function in (
                {"value_fn": rosenbrock},
                {"value_and_grad_fn": jax.value_and_grad(rosenbrock)},
            )
        ]

    (one, _), (other, state) = steps([jnp.array([-1.5, 2.0])])
    np.testing.assert_array_equal(one[0], other[0])
    assert int(state.func_evals) == 2


def test_what_is_absent_or_no_number_stays_as_it_is():
    def loss(params):
        return jnp.sum((params["used"].astype(jnp.float32) - 3.0) ** 2)

    params = {
        "used": jnp.ones(2, jnp.bfloat16),
        "unused": jnp.ones(3),
        "count": jnp.int32(7),
        "none": None,
    }
    optimizer = lbfgs(max_iter=3)
    state = optimizer.init(params)
    assert state.d["used"].dtype == jnp.float32
    value, grads = jax.value_and_grad(loss, allow_int=True)(params)
    grads["unused"] = None
    updates, state = jax.jit(
        lambda *given: optimizer.update(*given, value=value, value_fn=loss)
    )(grads, state, params)
    assert updates["used"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(params["used"] + updates["used"], 3.0)
    assert not updates["unused"].any()
    assert updates["count"].dtype == jax.dtypes.float0
    assert updates["none"] is None


@pytest.mark.long
def test_vmap_minimises_each_by_itself():
    loss, (start,) = PROBLEMS["rosenbrock"]
    starts = jnp.asarray([start, [0.5, 0.5], [1.0, 1.0]], jnp.float32)
    optimizer = lbfgs(max_iter=6, **SEARCH)

    def step(x):
        value, grads = jax.value_and_grad(loss)([x])
        updates, state = optimizer.update(
            grads, optimizer.init([x]), [x], value=value, value_fn=loss
        )
        return updates[0], state.func_evals

    together, evaluations = jax.jit(jax.vmap(step))(starts)
    alone = [jax.jit(step)(x) for x in starts]
    np.testing.assert_allclose(together, [x for x, _ in alone], rtol=1e-3, atol=1e-5)
    assert evaluations.tolist() == [int(count) for _, count in alone]
    assert evaluations[2] == 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"lr": -1.0}, ValueError, r"lbfgs\(lr=-1\): expected a number ≥ 0"),
        ({"max_iter": 0}, ValueError, r"lbfgs\(max_iter=0\): expected a whole number"),
        ({"max_eval": 0}, ValueError, r"lbfgs\(max_eval=0\): expected a whole number"),
        ({"history_size": 0}, ValueError, r"\(history_size=0\): expected a whole"),
        ({"max_iter": jnp.int32(3)}, ValueError, r"name it in static_args"),
        (
            {"tolerance_grad": "no"},
            TypeError,
            r"tolerance_grad='no'\): expected a real",
        ),
        (
            {"line_search_fn": "armijo"},
            ValueError,
            r"\(line_search_fn='armijo'\): expected one of 'strong_wolfe'",
        ),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        lbfgs(**arguments)


def test_torch_refuses_a_negative_lr_and_another_search():
    weight = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="Invalid learning rate"):
        torch.optim.LBFGS([weight], lr=-1.0)
    with pytest.raises(RuntimeError, match="only 'strong_wolfe' is supported"):
        torch.optim.LBFGS([weight], line_search_fn="armijo").step(
            lambda: (weight**2).sum().backward() or weight.sum()
        )


@pytest.mark.parametrize("missing", ["value", "value_fn", "params"])
def test_update_says_what_it_takes(missing):
    optimizer = lbfgs(max_iter=2)
    params = jnp.ones(2)
    given = {"value": 2.0, "value_fn": jnp.sum, "params": params}
    given[missing] = None
    with pytest.raises(
        ValueError, match=r"lbfgs\(max_iter=2.*expected the function, its value and"
    ):
        optimizer.update(params, optimizer.init(params), **given)


def test_gradients_of_another_shape_are_refused():
    optimizer = lbfgs(max_iter=1)
    state = optimizer.init({"w": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"the gradient 'w' has the shape \(3,\), and"):
        optimizer.update({"w": jnp.ones(3)}, state)
    with pytest.raises(ValueError, match="expected gradients of the structure of the"):
        optimizer.update({"v": jnp.ones(2)}, state)


def test_complex_parameters_are_refused():
    with pytest.raises(TypeError, match="'w' is of complex64; expected a real one"):
        lbfgs().init({"w": jnp.ones(2, jnp.complex64)})

"""Which module a mark is of follows from where its parameter comes from."""

import jax
import jax.numpy as jnp
import pytest

from jaxclip.parity._verify._tracing._inside import Anchor, Question, asked, marked
from jaxclip.parity._verify._tracing._survey import Survey

LAYERS = 3
PARAMS = {
    "fc": {"weight": jnp.ones((2, 2)), "bias": jnp.ones(2)},
    "layers": {"fc": {"weight": jnp.ones((LAYERS, 2, 2))}},
}
LABELS = [("fc", "bias"), ("fc", "weight"), ("layers", "fc", "weight")]
X = jnp.ones(2)


def linear(weight, x):
    """Return what a layer returns, marked as one that holds this weight."""
    return marked(Anchor(("weight",), ()), weight @ x, weight)


def dropped(weight, x):
    """Let a dropout beside the weight ask for what is kept."""
    anchor = Anchor(("fc", "weight"), ("drop",))
    keep = asked(Question("dropout", anchor, x.shape), x == x, weight)
    return jnp.where(keep, x, 0)


def of_cast(params, x):
    return linear(params["fc"]["weight"].astype(jnp.bfloat16), x)


def of_compiled(params, x):
    return jax.jit(lambda params: linear(params["fc"]["weight"], x))(params)


def of_cast_in_compiled(params, x):
    cast = jax.jit(lambda params: jax.tree.map(jnp.float16, params))
    return linear(cast(params)["fc"]["weight"], x)


def of_checkpoint(params, x):
    return jax.checkpoint(linear)(params["fc"]["weight"], x)


def of_derivative(params, x):
    return jax.grad(lambda x: linear(params["fc"]["weight"], x).sum())(x)


def of_mapped(params, x):
    rows = jax.vmap(linear, in_axes=(None, 0))
    return rows(params["fc"]["weight"], jnp.stack([x, x]))


def of_branch(params, x):
    weight = params["fc"]["weight"]
    return jax.lax.cond(x.sum() > 0, linear, lambda w, x: x, weight, x)


ONE = [
    *(of_cast, of_compiled, of_cast_in_compiled, of_checkpoint, of_derivative),
    *(of_mapped, of_branch),
]


def surveyed(function):
    """Survey a function of the parameters and an input."""
    return Survey(jax.make_jaxpr(function)(PARAMS, X).jaxpr, LABELS)


@pytest.mark.parametrize("function", ONE)
def test_a_module_is_known_by_where_its_parameter_comes_from(function):
    assert surveyed(function).marked == {"fc"}


def test_a_layer_of_a_scan_is_known_by_its_stack():
    def scanned(params, x):
        def call(x, weight):
            return dropped(weight, linear(weight, x)), None

        return jax.lax.scan(call, x, params["layers"]["fc"]["weight"])[0]

    survey = surveyed(scanned)
    assert survey.marked == {"layers.fc"}
    [(_, path, axes)] = survey.asked
    assert path == "layers.drop"
    assert axes.lengths == (LAYERS,)


def test_a_function_that_is_compiled_once_is_each_module_that_it_is_given():
    call = jax.jit(linear)

    def both(params, x):
        return call(params["out"]["weight"], call(params["fc"]["weight"], x))

    params = {name: {"weight": jnp.ones((2, 2))} for name in ("fc", "out")}
    labels = [(name, "weight") for name in params]
    [paths] = Survey(jax.make_jaxpr(both)(params, X).jaxpr, labels).returned.values()
    assert paths == ["fc", "out"]


@pytest.mark.parametrize(
    "function",
    [
        lambda params, x: linear(params["fc"]["weight"] * 2, x),
        lambda params, x: linear(params["fc"]["bias"][None], x),
        lambda params, x: linear(jnp.ones((2, 2)), x),
    ],
    ids=["computed", "another", "constant"],
)
def test_what_is_not_known_has_no_name(function):
    survey = surveyed(function)
    assert survey.marked == set()
    assert [*survey.returned.values()] == [[None]]


def test_what_is_asked_for_where_nobody_can_look_is_left():
    def branch(params, x):
        weight = params["fc"]["weight"]
        return jax.lax.cond(x.sum() > 0, dropped, lambda w, x: x, weight, x)

    survey = surveyed(branch)
    assert survey.asked == []
    assert [question.kind for question in survey.unseen] == ["dropout"]

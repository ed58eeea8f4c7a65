"""The options that clips share: `where`, `nonfinite` and `stop_gradient`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip
from jaxclip.parity import assert_trees_close, assert_trees_equal

GRADS = {
    "body": [jnp.array([3.0, 0.0]), jnp.array(4.0)],
    "head": {"w": jnp.array([60.0, -80.0]), "step": jnp.arange(2)},
}
HEAD = {"body": [False, False], "head": {"w": True, "step": False}}
NO_HEAD = jaxclip.by_path(lambda path: not path.startswith("head"))

CLIPS = {
    "clip_by_global_norm": lambda **o: jaxclip.clip_by_global_norm(1.0, eps=0.0, **o),
    "clip_by_norm": lambda **o: jaxclip.clip_by_norm(1.0, eps=0.0, **o),
    "clip_by_block_rms": lambda **o: jaxclip.clip_by_block_rms(1.0, **o),
    "clip_by_update_rms": lambda **o: jaxclip.clip_by_update_rms(**o),
    "adaptive_grad_clip": lambda **o: jaxclip.adaptive_grad_clip(**o),
}


@pytest.fixture(params=CLIPS)
def make(request):
    return CLIPS[request.param]


def clipped(clip, grads, params=None):
    params = grads if params is None else params
    return clip.update(grads, clip.init(params), params)


# ---- where ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "where",
    [
        NO_HEAD,
        {"body": True, "head": False},
        {"body": [True, True], "head": {"w": False, "step": False}},
        lambda tree: {"body": True, "head": False},
    ],
    ids=["by_path", "prefix", "tree", "function"],
)
def test_where_says_which_leaves_are_clipped(make, where):
    updates, state = clipped(make(where=where), GRADS)
    body, body_state = clipped(make(), {"body": GRADS["body"]})
    assert_trees_equal(updates["body"], body["body"])
    assert_trees_equal(state, body_state)
    for name, leaf in updates["head"].items():
        assert leaf is GRADS["head"][name]


def test_the_norm_is_that_of_the_chosen_leaves_together():
    updates, state = clipped(jaxclip.clip_by_global_norm(1.0, where=HEAD), GRADS)
    assert state.total_norm == 100.0
    np.testing.assert_allclose(updates["head"]["w"], [0.6, -0.8], rtol=1e-6)
    assert updates["body"][0] is GRADS["body"][0]


def test_where_is_what_optax_masked_does():
    clip = jaxclip.clip_by_global_norm(1.0)
    masked, masked_state = clipped(optax.masked(clip, HEAD), GRADS)
    updates, state = clipped(jaxclip.clip_by_global_norm(1.0, where=HEAD), GRADS)
    assert_trees_equal(updates, masked)
    assert_trees_equal(state, masked_state.inner_state)


def test_where_nothing_is_chosen_nothing_is_clipped():
    updates, state = clipped(jaxclip.clip_by_global_norm(1.0, where=False), GRADS)
    assert_trees_equal(updates, GRADS)
    assert (state.total_norm, state.clip_coef) == (0.0, 1.0)


def test_where_works_under_jit_and_with_per_leaf():
    clip = jaxclip.clip_by_global_norm(1.0, where=NO_HEAD, per_leaf=True)
    _, state = jax.jit(clip.update)(GRADS, clip.init(GRADS))
    metrics = jaxclip.clip_metrics(state, per_leaf=True)
    assert metrics.leaf_norms == {"body/0": 3.0, "body/1": 4.0}


def test_an_integer_that_is_chosen_is_named(make):
    with pytest.raises(TypeError, match=r"\['head'\]\['step'\] is of type int32"):
        clipped(make(where=True), GRADS)


@pytest.mark.parametrize("where", [{"body": True}, {"other": True}, [True, False]])
def test_where_of_another_structure_is_refused(make, where):
    with pytest.raises(ValueError, match=r"\(where=\.\.\.\): expected a tree of"):
        clipped(make(where=where), GRADS)


def test_where_that_is_no_boolean_is_refused(make):
    with pytest.raises(ValueError, match="expected True or False for each leaf, got 1"):
        clipped(make(where={"body": 1, "head": 0}), GRADS)


# ---- nonfinite -----------------------------------------------------------------------

FINITE = {"w": jnp.array([3.0, 4.0]), "b": jnp.array([[0.5]])}
POLICIES = {
    **CLIPS,
    "clip_by_group_norm": lambda **o: jaxclip.clip_by_group_norm(
        {"b": 1.0, "w": 1.0}, jaxclip.by_path(lambda path: path), **o
    ),
    "zclip": lambda **o: jaxclip.zclip(**o),
    "autoclip": lambda **o: jaxclip.autoclip(**o),
    "adagc": lambda **o: jaxclip.adagc(**o),
}


def spoilt(value):
    return FINITE | {"w": jnp.array([3.0, value])}


@pytest.fixture(params=POLICIES)
def make_policy(request):
    return POLICIES[request.param]


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
def test_zero_makes_the_whole_step_0(make_policy, value):
    for jit in (lambda f: f, jax.jit):
        clip = make_policy(nonfinite="zero")
        state = clip.init(FINITE)
        updates, state = jit(clip.update)(spoilt(value), state, FINITE)
        assert_trees_equal(updates, jax.tree.map(jnp.zeros_like, FINITE))
        assert jaxclip.clip_metrics(state).nonfinite_count == 1


def test_zero_changes_no_other_step(make_policy):
    got = clipped(make_policy(nonfinite="zero"), FINITE)
    assert_trees_equal(got, clipped(make_policy(), FINITE))


def test_propagate_is_the_default_and_shows_that_a_step_was_bad(make_policy):
    updates, _ = clipped(make_policy(), spoilt(jnp.nan), FINITE)
    assert jnp.isnan(updates["w"]).any()


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_raise_names_the_leaves(make_policy, jit):
    clip = make_policy(nonfinite="raise")
    update = jax.jit(clip.update) if jit else clip.update
    jax.block_until_ready(update(FINITE, clip.init(FINITE), FINITE))
    # Under jit the error comes from the runtime, with ours as its message.
    error = jax.errors.JaxRuntimeError if jit else RuntimeError
    with pytest.raises(error, match=r"1 of 2 leaves:\n +\['w'\]: 0 NaN, 1 infinite"):
        jax.block_until_ready(update(spoilt(jnp.inf), clip.init(FINITE), FINITE))


@pytest.mark.parametrize("policy", ["zero", "raise"])
def test_a_norm_that_overflows_is_no_such_step(make_policy, policy):
    huge = {"w": jnp.array([3e38, 3e38]), "b": jnp.array([[3e38]])}
    updates, state = clipped(make_policy(nonfinite=policy), huge)
    assert jaxclip.clip_metrics(state).nonfinite_count == 0
    assert all(jnp.all(leaf != 0) for leaf in jax.tree.leaves(updates))


def test_raise_works_inside_scan_and_vmap():
    clip = jaxclip.clip_by_global_norm(1.0, nonfinite="raise")

    def step(state, scale):
        grads = jax.tree.map(lambda leaf: leaf * scale, FINITE)
        return clip.update(grads, state)[1], None

    def run(scales):
        return jax.lax.scan(step, clip.init(FINITE), scales)[0]

    for function, scales in ((run, [1.0, 2.0]), (jax.vmap(run), [[1.0], [2.0]])):
        jax.block_until_ready(function(jnp.array(scales)))
        with pytest.raises(jax.errors.JaxRuntimeError, match="gradients are not fini"):
            jax.block_until_ready(function(jnp.array(scales) * jnp.inf))


def test_another_policy_is_refused(make_policy):
    with pytest.raises(ValueError, match=r"\(nonfinite='skip'\): expected 'propagate'"):
        make_policy(nonfinite="skip")


# ---- stop_gradient -------------------------------------------------------------------

CLIP_FUNCTIONS = {
    "clip_grad_norm": lambda g, **o: jaxclip.clip_grad_norm(g, 1.0, **o)[0],
    "clip_by_global_norm": lambda g, **o: clipped(
        jaxclip.clip_by_global_norm(1.0, **o), g
    )[0],
    "clip_by_norm": lambda g, **o: clipped(jaxclip.clip_by_norm(1.0, **o), g)[0],
}


@pytest.mark.parametrize("name", CLIP_FUNCTIONS)
def test_stop_gradient_takes_the_coefficient_for_a_constant(name):
    def clip(grad, **options):
        return CLIP_FUNCTIONS[name]([grad], **options)[0]

    grad = jnp.array([3.0, 4.0])
    jacobian = jax.jacobian(lambda g: clip(g, stop_gradient=True))(grad)
    coef = clip(grad)[0] / grad[0]
    np.testing.assert_allclose(jacobian, coef * np.eye(2), rtol=1e-6)

    with jax.enable_x64(True):
        wide, step = np.array([3.0, 4.0]), 1e-6
        columns = [
            (clip(jnp.asarray(wide + d)) - clip(jnp.asarray(wide - d))) / (2 * step)
            for d in step * np.eye(2)
        ]
        got = jax.jacobian(clip)(jnp.asarray(wide))
        np.testing.assert_allclose(got, np.stack(columns, 1), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", CLIP_FUNCTIONS)
def test_stop_gradient_keeps_the_derivative_by_the_threshold(name):
    def length(max_norm):
        grads = [jnp.array([3.0, 4.0])]
        if name == "clip_grad_norm":
            clip = jaxclip.clip_grad_norm(grads, max_norm, eps=0.0, stop_gradient=True)
            return jaxclip.global_norm(clip[0])
        factory = getattr(jaxclip, name)
        clip = factory(max_norm, eps=0.0, stop_gradient=True)
        return jaxclip.global_norm(clipped(clip, grads)[0])

    np.testing.assert_allclose(jax.grad(length)(1.0), 1.0, rtol=1e-6)


def test_options_of_a_group_clip_hold_for_all_groups():
    clip = POLICIES["clip_by_group_norm"](nonfinite="zero")
    updates, state = clipped(clip, spoilt(jnp.nan), FINITE)
    assert_trees_close(
        updates, jax.tree.map(jnp.zeros_like, FINITE), rtol=0.0, atol=0.0
    )
    assert jnp.isnan(state.norms["w"])
    assert state.norms["b"] == 0.5

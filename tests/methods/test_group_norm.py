import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxclip import clip_by_global_norm, clip_metrics
from jaxclip._core.paths import by_path, split_where
from jaxclip._methods.group_norm import clip_by_group_norm
from jaxclip._norms import tree_norm
from jaxclip.parity import assert_trees_close, assert_trees_equal

MAX_NORMS = {"body": 1.0, "head": 0.5}
LABELS = {"body": "body", "embed": "body", "head": "head"}
GRADS = {
    "body": [np.float32([3.0, 0.0]), np.float32([[0.0], [2.0]])],
    "embed": np.float32(-1.0),
    "head": {"w": np.float32([0.3, -0.4]), "b": np.float32([1.2])},
}


def step(clip, grads):
    return clip.update(grads, clip.init(grads))


def many_steps(count, seed):
    """Return gradients around the thresholds, with a spike every tenth step."""
    generator = np.random.default_rng(seed)
    for index in range(count):
        size = 0.4 * (1e3 if index % 10 == 9 else 1.0) * generator.lognormal()
        yield jax.tree.map(
            lambda x, size=size: np.float32(size * generator.normal(size=x.shape)),
            GRADS,
        )


def oracle(grads, max_norms, eps):
    """Return clipped gradients, and each group's norm, in float64."""
    groups = {
        "body": [*grads["body"], grads["embed"]],
        "head": [grads["head"]["w"], grads["head"]["b"]],
    }
    norms = {
        label: np.sqrt(sum(np.sum(np.float64(leaf) ** 2) for leaf in leaves))
        for label, leaves in groups.items()
    }
    coefs = {
        label: min(1.0, max_norms[label] / (norms[label] + eps)) for label in norms
    }
    scaled = {
        key: jax.tree.map(lambda x, c=coefs[LABELS[key]]: np.float64(x) * c, part)
        for key, part in grads.items()
    }
    return scaled, norms, coefs


def test_each_group_is_clipped_by_its_own_norm_over_200_steps():
    clip = clip_by_group_norm(MAX_NORMS, LABELS)
    update, state = jax.jit(clip.update), clip.init(GRADS)
    clipped = 0
    for grads in many_steps(200, seed=0):
        updates, state = update(grads, state)
        expected, norms, coefs = oracle(grads, MAX_NORMS, 1e-6)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=5e-7), updates, expected
        )
        for label in MAX_NORMS:
            np.testing.assert_allclose(state.norms[label], norms[label], rtol=5e-7)
            np.testing.assert_allclose(state.clip_coefs[label], coefs[label], rtol=5e-7)
        total = np.sqrt(sum(norm**2 for norm in norms.values()))
        after = np.sqrt(sum((norms[key] * coefs[key]) ** 2 for key in norms))
        np.testing.assert_allclose(state.clip.total_norm, total, rtol=5e-7)
        np.testing.assert_allclose(state.clip.clipped_norm, after, rtol=5e-7)
        clipped += min(coefs.values()) < 1
    assert 20 < clipped < 200
    assert clip_metrics(state).clipped_count == clipped


def test_it_is_what_optax_partitions_clips_into():
    clips = {
        label: optax.clip_by_global_norm(norm) for label, norm in MAX_NORMS.items()
    }
    peer = optax.partition(clips, LABELS)
    clip = clip_by_group_norm(MAX_NORMS, LABELS, eps=0.0)
    update, peer_update = jax.jit(clip.update), jax.jit(peer.update)
    state, peer_state = clip.init(GRADS), peer.init(GRADS)
    for grads in many_steps(200, seed=1):
        updates, state = update(grads, state)
        expected, peer_state = peer_update(grads, peer_state)
        assert_trees_close(updates, expected, rtol=5e-7, atol=0.0)


@pytest.mark.parametrize(
    "labels",
    [
        {
            "body": ["body", "body"],
            "embed": "body",
            "head": {"w": "head", "b": "head"},
        },
        LABELS,
        lambda updates: {key: LABELS[key] for key in updates},
        by_path(lambda path: "head" if path.startswith("head/") else "body"),
    ],
    ids=["tree", "prefix", "function of the tree", "function of the path"],
)
def test_labels_may_come_in_four_forms(labels):
    assert_trees_equal(
        step(clip_by_group_norm(MAX_NORMS, labels), GRADS),
        step(clip_by_group_norm(MAX_NORMS, LABELS), GRADS),
    )


def test_paths_are_those_of_the_tree():
    assert by_path(str)({"a": [jnp.ones(1), None], "b": ()}) == {
        "a": ["a/0", None],
        "b": (),
    }


def test_one_group_of_everything_is_a_global_norm():
    updates, state = step(clip_by_group_norm({"all": 1.0}, "all"), GRADS)
    assert_trees_equal(updates, step(clip_by_global_norm(1.0), GRADS)[0])
    assert state.clip.total_norm == state.norms["all"]


def test_norm_types():
    clip = clip_by_group_norm({"all": 1.0}, "all", norm_type=float("inf"), eps=0.0)
    updates, state = step(clip, GRADS)
    assert state.clip.total_norm == 3.0
    expected = jax.tree.map(lambda x: x / np.float32(3.0), GRADS)
    assert_trees_close(updates, expected, rtol=2e-7, atol=0.0)


def test_a_group_without_leaves_and_one_without_a_bound():
    max_norms = {"body": np.inf, "head": 0.5, "unused": 1.0}
    updates, state = step(clip_by_group_norm(max_norms, LABELS), GRADS)
    assert_trees_equal(updates["body"], GRADS["body"])
    assert (state.norms["unused"], state.clip_coefs["unused"]) == (0.0, 1.0)
    assert state.clip_coefs["body"] == 1.0
    assert state.clip_coefs["head"] < 0.5


def test_a_schedule_for_a_group():
    max_norms = {"body": optax.linear_schedule(1.0, 0.0, 2), "head": np.inf}
    clip = clip_by_group_norm(max_norms, LABELS, eps=0.0)
    state = clip.init(GRADS)
    for expected in (1.0, 0.5, 0.0):
        updates, state = jax.jit(clip.update)(GRADS, state)
        _, norms, _ = oracle(updates, MAX_NORMS, 1e-6)
        np.testing.assert_allclose(norms["body"], expected, rtol=2e-7)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_group_that_is_not_finite_leaves_the_others_and_the_next_step_alone(bad):
    clip = clip_by_group_norm(MAX_NORMS, LABELS)
    spoilt = GRADS | {"embed": np.float32(bad)}
    updates, state = step(clip, spoilt)
    expected, expected_state = step(clip, GRADS)
    assert_trees_equal(updates["head"], expected["head"])
    assert np.isnan(updates["embed"])
    assert state.clip.nonfinite_count == 1
    updates, state = clip.update(GRADS, state)
    assert_trees_equal(updates, expected)
    assert_trees_equal(state.norms, expected_state.norms)
    assert_trees_equal(state.clip.total_norm, expected_state.clip.total_norm)


@pytest.mark.parametrize("size", [1e-30, 1e25, 1e38])
def test_gradients_of_any_magnitude_keep_their_direction(size):
    grads = jax.tree.map(lambda x: x * np.float32(size), GRADS)
    limits = {"body": 1e-32, "head": 0.5} if size < 1 else MAX_NORMS
    updates, state = step(clip_by_group_norm(limits, LABELS, eps=0.0), grads)
    expected, _, _ = oracle(grads, limits, 0.0)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), updates, expected
    )
    assert state.clip.nonfinite_count == 0


def test_a_label_without_a_threshold_names_the_leaf():
    with pytest.raises(ValueError, match="the leaf 'head/b' has the label 'tail', and"):
        step(clip_by_group_norm(MAX_NORMS, LABELS | {"head": "tail"}), GRADS)
    with pytest.raises(ValueError, match="'head/b' has the label None"):
        step(clip_by_group_norm(MAX_NORMS, LABELS | {"head": None}), GRADS)


def test_labels_of_another_tree_are_refused():
    message = r"clip_by_group_norm\(labels=...\): expected a tree of the structure of "
    with pytest.raises(ValueError, match=message):
        step(clip_by_group_norm(MAX_NORMS, {"body": "body"}), GRADS)


def test_thresholds_are_checked_by_label():
    message = r"clip_by_group_norm\(max_norms\['head'\]=-1.0\): expected a number ≥ 0"
    with pytest.raises(ValueError, match=message):
        clip_by_group_norm({"body": 1.0, "head": -1.0}, LABELS)


def test_in_inject_hyperparams_labels_are_static():
    make = optax.inject_hyperparams(clip_by_group_norm, static_args=("labels",))
    clip = make(
        MAX_NORMS, by_path(lambda path: path.split("/")[0].replace("embed", "body"))
    )
    state = clip.init(GRADS)
    updates, _ = jax.jit(clip.update)(GRADS, state, GRADS)
    expected, _ = step(clip_by_group_norm(MAX_NORMS, LABELS), GRADS)
    assert_trees_close(updates, expected, rtol=1e-6, atol=0.0)


def test_leaves_that_hold_nothing():
    grads = {
        "none": None,
        "masked": optax.MaskedNode(),
        "integer": np.zeros(2, jax.dtypes.float0),
        "empty": jnp.zeros((0, 3)),
        "w": jnp.array([3.0, 4.0]),
    }
    updates, state = step(clip_by_group_norm({"all": 1.0}, "all", eps=0.0), grads)
    np.testing.assert_allclose(updates.pop("w"), [0.6, 0.8], rtol=2e-7)
    assert updates.pop("integer") is grads["integer"]
    assert updates.pop("empty").shape == (0, 3)
    assert updates == {"none": None, "masked": optax.MaskedNode()}
    assert state.norms["all"] == 5.0


# ---- a part of the leaves ------------------------------------------------------------


@pytest.mark.parametrize(
    "where",
    [
        {"w": True, "n": [False, False], "b": True},
        {"w": True, "n": False, "b": True},
        by_path(lambda path: not path.startswith("n/")),
    ],
    ids=["tree", "prefix", "function"],
)
def test_where_takes_leaves_and_puts_others_in_their_places(where):
    tree = {
        "w": jnp.array([3.0]),
        "n": [jnp.arange(2), jnp.array([1e9])],
        "b": jnp.array([4.0]),
    }
    leaves, rebuild = split_where(tree, where, "f")
    assert tree_norm(leaves, norm_type=2.0).value == 5.0
    rebuilt = rebuild([-leaf for leaf in leaves])
    assert_trees_equal(rebuilt, tree | {"w": -tree["w"], "b": -tree["b"]})
    assert rebuilt["n"][0] is tree["n"][0]


def test_where_without_a_leaf_and_without_a_choice():
    tree = {"w": jnp.ones(2), "none": None, "masked": optax.MaskedNode()}
    leaves, rebuild = split_where(tree, False, "f")
    assert leaves == []
    assert rebuild([])["w"] is tree["w"]
    leaves, rebuild = split_where(tree, None, "f")
    assert_trees_equal(rebuild(leaves), tree)


def test_where_is_of_booleans():
    with pytest.raises(ValueError, match=r"f\(where=...\): expected True or False for"):
        split_where({"w": jnp.ones(2)}, {"w": "head"}, "f")

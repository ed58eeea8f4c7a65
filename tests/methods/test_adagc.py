"""`adagc` against a NumPy oracle and against pytorch_optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxclip._methods.adagc import adagc
from tests.methods.runs import clip_all, leaves, norm, run_with_spikes

RUN = run_with_spikes()
OPTIONS = [
    {},
    {"warmup_steps": 1},
    {"warmup_steps": 20, "lambda_abs": 5.0},
    {"lambda_rel": 2.0, "beta": 0.9, "warmup_steps": 10, "lambda_abs": float("inf")},
]


def oracle(run, lambda_rel=1.05, lambda_abs=1.0, beta=0.98, warmup_steps=100):
    """Return the coefficients of each leaf at each step, in float64."""
    gammas, coefs = None, []
    for t, grads in enumerate(run, start=1):
        norms = np.array([np.linalg.norm(leaf) for leaf in leaves(grads)])
        if t < warmup_steps or gammas is None:
            h = np.full_like(norms, min(1.0, lambda_abs / norm(grads)))
            gammas = h * norms if gammas is None else np.minimum(gammas, h * norms)
        else:
            h = np.minimum(1.0, lambda_rel * gammas / norms)
            gammas = beta * gammas + (1 - beta) * h * norms
        coefs.append(h)
    return np.array(coefs)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_200_steps_with_spikes_are_those_of_the_formula(options):
    expected = oracle(RUN, **options)
    assert (expected < 0.5).sum() > 4
    assert (expected[:, 0] != expected[:, 1]).any()
    clipped, _ = clip_all(adagc(**options), RUN)
    got = [
        [
            np.linalg.norm(x.astype(float)) / np.linalg.norm(g)
            for x, g in zip(leaves(after), leaves(before), strict=True)
        ]
        for before, after in zip(RUN, clipped, strict=True)
    ]
    # Sums of float32 errors over the 50 steps that the average reaches back.
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("options", OPTIONS[:3], ids=str)
def test_200_steps_with_spikes_are_those_of_pytorch_optimizer(options, foreach):
    published = pytest.importorskip("pytorch_optimizer").AdaGC
    parameters = [torch.zeros(leaf.shape).double() for leaf in leaves(RUN[0])]
    # Without averages of the gradient, the first moment is the clipped gradient.
    optimizer = published(
        parameters,
        betas=(0.0, 0.999),
        weight_decay=0.0,
        eps=1e-30,
        foreach=foreach,
        **options,
    )
    with jax.enable_x64(True):
        clipped, state = clip_all(adagc(**options), RUN, np.float64)
    for step, grads in enumerate(RUN):
        for parameter, leaf in zip(parameters, leaves(grads), strict=True):
            parameter.grad = torch.from_numpy(leaf.copy())
        optimizer.step()
        for parameter, leaf in zip(parameters, leaves(clipped[step]), strict=True):
            theirs = optimizer.state[parameter]["exp_avg"]
            # It forms the joint norm in float32 whatever the gradients are.
            np.testing.assert_allclose(leaf, theirs, rtol=1e-6)
    gammas = [float(optimizer.state[parameter]["gamma"]) for parameter in parameters]
    np.testing.assert_allclose(state.gamma, gammas, rtol=1e-6)


def test_a_leaf_that_starts_at_zero_is_held_there_by_others_and_not_by_us():
    published = pytest.importorskip("pytorch_optimizer").AdaGC
    run = [{"a": jnp.ones(2), "b": jnp.zeros(3)}] + [
        {"a": jnp.ones(2), "b": jnp.full(3, 0.1)}
    ] * 30
    parameters = [torch.zeros(2), torch.zeros(3)]
    optimizer = published(parameters, betas=(0.0, 0.999), warmup_steps=10)
    for grads in run:
        for parameter, leaf in zip(parameters, leaves(grads), strict=True):
            parameter.grad = torch.from_numpy(leaf.copy())
        optimizer.step()
    assert optimizer.state[parameters[1]]["exp_avg"].norm() < 2e-8

    clipped, _ = clip_all(adagc(lambda_abs=2.0, warmup_steps=10), run)
    np.testing.assert_allclose(clipped[-1]["b"], run[-1]["b"], rtol=1e-6)


def test_a_leaf_of_zeros_until_late_is_clipped_with_the_others_once():
    clip = adagc(warmup_steps=3)
    state = clip.init({"a": jnp.zeros(1), "b": jnp.zeros(1)})
    for a, b in [(0.5, 0.0)] * 5:
        _, state = clip.update({"a": jnp.array([a]), "b": jnp.array([b])}, state)
    np.testing.assert_array_equal(state.gamma, [0.5, 0.0])
    late = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    updates, state = clip.update(late, state)
    np.testing.assert_allclose([*updates["a"], *updates["b"]], [0.525, 0.8], rtol=1e-6)
    np.testing.assert_allclose(state.gamma, [0.5005, 0.8], rtol=1e-6)


def test_a_leaf_of_zeros_for_a_step_keeps_its_norm():
    clip = adagc(warmup_steps=10)
    state = clip.init(jnp.zeros(1))
    for length in (0.5, 0.0, 0.7):
        _, state = clip.update(jnp.array([length]), state)
    np.testing.assert_array_equal(state.gamma, [0.5])


def test_norms_that_overflow_leaf_by_leaf_are_clipped_as_one():
    clip = adagc(lambda_abs=2.0)
    grads = {"a": jnp.full(4, 3e38), "b": jnp.full(12, -3e38), "c": jnp.ones(2)}
    updates, state = clip.update(grads, clip.init(grads))
    np.testing.assert_allclose(updates["a"], np.full(4, 0.5), rtol=1e-6)
    np.testing.assert_allclose(updates["b"], np.full(12, -0.5), rtol=1e-6)
    np.testing.assert_allclose(state.gamma[:2], [1.0, 3**0.5], rtol=1e-6)


def test_another_number_of_leaves_than_in_init_is_refused():
    clip = adagc()
    state = clip.init([jnp.ones(2), jnp.ones(3)])
    with pytest.raises(
        ValueError, match=r"adagc: got updates with 1 leaves, expected 2"
    ):
        clip.update([jnp.ones(2)], state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lambda_rel": -1.0}, r"adagc\(lambda_rel=-1\.0\): expected a number ≥ 0"),
        ({"lambda_abs": np.nan}, r"adagc\(lambda_abs=nan\): expected a number ≥ 0"),
        ({"beta": -0.1}, r"adagc\(beta=-0\.1\): expected a number from 0 to 1"),
        ({"warmup_steps": 0}, r"adagc\(warmup_steps=0\): expected a whole number of"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        adagc(**options)

"""`spam_clip` against a NumPy oracle and against pytorch_optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxclip._methods.spam import spam_clip
from jaxclip._monitoring import clip_metrics
from tests.methods.runs import STEPS, clip_all, leaves

OPTIONS = [{}, {"theta": 50.0, "b2": 0.9}, {"theta": 500.0, "warmup_steps": 5}]


def run_with_spiking_elements(seed=0):
    """Return 200 gradients; on each step one element in ten is up to 1000 times out."""
    rng = np.random.default_rng(seed)
    run = []
    for _ in range(STEPS):
        grads = {"b": rng.standard_normal(5), "w": rng.standard_normal((3, 4))}
        for leaf in leaves(grads):
            leaf *= np.where(
                rng.random(leaf.shape) < 0.1, 10 ** rng.uniform(0, 3, leaf.shape), 1.0
            )
        run.append(grads)
    return run


RUN = run_with_spiking_elements()


def oracle(run, theta=5000.0, b2=0.999, warmup_steps=20):
    """Return the clipped leaves of each step, in float64."""
    moments = [np.zeros(leaf.shape) for leaf in leaves(run[0])]
    steps = []
    for t, grads in enumerate(run, start=1):
        clipped = []
        for g, v in zip(leaves(grads), moments, strict=True):
            spikes = (g**2 > theta * v) & (t >= warmup_steps)
            clipped.append(np.where(spikes, np.sign(g) * np.sqrt(theta * v), g))
            v[...] = b2 * v + (1 - b2) * clipped[-1] ** 2
        steps.append(clipped)
    return steps


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_200_steps_with_spikes_are_those_of_the_formula(options):
    expected = oracle(RUN, **options)
    clipped, state = clip_all(spam_clip(**options), RUN)
    for got, theirs in zip(clipped, expected, strict=True):
        for leaf, other in zip(leaves(got), theirs, strict=True):
            # Float32 errors of the moments, which clipped elements hand on.
            np.testing.assert_allclose(leaf, other, rtol=1e-5)
    changed = [
        any((a != b).any() for a, b in zip(theirs, leaves(grads), strict=True))
        for theirs, grads in zip(expected, RUN, strict=True)
    ]
    assert clip_metrics(state).clipped_count == sum(changed) > 4


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_200_steps_with_spikes_are_those_of_pytorch_optimizer(options, foreach):
    published = pytest.importorskip("pytorch_optimizer").SPAM
    parameters = [torch.zeros(leaf.size).double() for leaf in leaves(RUN[0])]
    optimizer = published(
        parameters,
        betas=(0.0, options.get("b2", 0.999)),
        threshold=options.get("theta", 5000.0),
        grad_accu_steps=options.get("warmup_steps", 20),
        update_proj_gap=STEPS + 2,
        foreach=foreach,
    )
    with jax.enable_x64(True):
        clipped, state = clip_all(spam_clip(**options), RUN, np.float64)
    for step, grads in enumerate(RUN):
        for parameter, leaf in zip(parameters, leaves(grads), strict=True):
            parameter.grad = torch.from_numpy(leaf.ravel().copy())
        optimizer.step()
        for parameter, leaf in zip(parameters, leaves(clipped[step]), strict=True):
            # Without an average of gradients, the first moment is the clipped one.
            theirs = optimizer.state[parameter]["exp_avg"]
            np.testing.assert_allclose(leaf.ravel(), theirs, rtol=1e-12)
    for parameter, root in zip(parameters, leaves(state.rms), strict=True):
        moment = optimizer.state[parameter]["exp_avg_sq"]
        np.testing.assert_allclose(root.ravel() ** 2, moment, rtol=1e-12)


@pytest.mark.parametrize("warmup_steps", [1, 20])
def test_an_element_that_comes_late_is_held_at_0_by_others_and_not_by_us(warmup_steps):
    published = pytest.importorskip("pytorch_optimizer").SPAM
    run = [np.array([0.0])] * (warmup_steps - 1) + [np.array([0.5])] * 10
    parameter = torch.zeros(1)
    optimizer = published([parameter], betas=(0.0, 0.999), grad_accu_steps=warmup_steps)
    for grad in run:
        parameter.grad = torch.from_numpy(grad.astype(np.float32))
        optimizer.step()
    assert optimizer.state[parameter]["exp_avg"] == 0
    assert parameter == 0

    clipped, _ = clip_all(spam_clip(warmup_steps=warmup_steps), run)
    assert clipped[-1] == 0.5


def test_its_defaults_are_those_of_pytorch_optimizer():
    published = pytest.importorskip("pytorch_optimizer").SPAM([torch.zeros(1)])
    assert (published.threshold, published.grad_accu_steps) == (5000, 20)
    assert published.defaults["betas"][1] == 0.999


def test_metrics_are_of_all_elements_and_of_the_one_clipped_most():
    clip = spam_clip(theta=4.0, b2=0.0, warmup_steps=2)
    state = clip.init(jnp.zeros(3))
    _, state = clip.update(jnp.array([1.0, 2.0, 3.0]), state)
    updates, state = clip.update(jnp.array([5.0, -8.0, 6.0]), state)
    np.testing.assert_array_equal(updates, [2.0, -4.0, 6.0])
    metrics = clip_metrics(state)
    np.testing.assert_allclose(metrics.total_norm, 125**0.5, rtol=1e-6)
    np.testing.assert_allclose(metrics.clipped_norm, 56**0.5, rtol=1e-6)
    np.testing.assert_allclose(metrics.clip_coef, 0.4, rtol=1e-6)


@pytest.mark.parametrize("unit", [1e-30, 3e36])
def test_the_unit_of_the_gradients_is_of_no_matter(unit):
    clip = spam_clip(theta=50.0)
    small = [jax.tree.map(lambda leaf: leaf / 1000, grads) for grads in RUN]
    scaled = [jax.tree.map(lambda leaf: leaf * unit, grads) for grads in small]
    expected, _ = clip_all(clip, small)
    got, state = clip_all(clip, scaled)
    for one, other in zip(got, expected, strict=True):
        for leaf, exact in zip(leaves(one), leaves(other), strict=True):
            # Float32 errors of the moments, which clipped elements hand on.
            np.testing.assert_allclose(leaf / np.float32(unit), exact, rtol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in leaves(state))


def test_other_leaves_than_in_init_are_refused():
    clip = spam_clip()
    state = clip.init([jnp.ones(2), jnp.ones(3)])
    message = (
        r"spam_clip: got updates whose leaves have the shapes \[\(2,\)\], expected"
    )
    with pytest.raises(ValueError, match=message):
        clip.update([jnp.ones(2)], state)


def test_complex_leaves_are_refused():
    grads = {"z": jnp.ones(2, jnp.complex64)}
    clip = spam_clip()
    with pytest.raises(
        TypeError, match=r"spam_clip: the leaf \['z'\] is of type compl"
    ):
        clip.update(grads, clip.init(grads))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"theta": -1.0}, r"spam_clip\(theta=-1\.0\): expected a number ≥ 0"),
        ({"b2": 1.1}, r"spam_clip\(b2=1\.1\): expected a number from 0 to 1"),
        ({"warmup_steps": 0}, r"spam_clip\(warmup_steps=0\): expected a whole number"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        spam_clip(**options)

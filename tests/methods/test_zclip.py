"""`zclip` against a NumPy oracle and against the package that its authors publish."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxclip._methods.zclip import zclip
from tests.methods.runs import clip_all, factors, leaves, norm, run_with_spikes

RUN = run_with_spikes()
OPTIONS = [
    {},
    {"max_grad_norm": None},
    {"max_grad_norm": None, "clip_option": "mean"},
    {"max_grad_norm": None, "clip_option": "percentile"},
    {"max_grad_norm": None, "clip_factor": 0.7},
    {"max_grad_norm": None, "skip_update_on_spike": True},
    {"alpha": 0.9, "z_thresh": 2.0, "max_grad_norm": 1.7, "warmup_steps": 10},
]


def oracle(
    norms,
    alpha=0.97,
    z_thresh=2.5,
    max_grad_norm=1.0,
    eps=1e-6,
    warmup_steps=25,
    clip_option="adaptive_scaling",
    clip_factor=1.0,
    skip_update_on_spike=False,
):
    """Return the coefficient of each step, in float64."""
    bound = np.inf if max_grad_norm is None else max_grad_norm
    first, mean, var, coefs = [], None, None, []
    for n in norms:
        threshold = None
        if mean is None:
            first.append(n)
            if len(first) == warmup_steps:
                mean, var = np.mean(first), np.var(first)
        else:
            std = np.sqrt(var)
            z = (n - mean) / (std + eps)
            if clip_option == "percentile":
                z = (n - mean) / std
            if z > z_thresh:
                threshold = {
                    "adaptive_scaling": clip_factor * (mean + z_thresh**2 * std / z),
                    "mean": mean,
                    "percentile": mean + z_thresh * std,
                }[clip_option]
            observed = n if threshold is None else threshold
            if threshold is None or not skip_update_on_spike:
                mean = alpha * mean + (1 - alpha) * observed
                var = alpha * var + (1 - alpha) * (observed - mean) ** 2
        limit = min(bound, np.inf if threshold is None else threshold)
        coefs.append(min(1.0, limit / (n + eps)))
    return coefs


@pytest.mark.parametrize("options", [*OPTIONS, {"eps": 0.01}], ids=str)
def test_200_steps_with_spikes_are_those_of_the_formula(options):
    expected = oracle([norm(grads) for grads in RUN], **options)
    assert sum(coef < 0.5 for coef in expected) >= 4
    got = factors(RUN, clip_all(zclip(**options), RUN)[0])
    # Sums of float32 errors over the 33 steps that the averages reach back.
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_200_steps_with_spikes_are_those_of_the_package(options):
    published = pytest.importorskip("zclip").ZClip
    renamed = dict(options)
    if renamed.get("clip_option") == "percentile":
        renamed |= {"mode": renamed.pop("clip_option")}
    clipper = published(**renamed)
    with jax.enable_x64(True):
        clipped, state = clip_all(zclip(**options), RUN, np.float64)
    for step, grads in enumerate(RUN):
        module = torch.nn.ParameterList([torch.zeros(1, dtype=torch.float64)] * 2)
        for parameter, leaf in zip(module, leaves(grads), strict=True):
            parameter.data = torch.zeros(leaf.shape, dtype=torch.float64)
            parameter.grad = torch.from_numpy(leaf.copy())
        clipper.step(module)
        for parameter, leaf in zip(module, leaves(clipped[step]), strict=True):
            np.testing.assert_allclose(leaf, parameter.grad, rtol=1e-12)
    np.testing.assert_allclose(state.mean, clipper.mean, rtol=1e-12)
    np.testing.assert_allclose(state.std, clipper.var**0.5, rtol=1e-12)


def test_the_package_never_forgets_a_nan_and_we_never_learn_it():
    published = pytest.importorskip("zclip").ZClip(max_grad_norm=None)
    module = torch.nn.ParameterList([torch.zeros(2)])
    lengths = [*np.linspace(1.0, 1.2, 30).tolist(), np.nan, *[1e6] * 3]
    for length in lengths:
        module[0].grad = torch.tensor([length, 0.0])
        published.step(module)
    assert np.isnan(published.mean)
    assert module[0].grad[0] == 1e6

    clip = zclip(max_grad_norm=None)
    state = clip.init(jnp.zeros(2))
    for length in lengths:
        updates, state = clip.update(jnp.array([length, 0.0]), state)
    assert state.observed == 33
    assert 1.0 < updates[0] < 1.3


def test_the_package_clips_to_0_for_ever_after_norms_of_0_and_we_do_not():
    published = pytest.importorskip("zclip").ZClip(max_grad_norm=None)
    module = torch.nn.ParameterList([torch.zeros(2)])
    lengths = [0.0] * 25 + [1.0] * 5
    for length in lengths:
        module[0].grad = torch.tensor([length, 0.0])
        published.step(module)
    assert module[0].grad[0] == 0

    clip = zclip(max_grad_norm=None)
    state = clip.init(jnp.zeros(2))
    for length in lengths:
        updates, state = clip.update(jnp.array([length, 0.0]), state)
    assert updates[0] > 0.1


@pytest.mark.parametrize("unit", [1e-30, 1e-10, 1e30])
def test_without_eps_the_unit_of_the_gradients_is_of_no_matter(unit):
    clip = zclip(max_grad_norm=None, eps=0.0)
    scaled = [{name: leaf * unit for name, leaf in grads.items()} for grads in RUN]
    expected, _ = clip_all(clip, RUN)
    got, _ = clip_all(clip, scaled)
    # As above; another unit rounds otherwise.
    np.testing.assert_allclose(factors(scaled, got), factors(RUN, expected), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, r"zclip\(alpha=1\.5\): expected a number from 0 to 1\."),
        ({"alpha": "x"}, r"zclip\(alpha='x'\): expected a real number"),
        ({"z_thresh": -1.0}, r"zclip\(z_thresh=-1\.0\): expected a number ≥ 0"),
        ({"max_grad_norm": np.nan}, r"zclip\(max_grad_norm=nan\): expected a number"),
        ({"eps": -1.0}, r"zclip\(eps=-1\.0\): expected a finite number"),
        ({"warmup_steps": 0}, r"zclip\(warmup_steps=0\): expected a whole number of s"),
        ({"warmup_steps": 2.5}, r"zclip\(warmup_steps=2\.5\): expected a whole number"),
        ({"clip_factor": -1}, r"zclip\(clip_factor=-1\.0\): expected a number ≥ 0"),
        (
            {"clip_option": "median"},
            r"zclip\(clip_option='median'\): expected one of 'adaptive_scaling', 'm",
        ),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        zclip(**options)

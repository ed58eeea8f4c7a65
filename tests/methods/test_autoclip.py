"""`autoclip` against a NumPy oracle and against the package of that name."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from jaxclip._methods.autoclip import autoclip
from tests.methods.runs import clip_all, factors, leaves, norm, run_with_spikes

RUN = run_with_spikes()
OPTIONS = [
    {},
    {"percentile": 0.0},
    {"percentile": 50.0, "window": 30},
    {"percentile": 100.0, "window": 7},
    {"percentile": 95.0, "window": 1},
    {"percentile": 90.0, "rule": "package"},
    {"percentile": 37.5, "rule": "package", "window": 20},
    {"percentile": 50.0, "rule": "package", "window": 1, "eps": 0.1},
]


def oracle(norms, percentile=10.0, window=1000, rule="paper", eps=0.0):
    """Return the coefficient of each step, in float64."""
    coefs = []
    for step, n in enumerate(norms):
        history = norms[: step + 1] if rule == "paper" else norms[:step]
        threshold = np.inf
        if history:
            threshold = np.percentile(history[-window:], percentile)
        coefs.append(min(1.0, threshold / (n + eps)))
    return coefs


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_200_steps_with_spikes_are_those_of_the_formula(options):
    expected = oracle([norm(grads) for grads in RUN], **options)
    got = factors(RUN, clip_all(autoclip(**options), RUN)[0])
    # A few float32 ulps: nothing adds up over the steps.
    np.testing.assert_allclose(got, expected, rtol=2e-6)


@pytest.mark.parametrize("percentile", [90.0, 25.0])
def test_200_steps_with_spikes_are_those_of_the_package(percentile):
    published = pytest.importorskip("autoclip.torch").QuantileClip
    clip = autoclip(percentile, window=50, rule="package", eps=1e-6)
    clipped, state = clip_all(clip, RUN)
    parameters = [torch.zeros(leaf.shape) for leaf in leaves(RUN[0])]
    clipper = published(
        parameters,
        quantile=percentile / 100,
        history_length=50,
        global_threshold=True,
    )
    for step, grads in enumerate(RUN):
        for parameter, leaf in zip(parameters, leaves(grads), strict=True):
            parameter.grad = torch.from_numpy(leaf.astype(np.float32))
        clipper.step()
        for parameter, leaf in zip(parameters, leaves(clipped[step]), strict=True):
            np.testing.assert_allclose(leaf, parameter.grad, rtol=2e-6)
    history = np.sort(clipper.state["global_history"])
    np.testing.assert_allclose(np.sort(state.history), history, rtol=1e-6)


def test_its_defaults_are_those_that_the_docstring_gives_the_package():
    published = pytest.importorskip("autoclip.torch").QuantileClip([torch.zeros(1)])
    assert published.defaults == {"quantile": 0.9, "history_length": 1000}
    assert not published.global_threshold


def test_the_package_gives_nan_after_one_and_we_do_not():
    published = pytest.importorskip("autoclip.torch").QuantileClip
    parameter = torch.zeros(2)
    clipper = published([parameter], history_length=5)
    clip = autoclip(90.0, window=5, rule="package")
    state = clip.init(jnp.zeros(2))
    for length in [1.0, 1.1, np.nan, 1.2, 50.0]:
        parameter.grad = torch.tensor([length, 0.0])
        clipper.step()
        updates, state = clip.update(jnp.array([length, 0.0]), state)
    assert parameter.grad.isnan().all()
    np.testing.assert_allclose(updates, [np.percentile([1, 1.1, 1.2], 90), 0], 1e-6)


def test_a_window_may_be_injected_eagerly_or_as_a_static_argument():
    grads = jnp.array([3.0, 4.0])
    with pytest.raises(ValueError, match=r"autoclip: window .* traced; .*static_args="):
        jax.jit(optax.inject_hyperparams(autoclip)(window=5).init)(grads)
    eager = optax.inject_hyperparams(autoclip)(window=5)
    static = optax.inject_hyperparams(autoclip, static_args=("window",))(window=5)
    for clip, init in [(eager, eager.init), (static, jax.jit(static.init))]:
        updates, state = jax.jit(clip.update)(grads, init(grads), grads)
        assert state.inner_state.history.shape == (5,)
        np.testing.assert_allclose(updates, grads, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"percentile": 101}, r"autoclip\(percentile=101\): expected a number from 0"),
        ({"percentile": np.nan}, r"autoclip\(percentile=nan\): expected a number from"),
        ({"window": 0}, r"autoclip\(window=0\): expected a whole number of steps"),
        ({"window": 1.5}, r"autoclip\(window=1\.5\): expected a whole number of steps"),
        ({"eps": -1.0}, r"autoclip\(eps=-1\.0\): expected a finite number ≥ 0"),
        ({"rule": "mean"}, r"autoclip\(rule='mean'\): expected one of 'paper', 'pack"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        autoclip(**options)

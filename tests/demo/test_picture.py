import numpy as np
import pytest

from jaxclip.demo._picture import draw, make_figure
from jaxclip.demo._settings import Settings
from tests.demo.runs import history, proof, trainings


def texts(ax):
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    return [ax.get_title(loc="left"), ax.get_title(), *legend]


def test_each_panel_says_what_it_shows():
    figure = make_figure(trainings(), proof(), Settings())
    losses, norms, differences = figure.axes
    assert "torch, not clipped" in texts(losses)
    assert {"torch, clipped", "JAX, clipped", "threshold 1"} <= set(texts(norms))
    assert "Gradient norm: 80% of the steps are clipped" in texts(norms)
    assert "torch against JAX: equal up to rounding" in texts(differences)
    assert [ax.get_yscale() for ax in figure.axes] == ["log"] * 3
    assert all(ax.get_xlabel() == "step" and ax.get_ylabel() for ax in figure.axes)


def test_the_curves_are_the_runs():
    runs = trainings()
    losses, norms, differences = make_figure(runs, proof(), Settings()).axes
    for ax, name in ((losses, "losses"), (norms, "grad_norms")):
        curves = {line.get_label(): line.get_ydata() for line in ax.get_lines()}
        for label, run in {
            "torch, not clipped": runs.unclipped,
            "torch, clipped": runs.torch,
            "JAX, clipped": runs.jax,
        }.items():
            np.testing.assert_array_equal(curves[label], getattr(run, name))
    curves = {line.get_label(): line.get_xydata() for line in differences.get_lines()}
    # As made up: 3e-7 and -2e-7 after the first step, both growing alike.
    np.testing.assert_allclose(curves["all parameters"][0], [1, 5e-7], rtol=0.2)
    np.testing.assert_allclose(
        curves["all parameters"][-1], [20, 5e-7 * 1.2**19], rtol=0.01
    )
    noise = curves["all parameters of JAX, float32 against float64"]
    np.testing.assert_array_equal(noise, [[n, 1e-7] for n in range(1, 11)])
    exact = curves["all parameters, both in float64"]
    np.testing.assert_array_equal(exact, [[n, 1e-16 * n] for n in range(1, 11)])


def test_parameters_are_compared_by_name():
    runs = trainings()
    for step, weights in runs.torch.weights.items():
        jax = runs.jax.weights[step]
        weights["b"] = jax["b"] = np.float32([[7.0]])
        # The frameworks list them in different orders.
        jax["w"] = jax.pop("w")
    differences = make_figure(runs, proof(), Settings()).axes[2]
    [curve] = [
        line.get_ydata()
        for line in differences.get_lines()
        if line.get_label() == "all parameters"
    ]
    assert max(curve) < 2e-5


def test_a_difference_is_said():
    differences = make_figure(trainings(), proof(error64=1e-3), Settings()).axes[2]
    assert "torch against JAX: NOT equal" in texts(differences)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_run_that_is_not_finite_is_drawn_and_told(tmp_path, value):
    free = history()
    free.losses[5:] = value
    free.grad_norms[5:] = value
    runs = trainings(unclipped=free)
    losses = make_figure(runs, proof(), Settings()).axes[0]
    assert [text.get_text() for text in losses.texts] == [
        f"not clipped: {value} from step 6"
    ]
    draw(runs, proof(), Settings(), tmp_path / "clipping.png")
    assert (tmp_path / "clipping.png").stat().st_size > 10_000

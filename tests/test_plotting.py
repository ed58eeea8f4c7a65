"""`plot_clipping` draws what happened."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from jaxclip import clip_by_global_norm, clip_metrics, plot_clipping

CLIP = clip_by_global_norm(1.0, eps=0.0)
SCALES = [0.5, 3.0, 0.0, np.nan, np.inf, 0.25, 8.0]


def run(scales):
    """Return the metrics of a step for each scale, whose norm that is."""
    state, history = CLIP.init(jnp.zeros(1)), []
    for scale in scales:
        _, state = CLIP.update(jnp.array([scale], jnp.float32), state)
        history.append(clip_metrics(state))
    return history


def lines(axes):
    return {line.get_label(): line.get_xydata() for line in axes.get_lines()}


def test_the_norms_and_what_became_of_them_are_drawn():
    drawn = lines(plot_clipping(run(SCALES), max_norm=1.0))
    steps = np.arange(1, 8)
    # A norm of 0 is drawn a decade below the least of the others.
    before = [0.5, 3.0, 0.025, np.nan, np.nan, 0.25, 8.0]
    after = [0.5, 1.0, 0.025, np.nan, np.nan, 0.25, 1.0]
    np.testing.assert_allclose(drawn["before"], np.stack([steps, before], 1))
    np.testing.assert_allclose(drawn["after"], np.stack([steps, after], 1))
    np.testing.assert_array_equal(drawn["max_norm"], np.c_[steps, np.ones(7)])
    np.testing.assert_allclose(drawn["clipped"], [[2, 3.0], [7, 8.0]])
    assert drawn["norm is NaN or inf"][:, 0].tolist() == [4, 5]


def test_the_axis_is_logarithmic_and_everything_is_labelled():
    axes = plot_clipping(run(SCALES))
    assert axes.get_yscale() == "log"
    assert axes.get_xlabel() == "step"
    assert axes.get_ylabel() == "norm of the gradients"
    assert axes.get_title() == "3 of 7 steps clipped (43%)"
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["before", "after", "clipped", "norm is NaN or inf"]


def test_a_history_of_scan_is_drawn_as_one_of_a_loop():
    def step(state, scale):
        _, state = CLIP.update(scale[None], state)
        return state, clip_metrics(state)

    scales = jnp.asarray(SCALES, jnp.float32)
    _, history = jax.lax.scan(step, CLIP.init(jnp.zeros(1)), scales)
    got, expected = lines(plot_clipping(history)), lines(plot_clipping(run(SCALES)))
    assert got.keys() == expected.keys()
    for name, points in expected.items():
        np.testing.assert_allclose(got[name], points, rtol=1e-6)


def test_a_threshold_may_change_from_step_to_step():
    drawn = lines(plot_clipping(run([1.0, 2.0]), max_norm=[3.0, 4.0]))
    assert drawn["max_norm"].tolist() == [[1, 3.0], [2, 4.0]]
    with pytest.raises(
        ValueError, match=r"got \(3,\) thresholds, expected one, or one"
    ):
        plot_clipping(run([1.0, 2.0]), max_norm=[3.0, 4.0, 5.0])


@pytest.mark.parametrize(
    ("scales", "title"),
    [
        ([5.0], "1 of 1 steps clipped (100%)"),
        ([0.5, 0.25], "0 of 2 steps clipped (0%)"),
        ([2.0] * 3, "3 of 3 steps clipped (100%)"),
        ([0.0, 0.0], "0 of 2 steps clipped (0%)"),
        ([np.nan], "0 of 1 steps clipped (0%)"),
    ],
)
def test_every_run_can_be_drawn_and_saved(tmp_path, scales, title):
    axes = plot_clipping(run(scales), max_norm=1.0)
    assert axes.get_title() == title
    axes.figure.savefig(tmp_path / "run.png")
    assert (tmp_path / "run.png").stat().st_size > 1000


def test_it_draws_on_the_axes_that_it_is_given():
    axes = Figure().subplots()
    assert plot_clipping(run([1.0, 2.0]), ax=axes) is axes
    assert len(axes.get_lines()) == 3


def test_steps_before_the_first_update_are_left_out():
    first = clip_metrics(CLIP.init(jnp.zeros(1)))
    drawn = lines(plot_clipping([first, *run([2.0])]))
    assert drawn["before"].tolist() == [[1, 2.0]]


@pytest.mark.parametrize("history", [[], [clip_metrics(CLIP.init(jnp.zeros(1)))]])
def test_a_history_without_a_step_is_refused(history):
    with pytest.raises(
        ValueError, match="got a history without a step, expected the m"
    ):
        plot_clipping(history)


def test_another_history_is_refused():
    with pytest.raises(TypeError, match="got a float in the history, expected ClipMet"):
        plot_clipping([1.0, 2.0])


def test_pyplot_is_left_alone_and_matplotlib_is_asked_for():
    code = (
        "import sys; sys.modules['matplotlib.figure'] = None\n"
        "import jaxclip\n"
        "assert 'matplotlib' not in sys.modules\n"
        "try: jaxclip.plot_clipping([])\n"
        "except ImportError as error: print(error)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert run.stdout == (
        "plot_clipping: matplotlib is not installed. Run pip install jaxclip[cli].\n"
    ), run.stderr

"""The picture: losses, gradient norms, and how far torch and JAX are apart."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from jaxclip._files import write_whole
from jaxclip.demo._differences import distance, relative_difference
from jaxclip.demo._history import Array, Weights
from jaxclip.demo._proof import Proof
from jaxclip.demo._settings import Settings
from jaxclip.demo._trainings import Trainings
from jaxclip.parity import Report

# Okabe and Ito's colours, which colour-blind readers can tell apart.
_TORCH, _JAX, _UNCLIPPED = "#E69F00", "#0072B2", "#CC79A7"
_LOSS, _PARAMETERS, _NOISE, _EXACT = "#009E73", "#D55E00", "#000000", "#56B4E9"

_STYLE: dict[Any, Any] = {
    "font.size": 12,
    "axes.titlesize": 13,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "legend.fontsize": 11,
}


def draw(trainings: Trainings, proof: Proof, settings: Settings, path: Path) -> None:
    """Draw the trainings into a PNG file, which is written whole or not at all.

    Args:
        trainings: The runs.
        proof: Whether they are the same in torch and in JAX.
        settings: What was asked for.
        path: The file.

    Raises:
        OSError: If it cannot be written.
    """
    with matplotlib.rc_context(_STYLE):
        figure = make_figure(trainings, proof, settings)
        write_whole(path, lambda file: figure.savefig(file, format="png"))


def make_figure(trainings: Trainings, proof: Proof, settings: Settings) -> Figure:
    """Draw losses, gradient norms and differences side by side."""
    figure = Figure(figsize=(16.5, 5.6), dpi=120, layout="constrained")
    figure.suptitle(
        f"One recurrent language model in torch and in JAX: {settings.cell}, "
        f"{settings.hidden} hidden units, SGD, learning rate {settings.lr:g}"
    )
    losses, norms, differences = figure.subplots(1, 3, width_ratios=(1, 1, 1.15))
    _draw_losses(losses, trainings)
    _draw_norms(norms, trainings)
    _draw_differences(differences, trainings, proof)
    return figure


def _draw_losses(ax: Axes, trainings: Trainings) -> None:
    ax.set_title("Loss, with clipping and without")
    ax.set_ylabel("loss (nats per character)")
    free = trainings.unclipped
    _draw_run(ax, free.losses, "torch, not clipped", _UNCLIPPED)
    _draw_pair(ax, trainings.torch.losses, trainings.jax.losses, ", clipped")
    # Losses span a decade or two: name more than the powers of ten.
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    ax.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    if (step := free.first_nonfinite) is not None:
        ax.axvline(step, color=_UNCLIPPED, linestyle=":")
        ax.annotate(
            f"not clipped: {free.losses[step - 1]} from step {step}",
            xy=(step, 1),
            xycoords=("data", "axes fraction"),
            color=_UNCLIPPED,
        )
    ax.legend()


def _draw_norms(ax: Axes, trainings: Trainings) -> None:
    share = trainings.torch.clipped_share(trainings.max_norm)
    ax.set_title(f"Gradient norm: {share:.0%} of the steps are clipped")
    ax.set_ylabel("norm of all gradients, before clipping")
    _draw_run(ax, trainings.unclipped.grad_norms, "torch, not clipped", _UNCLIPPED)
    _draw_pair(ax, trainings.torch.grad_norms, trainings.jax.grad_norms, ", clipped")
    ax.axhline(
        trainings.max_norm,
        color="black",
        linewidth=1.5,
        label=f"threshold {trainings.max_norm:g}",
    )
    ax.set_yscale("log")
    ax.legend()


def _draw_differences(ax: Axes, trainings: Trainings, proof: Proof) -> None:
    verdict = "equal up to rounding" if proof.equal else "NOT equal"
    ax.set_title(f"torch against JAX: {verdict}")
    ax.set_ylabel("relative difference")
    torch, jax = trainings.torch, trainings.jax
    loss = relative_difference(torch.losses, jax.losses)
    noise = _of_free_run(proof.float32, "noise")
    exact = _of_free_run(proof.float64, "difference")

    def draw(values: Array, label: str, color: str, style: str) -> None:
        ax.plot(_steps(values), _above_zero(values), style, color=color, label=label)

    draw(loss, "loss", _LOSS, "-")
    parameters = {
        step: distance(_flat(torch.weights[step]), _flat(weights))
        for step, weights in jax.weights.items()
    }
    ax.plot(
        list(parameters),
        _above_zero(np.array(list(parameters.values()))),
        "o-",
        color=_PARAMETERS,
        label="all parameters",
    )
    draw(noise, "all parameters of JAX, float32 against float64", _NOISE, ":")
    draw(exact, "all parameters, both in float64", _EXACT, ".-")
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    ax.set_yscale("log")
    ax.set_xlabel("step")
    # Between the curves in float32 and those in float64, nine decades below.
    ax.legend(loc="center right", bbox_to_anchor=(1, 0.35))


def _of_free_run(report: Report, figure: str) -> Array:
    steps = () if report.free_run is None else report.free_run.steps
    return np.array([getattr(step, figure) for step in steps])


def _draw_pair(ax: Axes, torch: Array, jax: Array, suffix: str) -> None:
    """Draw two curves that lie on each other: a broad one under a thin one."""
    _draw_run(ax, torch, f"torch{suffix}", _TORCH, linewidth=4)
    _draw_run(ax, jax, f"JAX{suffix}", _JAX, linewidth=1.2)


def _draw_run(
    ax: Axes, values: Array, label: str, color: str, linewidth: float = 1.2
) -> None:
    ax.plot(_steps(values), values, label=label, color=color, linewidth=linewidth)
    ax.set_xlabel("step")


def _steps(values: Array) -> Array:
    return np.arange(1, len(values) + 1)


def _above_zero(values: Array) -> Array:
    """Return what a log axis can show; elsewhere the curve has a gap."""
    return np.where(values > 0, values, np.nan)


def _flat(weights: Weights) -> Array:
    # By name, for the frameworks list their parameters in different orders.
    return np.concatenate([weight.ravel() for _, weight in sorted(weights.items())])

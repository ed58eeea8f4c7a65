"""Draw what a clip did over a run."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxclip._monitoring import ClipMetrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Of Okabe and Ito's colours, which the colour-blind can tell apart.
BEFORE, AFTER, THRESHOLD, BAD = "#999999", "#0072B2", "#000000", "#D55E00"


def plot_clipping(
    history: ClipMetrics | Sequence[ClipMetrics],
    *,
    max_norm: Any = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw the norms of a run, the threshold, and the steps that were clipped.

    The norm before and after clipping, on a log axis over the steps. Dots mark the
    steps that were clipped, crosses at the upper edge those that were not finite. A
    norm of 0, which a log axis has no place for, is drawn at its lower edge.

    Args:
        history: The metrics of each step: a sequence of what `clip_metrics` returned,
            or one `ClipMetrics` of arrays (steps,), as ``jax.lax.scan`` stacks them.
            Steps before the first update are left out.
        max_norm: The threshold: a number, or one for each step; None draws none.
        ax: What to draw on; None makes a figure of its own, outside of pyplot, which
            is then ``plot_clipping(...).figure``.

    Returns:
        The axes that were drawn on.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: ``history`` holds something else than `ClipMetrics`.
        ValueError: There is no step in it, or not as many thresholds as steps.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxclip import clip_by_global_norm, clip_metrics
        >>> clip = clip_by_global_norm(1.0)
        >>> def step(state, scale):
        ...     _, state = clip.update({"w": scale * jnp.ones(4)}, state)
        ...     return state, clip_metrics(state)
        >>> scales = jnp.array([0.1, 0.2, 5.0, 0.3])
        >>> _, history = jax.lax.scan(step, clip.init({"w": jnp.zeros(4)}), scales)
        >>> axes = plot_clipping(history, max_norm=1.0)
        >>> axes.get_title()
        '1 of 4 steps clipped (25%)'
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            "plot_clipping: matplotlib is not installed. Run pip install jaxclip[cli]."
        ) from None
    metrics = _stack(history)
    steps = metrics["count"]
    if ax is None:
        ax = Figure(figsize=(8, 3.5), layout="constrained").subplots()

    norms = metrics["total_norm"]
    floor = _lower_edge(norms, metrics["clipped_norm"])
    if max_norm is not None:
        limits = np.asarray(max_norm, float)
        if limits.shape not in ((), steps.shape):
            raise ValueError(
                f"plot_clipping(max_norm=...): got {limits.shape} thresholds, expected "
                f"one, or one for each of the {steps.size} steps."
            )
        limits = np.broadcast_to(limits, steps.shape)
        ax.plot(steps, limits, "--", color=THRESHOLD, linewidth=1, label="max_norm")
    lines = (("before", norms, BEFORE), ("after", metrics["clipped_norm"], AFTER))
    for name, values, color in lines:
        finite = np.where(np.isfinite(values), np.maximum(values, floor), np.nan)
        single = "o" if steps.size == 1 else ""
        ax.plot(steps, finite, color=color, linewidth=1, marker=single, label=name)

    clipped = metrics["clipped"].astype(bool)
    shown = clipped & np.isfinite(norms)
    if shown.any():
        dots = np.maximum(norms[shown], floor)
        ax.plot(steps[shown], dots, ".", color=BAD, markersize=4, label="clipped")
    bad = ~np.isfinite(norms)
    if bad.any():
        ax.plot(
            steps[bad],
            np.ones(bad.sum()),
            "x",
            color=BAD,
            transform=ax.get_xaxis_transform(),
            clip_on=False,
            label="norm is NaN or inf",
        )
    ax.set_yscale("log")
    ax.set_xlabel("step")
    ax.set_ylabel("norm of the gradients")
    share = clipped.mean()
    ax.set_title(f"{clipped.sum()} of {steps.size} steps clipped ({share:.0%})")
    ax.legend(frameon=False, ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.18))
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _stack(history: ClipMetrics | Sequence[ClipMetrics]) -> dict[str, Any]:
    """Return the scalars of a history by name, in arrays of (steps,)."""
    parts = [history] if isinstance(history, ClipMetrics) else list(history)
    for part in parts:
        if not isinstance(part, ClipMetrics):
            raise TypeError(
                f"plot_clipping: got a {type(part).__name__} in the history, expected "
                "ClipMetrics, as jaxclip.clip_metrics returns."
            )
    names = ("count", "total_norm", "clipped_norm", "clipped")
    parts = jax.device_get([part._replace(leaf_norms={}) for part in parts])
    stacked = {
        name: np.concatenate([np.atleast_1d(getattr(part, name)) for part in parts])
        if parts
        else np.zeros(0)
        for name in names
    }
    taken = stacked["count"] > 0
    if not taken.any():
        raise ValueError(
            "plot_clipping: got a history without a step, expected the metrics of at "
            "least one update."
        )
    return {name: values[taken] for name, values in stacked.items()}


def _lower_edge(*norms: Any) -> float:
    """Return where norms of 0 are drawn: below all the others."""
    values = np.concatenate(norms)
    positive = values[np.isfinite(values) & (values > 0)]
    return (
        float(positive.min() / 10) if (values == 0).any() and positive.size else 1e-38
    )

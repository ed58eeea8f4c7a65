"""Whether two trainings differ by rounding alone.

Training with gradients that explode amplifies rounding. After some steps the error of
a float32 run is one number, how far it strayed along the least stable direction, and
the ratio of two such numbers may be anything: correct ports gave 1 to 100. So the rule
of `jaxclip.parity` is asked over the very first steps, and leaves torch three digits,
which it needs: where a text repeats itself, its sums were up to 50 times less accurate
than JAX's.

What settles it are the float64 runs. Rounding is 2**29 times finer there, and a mistake
is not: where rounding is all that differs, the difference shrinks by so much.
"""

from dataclasses import dataclass

import numpy as np

from jaxclip.demo._history import Array, History
from jaxclip.parity import TreeComparison, compare_trees

CHECKPOINTS = (1, 5, 10, 20)
"""After how many steps the parameters are compared, in float64."""

EARLY = 5
"""Over how many steps float32 is compared."""

FLOAT32_FACTOR = 1e3
"""How many times as far as JAX's float32 run torch's may be from float64.

JAX's may be 100 times as far as torch's, which is the default of `jaxclip.parity`.
"""

FLOAT64_FACTOR = 1e4
"""How many times the float32 noise, scaled to float64, the float64 runs may differ.

Correct ports gave 0.5 to 220. A mistake as large as a rounding of float32 makes it
2**29, or 5e8.
"""

DROWNED = 1 / FLOAT32_FACTOR
"""The noise of a float32 run, relative to a tensor, beyond which nothing is told."""

_SHRINKAGE = float(np.finfo(np.float64).eps / np.finfo(np.float32).eps)
_LEAST_NOISE = 4 * float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Agreement:
    """The verdict on a training in torch and in JAX, and what it rests on.

    Attributes:
        steps: Over how many of the first steps it was reached; 0 if JAX's float32 run
            parts from its float64 run at once.
        possible: How many steps there were to compare.
        clipped: How many of the steps were clipped.
        float32: The float32 runs over the first `EARLY` of these steps, held against
            each other by JAX's float64 run; None if ``steps`` is 0.
        float32_losses: The greatest relative difference of the float32 losses.
        float64_losses: The relative difference of the float64 losses.
        float64_weights: The greatest relative difference of a float64 parameter.
        float64_ratio: The greatest difference in float64 over the noise in float32,
            scaled to float64. Up to ``FLOAT64_FACTOR`` is rounding.
    """

    steps: int
    possible: int
    clipped: int = 0
    float32: TreeComparison | None = None
    float32_losses: float = np.nan
    float64_losses: float = np.nan
    float64_weights: float = np.nan
    float64_ratio: float = np.nan

    @property
    def equal(self) -> bool:
        """Whether the two trainings differ by rounding alone."""
        return bool(self.float32) and self.float64_ratio <= FLOAT64_FACTOR

    def __str__(self) -> str:
        """Say the verdict, and what it rests on."""
        if self.float32 is None:
            return (
                "NOT equal: JAX's float32 run parts from its float64 run on the first "
                "step, so that there is nothing to hold torch's against"
            )
        apart = (
            f"over {_first(self.steps)}, {self.clipped} of them clipped, the losses "
            f"differ by at most {self.float32_losses:.1e} in float32; in float64 by "
            f"{self.float64_losses:.1e}, and the parameters by "
            f"{self.float64_weights:.1e}"
        )
        if not self.float64_ratio <= FLOAT64_FACTOR:  # NaN too
            return (
                f"NOT equal: {apart}, which is {self.float64_ratio:.1e} times what "
                "rounding accounts for"
            )
        early = _first(min(self.steps, EARLY))
        if not self.float32:
            return f"NOT equal: {apart}; over {early} {self.float32}"
        worst = self.float32.worst
        beyond = (
            f". Beyond step {self.steps} nothing can be told: rounding has grown "
            "too large"
        )
        return (
            f"equal, up to rounding: {apart}. Over {early}, before training amplifies "
            "rounding, torch in float32 is at most "
            f"{max(worst.ratio, worst.peak_ratio):.1f} times as far from float64 as JAX"
            + (beyond if self.steps < self.possible else "")
        )


def checkpoints(steps: int) -> list[int]:
    """Return after how many steps a run of ``steps`` is compared.

    Example:
        >>> checkpoints(7), checkpoints(400)
        ([1, 5, 7], [1, 5, 10, 20])
    """
    last = min(steps, CHECKPOINTS[-1])
    return sorted({step for step in CHECKPOINTS if step < last} | {last})


def judge(
    max_norm: float,
    *,
    torch32: History,
    torch64: History,
    jax32: History,
    jax64: History,
) -> Agreement:
    """Judge the four runs of one training.

    Only as many steps are compared as JAX's float32 run stays near its float64 run:
    beyond, the training has amplified rounding until no digit is left.

    Args:
        max_norm: The norm to which gradients were clipped.
        torch32: torch in float32, with its weights at the ``checkpoints``.
        torch64: The same in float64.
        jax32: JAX in float32.
        jax64: The same in float64.

    Returns:
        The verdict.
    """
    steps = 0
    for step in jax64.weights:
        noise = _distances(_tree(jax32, step), _tree(jax64, step))
        if not all(value < DROWNED for value in noise.values()):
            break
        steps = step
    if not steps:
        return Agreement(0, len(jax64.losses))

    early = min(steps, EARLY)
    float32 = compare_trees(
        *(_tree(run, early) for run in (torch32, jax32, jax64)), factor=FLOAT32_FACTOR
    )
    noise = _distances(_tree(jax32, steps), _tree(jax64, steps))
    apart = _distances(_tree(torch64, steps), _tree(jax64, steps))
    ratios = [
        apart[name] / (_SHRINKAGE * max(noise[name], _LEAST_NOISE)) for name in apart
    ]
    losses = relative_difference(torch32.losses[:steps], jax32.losses[:steps])
    return Agreement(
        steps,
        len(jax64.losses),
        int(np.sum(jax64.grad_norms[:steps] > max_norm)),
        float32,
        float32_losses=float(np.max(losses)),
        float64_losses=apart.pop("loss"),
        float64_weights=float(np.max(list(apart.values()))),
        float64_ratio=float(np.max(ratios)),
    )


def relative_difference(a: Array, b: Array) -> Array:
    """Return ``|a - b| / |b|`` for each element, in float64; 0 where both are 0."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(all="ignore"):  # NaN and infinity are for the caller to show
        return np.where(a == b, 0.0, np.abs(a - b) / np.abs(b))


def distance(a: Array, b: Array) -> float:
    """Return ``‖a - b‖ / ‖b‖``, in float64; 0 where both are 0."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(all="ignore"):
        apart = np.linalg.norm(a - b)
        return float(apart / np.linalg.norm(b)) if apart else 0.0


def _first(steps: int) -> str:
    return "the first step" if steps == 1 else f"the first {steps} steps"


def _tree(run: History, steps: int) -> dict[str, Array]:
    """Return the losses of the first steps, and the weights at the checkpoints."""
    return {"loss": run.losses[:steps]} | {
        f"{name} after step {step}": weight
        for step in checkpoints(steps)
        for name, weight in run.weights[step].items()
    }


def _distances(a: dict[str, Array], b: dict[str, Array]) -> dict[str, float]:
    return {name: distance(a[name], b[name]) for name in b}

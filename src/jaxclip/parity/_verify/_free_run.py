"""Training on from the first recorded step without torch, and how far it strays."""

import math
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxclip.convert import ConversionError
from jaxclip.parity._arrays import pieces, widened
from jaxclip.parity._sizes import l2, sizes
from jaxclip.parity._trace._digest import DRAWS, project
from jaxclip.parity._trace._step import Step
from jaxclip.parity._verify._compute._bench import Bench
from jaxclip.parity._verify._compute._known import Known, found_in
from jaxclip.parity._verify._compute._precision import coarsest, is_coarse
from jaxclip.parity._verify._compute._recorded import as_precise, took_step
from jaxclip.parity._verify._compute._runs import Precision
from jaxclip.parity._verify._judge._norms import true_norm
from jaxclip.parity._verify._judge._rules import noise_of
from jaxclip.parity._verify._judge._samples import Sample
from jaxclip.parity._verify._random._drawn import Drawn

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]

FACTOR = 250.0
"""How many times more of the noise is allowed than in one step.

Where training amplifies rounding, the error of a run is one number after a while, how
far it strayed along the least stable direction, and the ratio of two such numbers may
be anything: correct ports gave 1 to 100. Those of docs/verifying.md, which amplify
little, gave up to 17 over 20 steps, and up to 28 in float64.
"""

FLOAT64_FACTOR = 2500.0
"""The same for a recording in float64, whose noise is measured in float32."""

DROWNED = 1e-3
"""The noise, relative to the parameters, beyond which nothing is told."""


@dataclass(frozen=True)
class FreeStep:
    """A step of the free run.

    Attributes:
        step: The number of the step.
        torch_loss: torch's loss; NaN if it was not recorded.
        port_loss: The port's.
        difference: How far the port's parameters are from torch's after the step, as
            an L2 norm, relative to torch's.
        noise: How far the port's parameters in float32 are from those in float64.
        ratio: The greatest distance of a parameter from torch's over its noise.
        worst: The parameter of which that is.
        told: Whether the noise leaves something to compare.
        passed: Whether the ratio is no more than is allowed, or nothing is told.
    """

    step: int
    torch_loss: float
    port_loss: float
    difference: float
    noise: float
    ratio: float
    worst: str
    told: bool
    passed: bool


@dataclass(frozen=True)
class FreeRun:
    """A run of the port by itself, from the first recorded step.

    Attributes:
        steps: Its steps, as many as were recorded one after another.
        allowed: Up to which ratio a step passes.
        reason: Why there are no steps, or not all.
    """

    steps: tuple[FreeStep, ...]
    allowed: float = math.nan
    reason: str = ""

    @property
    def passed(self) -> bool:
        """Whether every step passed."""
        return all(step.passed for step in self.steps)

    @property
    def growth(self) -> float:
        """By what the difference was multiplied in a step, in the geometric mean."""
        found = [step.difference for step in self.steps if step.difference > 0]
        if len(found) < 2:
            return math.nan
        return float((found[-1] / found[0]) ** (1 / (len(found) - 1)))

    def __str__(self) -> str:
        """Say how it went in a line."""
        if not self.steps:
            return f"not run: {self.reason}"
        told = [step for step in self.steps if step.told]
        last = self.steps[-1]
        text = (
            f"{len(self.steps)} steps; the parameters differ by {last.difference:.2g} "
            f"in the end (noise {last.noise:.2g})"
        )
        if not math.isnan(self.growth):
            text += f", {self.growth:.3g} times more with each step"
        if len(told) < len(self.steps):
            text += f"; from step {self.steps[len(told)].step} on rounding is too large"
        failed = [step for step in self.steps if not step.passed]
        if failed:
            text += (
                f"; DIFFERENT from step {failed[0].step} on: {failed[0].worst} is "
                f"{failed[0].ratio:.3g} times the noise from the recorded one, up to "
                f"{self.allowed:g}"
            )
        return text + (f"; {self.reason}" if self.reason else "")


def run_freely(
    bench: Bench, steps: Iterable[Step], factor: float, kinked: Collection[int] = ()
) -> FreeRun:
    """Train the port from the first of some steps, on the recorded batches.

    Args:
        bench: What it takes.
        steps: The recorded steps, in order.
        factor: How many times the noise one step may differ.
        kinked: Numbers of the steps in which kinks part the two.
    """
    found: list[FreeStep] = []
    runs = [_trained(bench, precision) for precision in map(Precision, (False, True))]
    for run in runs:
        next(run)
    allowed, before = math.nan, None
    for step in steps:
        if before is not None and step.number != before + 1:
            return FreeRun((*found,), allowed, f"step {before + 1} was not recorded")
        if step.number in kinked:
            why = f"in step {step.number} the two are on two sides of a kink"
            return FreeRun((*found,), allowed, why)
        if not took_step(step):
            return FreeRun((*found,), allowed, f"step {step.number} took no step")
        before = step.number
        after = as_precise(step, found_in(step, "params_after", step.params_after))
        wide = all(array.dtype == np.float64 for array in after.values())
        allowed = factor * (FLOAT64_FACTOR if wide else FACTOR)
        try:
            made = [run.send(step) for run in runs]
        except ConversionError:
            return FreeRun((*found,), allowed, "the optimizer's state does not fit")
        found.append(_compared(bench, step, made, allowed))
    return FreeRun((*found,), allowed)


def _trained(
    bench: Bench, precision: Precision
) -> Generator[tuple[float, Arrays], Step, None]:
    """Take a step for each that is sent; yield its loss and the parameters after it."""
    step = yield math.nan, {}  # for next(), which starts it
    with precision.active():
        variables, clip_state, opt_state = bench.start(step, precision)
    while True:
        with precision.active():
            batch = bench.batch(step, precision)
            drawn = Drawn.of(step)
            forward = bench.runs.forward(variables, batch, drawn, precision)
            params, _ = bench.model.split(variables)
            grads, clip_state = bench.runs.clipped(forward.grads, clip_state, params)
            params, opt_state = bench.runs.optimized(grads, opt_state, params)
            variables = bench.model.joined(params, forward.rest)
            made = float(forward.loss), bench.alignment.params(params)
        step = yield made


def _compared(
    bench: Bench, step: Step, made: Sequence[tuple[float, Arrays]], allowed: float
) -> FreeStep:
    (narrow_loss, narrow), (wide_loss, wide) = made
    after = as_precise(step, found_in(step, "params_after", step.params_after))
    names = [name for name in after if name in wide and math.prod(after[name].shape)]
    ratios: dict[str, float] = {}
    for name in names:
        torch = after[name]
        stand_in = np.zeros(torch.shape, torch.dtype)
        sample = Sample(name, "", stand_in, narrow[name], wide[name])
        scale = noise_of(sample).norm
        ratios[name] = _distance(wide[name], torch) / scale
    in_float64 = all(array.dtype == np.float64 for array in after.values())
    port = wide if in_float64 else narrow
    noise = _apart(narrow, wide, names)
    worst = max(ratios, key=lambda name: np.nan_to_num(ratios[name], nan=np.inf))
    ratio = ratios[worst]
    # In few bits a gradient near 0 may have either sign, and Adam makes a whole step of
    # it: one run then says nothing about another.
    told = bool(noise < DROWNED) and not is_coarse(coarsest(bench.runs.dtypes))
    losses = [float(loss) for loss in step.loss]
    return FreeStep(
        step=step.number,
        torch_loss=sum(losses) if losses else math.nan,
        port_loss=wide_loss if in_float64 else narrow_loss,
        difference=_apart(port, after, names),
        noise=noise,
        ratio=float(ratio),
        worst=worst,
        told=told,
        passed=not told or bool(ratio <= allowed),
    )


def _apart(a: Arrays, b: Mapping[str, Array | Known], names: Sequence[str]) -> float:
    """Return ``‖a - b‖ / ‖b‖`` over all parameters."""
    apart = l2(np.asarray([_distance(a[name], b[name]) for name in names]))
    norm = true_norm({name: b[name] for name in names})
    return apart / norm if norm else 0.0


def _distance(port: Array, torch: Array | Known) -> float:
    """Return ``‖port - torch‖``, or what a digest makes of it."""
    if not isinstance(torch, Known):
        parts = pieces(torch, port)
        [apart] = sizes(([widened(a) - widened(b)] for a, b in parts), 1)
        return apart.norm
    [own] = project([widened(port)])
    return l2(own - torch.projections) / math.sqrt(DRAWS)

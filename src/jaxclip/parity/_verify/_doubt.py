"""Steps that differ by so little that more of the port's noise is to be drawn."""

import dataclasses

from jaxclip.parity._verify._judge._assembly import Part
from jaxclip.parity._verify._judge._stages import Comparing
from jaxclip.parity._verify._kinks._explaining import explained
from jaxclip.parity._verify._kinks._watching import Watched

DOUBT = 10.0
"""Up to how many times what is allowed a difference may be for want of draws.

Where one rounding is most of the error of a whole step, all of its elements are one
draw of it in each run. If such errors are normal, torch's is more than 4 times the
greatest of four runs in one case of 250, and 40 times in one of 2 million.
"""

MORE = 5
"""How many times as many draws are made where there is doubt.

torch's error is more than 4 times the greatest of 16 in one case of 800,000.
"""


def beyond_doubt(comparing: Comparing, watched: Watched) -> Part:
    """Compare the stages of a step, with more draws of the noise where few may err.

    Args:
        comparing: The step, and what it takes to compare it.
        watched: The runs of the port, in which elements can be moved.

    Returns:
        All stages, and how the first tensor that differs does.
    """
    part = explained(comparing, watched)
    if not _in_doubt(comparing, part):
        return part
    surer = dataclasses.replace(comparing, draws=MORE * comparing.draws)
    return _noted(explained(surer, watched), surer.draws, part, comparing.draws)


def _in_doubt(comparing: Comparing, part: Part) -> bool:
    """Say whether the first tensor that differs does by so little that draws tell."""
    failures = (tensor for stage in part.stages for tensor in stage.failures)
    first = next(failures, None)
    drawn = comparing.draws and comparing.rule.rtol is None
    return bool(drawn and first is not None and first.share <= DOUBT)


def _noted(part: Part, draws: int, before: Part, fewer: int) -> Part:
    """Name what differed only by the noise of fewer draws."""
    differed = {stage.stage: stage.failures for stage in before.stages}
    stages = []
    for stage in part.stages:
        failures = () if stage.failures else differed.get(stage.stage, ())
        notes = (
            f"{tensor.name} of step {tensor.step} was {tensor.ratio:.3g} times the "
            f"noise of {fewer} draws, so {draws} were made"
            for tensor in failures
        )
        stages.append(dataclasses.replace(stage, notes=(*stage.notes, *notes)))
    return dataclasses.replace(part, stages=stages)

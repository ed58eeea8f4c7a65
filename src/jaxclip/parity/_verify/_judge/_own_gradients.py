"""The stages after gradients of which digests were recorded.

The clip and the optimizer cannot be given torch's gradients then, and are given the
port's own. Their noise goes through the optimizer, which may make much of it: Adam's
first update is the sign of the gradient, and that of one which is zero but for rounding
is anything.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxclip.parity._arrays import Array, widened
from jaxclip.parity._sizes import l2
from jaxclip.parity._trace._step import Step
from jaxclip.parity._verify._compute._known import digested
from jaxclip.parity._verify._compute._sides import Sides, Stepped
from jaxclip.parity._verify._judge._rules import Rule, noise_of
from jaxclip.parity._verify._judge._samples import Sample

_STARTS_FROM = {
    "total norm": "grads",
    "clipped gradients": "grads",
    "update": "final_grads",
    "optimizer state": "final_grads",
    "parameters after": "final_grads",
}

BLIND = (
    "started from the port's own gradient, as a digest of torch's was recorded, and "
    "the noise of that leaves nothing to compare"
)


def own_gradients(step: Step, stage: str, *, clips: bool) -> list[str]:
    """Name the parameters of which a stage was given the port's own gradient.

    Args:
        step: The recorded step.
        stage: The stage.
        clips: Whether the port's clip is given apart, so that its optimizer is given
            what torch's clip made.
    """
    start = _STARTS_FROM.get(stage)
    if start is None:
        return []
    return digested(step, start if clips else "grads")


def remark(names: Sequence[str]) -> list[str]:
    """Say from what a stage started, if not from torch's gradients."""
    if not names:
        return []
    return [
        "The clip and the optimizer started from the port's own gradients where "
        "digests of torch's were recorded: a fault before them shows in them again."
    ]


def grain_of(name: str, sides: Sides[Stepped], rule: Rule) -> Array:
    """Return by how much an update may change where its gradient may be of any sign.

    Args:
        name: The parameter.
        sides: The step as the port computes it.
        rule: By how much tensors may differ.
    """
    narrow, wide = sides.narrow, sides.wide
    draws: Any = tuple(side.own[name] for side in sides.draws)  # errors, not arrays
    own = narrow.own[name]
    sample = Sample(name, "", own, own, wide.own[name], draws=draws)
    noise = noise_of(sample)
    doubtful = np.abs(widened(sample.wide)) <= rule.factor * noise.peak
    turned = [widened(side.turned[name]) for side in (wide, narrow, *sides.draws)]
    return np.where(doubtful, np.maximum.reduce(turned), 0.0)


def is_blind(grain: Array, wide: Array, rule: Rule) -> bool:
    """Say whether the updates whose sign is in doubt are all that there is."""
    return bool(grain.any() and rule.factor * l2(grain) >= l2(widened(wide)))

"""Whether what differs in a step is explained by kinks, and what is left if not."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jaxclip.parity._arrays import Array, widened
from jaxclip.parity._trace._step import Step
from jaxclip.parity._verify._alignment._places import Place
from jaxclip.parity._verify._compute._errors import Error
from jaxclip.parity._verify._compute._known import Known, outputs_in
from jaxclip.parity._verify._compute._recorded import total_loss
from jaxclip.parity._verify._compute._runs import Precision
from jaxclip.parity._verify._compute._sides import Called, Sides
from jaxclip.parity._verify._judge._assembly import Part
from jaxclip.parity._verify._judge._stages import Comparing, Unrecorded, joined
from jaxclip.parity._verify._kinks._kinks import (
    MOST,
    Kink,
    advised,
    defined_otherwise,
    flipped,
    found_in,
    named,
    near,
)
from jaxclip.parity._verify._kinks._watching import Move, Site, Watched
from jaxclip.parity._verify._random._drawn import Drawn
from jaxclip.parity._verify._report._results import StageResult, TensorResult

FORWARD = ("activations", "output", "loss", "gradients", "buffers after")
"""The stages that come of calling the loss function and differentiating it."""

APART = 10.0
"""How many times more one run of the port may be off than another by rounding alone."""

_FEW = 16
"""A tensor of fewer elements may be off by anything."""

_ENOUGH = 50_000
"""Of so many elements of a tensor the difference is fitted."""

Key = tuple[str, str]


def explained(comparing: Comparing, watched: Watched) -> Part:
    """Compare the stages of a step; where kinks part the two, see what is left.

    Args:
        comparing: The step, and what it takes to compare it.
        watched: The runs of the port, in which elements can be moved.

    Returns:
        All stages, and how the first tensor that differs does.
    """
    called, unrecorded = _called(comparing, watched)
    return joined((called, comparing.stepped(unrecorded).part()))


def _called(comparing: Comparing, watched: Watched) -> tuple[Part, Unrecorded]:
    """Compare what comes of calling the loss function."""
    sides = comparing.call()
    part, unrecorded = comparing.called(sides).part(), comparing.unrecorded(sides)
    suspicious = bool(_failed(part.stages)) or _apart(sides)
    # In few bits kinks are crossed everywhere, and are part of the noise. Where the
    # port draws what torch did not, they explain nothing.
    hopeless = comparing.bench.coarse or any(each.wrong for each in sides.wide.remarks)
    if comparing.rule.rtol is not None or not suspicious or hopeless:
        return part, unrecorded
    search = _Search(comparing, watched, sides)
    return search.result(part, unrecorded)


def _failed(stages: Iterable[StageResult]) -> list[TensorResult]:
    """Return the tensors that differ where kinks may be to blame."""
    found = (stage.failures for stage in stages if stage.stage in FORWARD)
    return [tensor for failures in found for tensor in failures]


def _apart(sides: Sides[Called]) -> bool:
    """Say whether one of the port's runs is much further off than another."""
    for name, exact in sides.wide.grads.items():
        if exact.size < _FEW or not sides.draws:
            continue
        own = Error.of(sides.narrow.grads[name], exact)
        drawn: list[Any] = [side.grads[name] for side in sides.draws]
        errors = [error.norm for error in (own, *drawn)]
        if max(errors) > APART * min(errors) > 0:
            return True
    return False


class _Search:
    """The search for kinks that explain a step.

    Args:
        comparing: The step.
        watched: The runs of the port, in which elements can be moved.
        sides: The step as the port computes it.
    """

    def __init__(
        self, comparing: Comparing, watched: Watched, sides: Sides[Called]
    ) -> None:
        """See where the port decides."""
        self._comparing, self._step = comparing, comparing.step
        self._watched, self._sides = watched, sides
        self._bench = dataclasses.replace(comparing.bench, runs=watched)
        plain, double, *changed = comparing.bench.precisions(comparing.draws)
        self._runs = [double, plain, *changed]
        made = [[*self._decided(precision)] for precision in self._runs]
        self._wide, *narrow = made
        # Only a recording in float64 is compared in it; its noise is scaled.
        self._double = any(a.dtype == np.float64 for a in self._step.params.values())
        factor = comparing.rule.factor
        self._near = near(self._wide, narrow, factor, self._double) or []
        self._near = [self._as_recorded(kink) for kink in self._near]
        self._tied = [kink for kink in self._near if kink.tied][:MOST]
        self._watched.watch(kink.site for kink in self._near)

    def _as_recorded(self, kink: Kink) -> Kink:
        """Take one for tied if torch's element is so too, where that is known."""
        site = self._wide[kink.site]
        if kink.distance or site.decision.among:
            return kink
        found = found_in(site, kink, self._activations())
        tied = kink.tied if found is None else found.torch == found.port
        return dataclasses.replace(kink, tied=tied)

    def _activations(self) -> list[tuple[Place, Array, Array]]:
        """Return what modules returned, in torch and in the port in float64."""
        wide = self._sides.wide.activations
        places = {
            Place(each.module, each.call, each.output): each
            for each in self._step.activations
            if each.digest is None
        }
        return [
            (place, each.array, np.asarray(wide[place]))
            for place, each in places.items()
            if place in wide
        ]

    def _decided(self, precision: Precision) -> list[Site]:
        with precision.active():
            own = self._bench.alignment
            variables = own.variables(self._step, precision.cast)
            batch = self._bench.batch(self._step, precision)
            drawn = Drawn.of(self._step)
            return self._watched.sites(variables, batch, drawn, precision)

    def result(self, part: Part, unrecorded: Unrecorded) -> tuple[Part, Unrecorded]:
        """Return the comparison with torch's side of every kink, if they explain it.

        Args:
            part: The comparison as it is.
            unrecorded: What the recording lacks of the gradients there.
        """
        rounded = [kink for kink in self._near if not kink.tied]
        tied = self._tied
        if len(rounded) > MOST:
            left = self._without_loss(part)
            return _with(left, _noted(left.stages, len(rounded))), unrecorded
        if not self._near:
            return part, unrecorded
        pins = [kink.back for kink in rounded]
        pinned, own = self._compared(pins)
        failed = _failed(pinned.stages)
        if not failed:
            # One that is on the kink itself in float64 was put on a side: torch's.
            on_it = [kink for kink in rounded if not kink.distance]
            excused = _failed(part.stages)
            return (self._excused(pinned, on_it) if excused else pinned), own
        recorded = _recorded(self._step)
        base = _by_key(self._called(self._runs[0], pins))
        if not all(_numbers(recorded, base, tensor) for tensor in failed):
            return pinned, own
        start = _fitted(base, failed)
        residual = _fitted(recorded, failed) - start

        def effect(moves: Sequence[Move]) -> Array:
            called = self._called(self._runs[0], moves)
            return _fitted(_by_key(called), failed) - start

        effects = [effect(_across(rounded, [n])) for n in range(len(rounded))]
        chosen = flipped(residual, effects)
        if chosen:
            found, theirs = self._compared(_across(rounded, chosen))
            if not _failed(found.stages):
                return self._excused(found, [rounded[n] for n in chosen]), theirs
        each = [[one] for one in effects]
        for kink in tied:
            moves = kink.across, kink.opposite
            each.append([effect([*pins, move]) for move in moves])
        shares = defined_otherwise(residual, each)
        guilty = [tied[n - len(rounded)] for n in shares if n >= len(rounded)]
        if not guilty:
            return pinned, own
        hint = "; ".join(advised(self._wide, guilty))
        return _with(pinned, _hinted(pinned.stages, hint)), own

    def _without_loss(self, part: Part) -> Part:
        """Call no gradient of the port inexact: torch may have crossed fewer kinks."""
        rule = dataclasses.replace(self._comparing.rule, port_factor=math.inf)
        comparing = dataclasses.replace(self._comparing, rule=rule)
        lenient = comparing.called(self._sides).part()
        again = {stage.stage: stage for stage in lenient.stages}
        stages = [
            again[stage.stage] if stage.stage == "gradients" else stage
            for stage in part.stages
        ]
        return Part(stages, {**lenient.pictured, **part.pictured})

    def _compared(self, moves: Sequence[Move]) -> tuple[Part, Unrecorded]:
        """Compare the step with elements moved, in all runs of the port."""

        def called(precision: Precision) -> Called:
            if self._double and not precision.wide:  # it is there for its noise alone
                return self._comparing.bench.called(self._step, precision)
            return self._called(precision, moves)

        sides = self._comparing.call(called)
        comparing = self._comparing
        return comparing.called(sides).part(), comparing.unrecorded(sides)

    def _called(self, precision: Precision, moves: Sequence[Move]) -> Called:
        moved = {(move.site, move.index) for move in moves}
        held = (kink.held(self._runs.index(precision)) for kink in self._tied)
        rest = [m for m in held if m is not None and (m.site, m.index) not in moved]
        self._watched.moving([*moves, *rest])
        return self._bench.called(self._step, precision)

    def _excused(self, part: Part, kinks: Sequence[Kink]) -> Part:
        """Name the kinks in the stage of the gradients."""
        activations = self._activations()
        names = tuple(named(self._wide[kink.site], kink, activations) for kink in kinks)
        stages = [
            dataclasses.replace(stage, kinks=names)
            if stage.stage == "gradients"
            else stage
            for stage in part.stages
        ]
        return _with(part, stages)


def _with(part: Part, stages: list[StageResult]) -> Part:
    return dataclasses.replace(part, stages=stages)


def _across(kinks: Sequence[Kink], chosen: Sequence[int]) -> list[Move]:
    """Move some elements to the other side, and hold the others on theirs."""
    return [kink.across if n in chosen else kink.back for n, kink in enumerate(kinks)]


def _by_key(side: Called) -> dict[Key, Array]:
    """Return what a side has of the stages that kinks change."""
    return {
        **{("activations", str(place)): a for place, a in side.activations.items()},
        **{("output", name): array for name, array in (side.outputs or {}).items()},
        ("loss", "loss"): side.loss,
        **{("gradients", name): a for name, a in side.grads.items()},
        **{("buffers after", name): a for name, a in side.buffers.items()},
    }


def _recorded(step: Step) -> dict[Key, Array]:
    """Return what torch has of them; a gradient that it lacks is one of zeros."""
    activations = {
        str(Place(each.module, each.call, each.output)): each.array
        for each in step.activations
        if each.digest is None
    }
    grads = {
        name: step.grads[name] if name in step.grads else np.zeros_like(param)
        for name, param in step.params.items()
        if name not in step.digests.get("grads", {})
    }
    outputs = outputs_in(step)
    loss = total_loss(step)
    return {
        **{("activations", name): array for name, array in activations.items()},
        **{
            ("output", name): array
            for name, array in outputs.items()
            if not isinstance(array, Known)
        },
        **({} if loss is None else {("loss", "loss"): loss}),
        **{("gradients", name): array for name, array in grads.items()},
        **{
            ("buffers after", name): array for name, array in step.buffers_after.items()
        },
    }


def _numbers(
    recorded: dict[Key, Array], own: dict[Key, Array], tensor: TensorResult
) -> bool:
    """Say whether a tensor differs by numbers alone."""
    sides = [arrays.get((tensor.stage, tensor.name)) for arrays in (recorded, own)]
    one, other = sides
    if one is None or other is None or one.shape != other.shape:
        return False
    return bool(np.isfinite(widened(one)).all() and np.isfinite(widened(other)).all())


def _fitted(arrays: dict[Key, Array], failed: Sequence[TensorResult]) -> Array:
    """Return some elements of the tensors that failed, in units of their noise."""
    parts = []
    for tensor in failed:
        allowed = tensor.comparison.allowed
        unit = allowed if np.isfinite(allowed) and allowed > 0 else 1.0
        flat = widened(arrays[tensor.stage, tensor.name]).reshape(-1)
        parts.append(flat[:: max(1, flat.size // _ENOUGH)] / unit)
    return np.concatenate(parts)


def _noted(stages: list[StageResult], count: int) -> list[StageResult]:
    note = (
        f"{count} elements or more are within noise of a kink, which is too many to "
        "try. What the port's runs decide differently is in the noise"
    )
    return [
        dataclasses.replace(stage, notes=(*stage.notes, note))
        if stage.stage == "gradients"
        else stage
        for stage in stages
    ]


def _hinted(stages: list[StageResult], hint: str) -> list[StageResult]:
    """Say what the tensors that failed look like."""
    return [
        dataclasses.replace(
            stage,
            tensors=tuple(
                tensor if tensor.passed else dataclasses.replace(tensor, hint=hint)
                for tensor in stage.tensors
            ),
        )
        if stage.stage in FORWARD
        else stage
        for stage in stages
    ]

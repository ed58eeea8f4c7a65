"""A recorded step as the port computes it, from torch's own state, part by part.

Each part is given what torch had there: the loss function torch's weights, the clip
torch's gradients, the optimizer torch's clipped gradients. So a fault is seen where it
is, and hides no other. Where digests of torch's gradients were recorded, and not the
gradients, what comes after them is given the port's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip import ClipState
from jaxclip.convert import ConversionError
from jaxclip.parity._trace._step import Step
from jaxclip.parity._verify._aligned import Aligned
from jaxclip.parity._verify._alignment import Place
from jaxclip.parity._verify._known import arrays_in
from jaxclip.parity._verify._models import Model
from jaxclip.parity._verify._replay import Masks, Remark
from jaxclip.parity._verify._runs import Precision, Runs, nested_batch

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]


@dataclass
class Side:
    """A step as the port computes it in one precision: all by torch's names.

    Attributes:
        weights: The weights, as they came out of the port again.
        activations: What modules returned.
        unseen: Why the modules that are missing there are.
        outputs: What the loss function returned beside the loss; None if nothing.
        loss: The loss.
        grads: The gradients.
        buffers: What is no parameter, after the step.
        total_norm: The norm that the clip took; None if none says so.
        clipped: torch's gradients as the port clips them; None if that is in a chain.
        used: The gradients that the optimizer was given: torch's, as they were
            clipped, or the port's own where torch's were recorded as digests.
        update: By how much the optimizer changed the parameters.
        params: The parameters after the step.
        kept: The optimizer's state after the step, by ``"name/key"``.
        problems: Why the optimizer's state could not be had.
        remarks: What there is to say of the masks of dropout.
    """

    weights: Arrays
    activations: Mapping[Place, Array]
    unseen: Mapping[str, str]
    outputs: Arrays | None
    loss: Array
    grads: Arrays
    buffers: Arrays
    total_norm: Array | None = None
    clipped: Arrays | None = None
    used: Arrays = field(default_factory=dict)
    update: Arrays = field(default_factory=dict)
    params: Arrays = field(default_factory=dict)
    kept: Arrays = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    remarks: tuple[Remark, ...] = ()


@dataclass(frozen=True)
class Bench:
    """What it takes to compute a recorded step.

    Attributes:
        model: The port's model.
        alignment: Which array is which.
        runs: The compiled parts of the step.
        clips: Whether the port's clip is given apart.
    """

    model: Model
    alignment: Aligned
    runs: Runs
    clips: bool

    def side(self, step: Step, precision: Precision) -> Side:
        """Compute a step in one precision."""
        with precision.active():
            return self._side(step, precision)

    def start(self, step: Step, precision: Precision) -> tuple[Any, Any, Any]:
        """Return the variables and the states that the recording has at a step.

        Raises:
            ConversionError: If the optimizer's state does not fit.
        """
        cast = precision.cast
        variables = self.alignment.variables(step, cast)
        params, _ = self.model.split(variables)
        opt_state = self.alignment.opt_state(
            step.opt_state,
            self.runs.fresh_optimizer(params),
            params,
            steps_taken(step),
            cast,
        )
        return variables, self.clip_state(step, params, precision), opt_state

    def clip_state(self, step: Step, params: Any, precision: Precision) -> Any:
        """Return the state that the clip has at a step, or a fresh one."""
        fresh = self.runs.fresh_clip(params)
        return self.alignment.clip_state(step.opt_state, fresh, params, precision.cast)

    def batch(self, step: Step, precision: Precision) -> dict[str, Any]:
        """Return the batch of a step.

        Its numbers are never changed: some stand for something, as a mask's 1 does.
        """
        cast = {
            name: Precision(precision.wide).cast(array)
            for name, array in step.batch.items()
        }
        batch: dict[str, Any] = jax.tree.map(jnp.asarray, nested_batch(cast.items()))
        return batch

    def _side(self, step: Step, precision: Precision) -> Side:
        own, cast = self.alignment, precision.cast
        variables = own.variables(step, cast)
        params, rest = self.model.split(variables)
        batch, masks = self.batch(step, precision), Masks.of(step.masks)
        found = self.runs.forward(variables, batch, masks, precision)
        order = [Place(a.module, a.call, a.output) for a in step.activations]
        activations, unseen = own.activations(found.calls, order)
        side = Side(
            weights={**own.params(params), **own.buffers(rest)},
            activations=activations,
            unseen=unseen,
            outputs=None if found.outputs is None else own.outputs(found.outputs),
            loss=np.asarray(found.loss),
            grads=own.params(found.grads),
            buffers=own.buffers(found.rest),
            remarks=(*found.account.of(masks),),
        )
        if stepped(step):
            if precision.change:
                precision = precision.of_arrays
                params, _ = self.model.split(own.variables(step, precision.cast))
            self._optimize(side, step, params, found.grads, precision)
        return side

    def _optimize(
        self, side: Side, step: Step, params: Any, grads: Any, precision: Precision
    ) -> None:
        own, cast = self.alignment, precision.cast
        grads = own.replaced(grads, arrays_in(step, "grads", step.grads), cast)
        clip_state = self.clip_state(step, params, precision)
        if self.clips:
            grads, clip_state = self.runs.clipped(grads, clip_state, params)
            side.clipped = own.params(grads)
            side.total_norm = norm_in(clip_state)
            final = arrays_in(step, "final_grads", step.final_grads)
            grads = own.replaced(grads, final, cast)
        side.used = own.params(grads)
        try:
            _, _, opt_state = self.start(step, precision)
        except ConversionError as error:
            side.problems = tuple(error.problems)
            return
        after, opt_state = self.runs.optimized(grads, opt_state, params)
        if not self.clips:
            side.total_norm = norm_in(opt_state)
        before, side.params = own.params(params), own.params(after)
        side.update = {
            name: array - before[name] for name, array in side.params.items()
        }
        side.kept = own.kept(opt_state, clip_state, params)


def stepped(step: Step) -> bool:
    """Say whether torch's optimizer took a step, and what it left is recorded."""
    took = any(event.kind == "optimizer_step" for event in step.events)
    digests = step.digests
    after = step.params_after or digests.get("params_after")
    grads = step.grads or digests.get("grads")
    return took and bool(after and grads)


def steps_taken(step: Step) -> int:
    """Return how many steps the optimizer had taken before a recorded one."""
    counts = [
        int(own["step"])
        for own in step.opt_state.values()
        if "step" in own and own["step"].ndim == 0
    ]
    return max(counts, default=step.number)


def as_precise(step: Step, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return what torch's optimizer made of parameters, as precise as it can be.

    torch's NAdam and ASGD keep numbers in float32 by which they step, of parameters in
    float64 too. What is known by a digest alone stays as it is.
    """
    coarse = {
        name
        for name, own in step.opt_state_after.items()
        for key, array in own.items()
        # torch counts steps in float32, and a count is exact.
        if key != "step" and array.dtype == np.float32
    }
    return {
        name: array.astype(np.float32)
        if name in coarse and isinstance(array, np.ndarray) and array.dtype == "float64"
        else array
        for name, array in arrays.items()
    }


def norm_in(state: Any) -> Array | None:
    """Return the norm that a clip of jaxclip's took, if there is one such clip."""
    parts = jax.tree.leaves(state, is_leaf=lambda part: isinstance(part, ClipState))
    norms = [part.total_norm for part in parts if isinstance(part, ClipState)]
    return np.asarray(norms[0]) if len(norms) == 1 else None

"""The computation of a recorded step by the port, part by part, in any precision.

Each part is given what torch had there: the loss function torch's weights, the clip
torch's gradients, the optimizer torch's clipped gradients. So a fault is seen where it
is, and hides no other. Where digests of torch's gradients were recorded, and not the
gradients, what comes after them is given the port's own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip import ClipState
from jaxclip.convert import ConversionError
from jaxclip.parity._trace._step import Step
from jaxclip.parity._verify._alignment._aligned import Aligned
from jaxclip.parity._verify._alignment._places import Place, output_name
from jaxclip.parity._verify._compute._known import arrays_in, digested, found_in
from jaxclip.parity._verify._compute._precision import change_of, coarsest, is_coarse
from jaxclip.parity._verify._compute._recorded import (
    AT_START,
    named_state,
    state_at_start,
    steps_taken,
)
from jaxclip.parity._verify._compute._runs import Precision, Runs, nested_batch
from jaxclip.parity._verify._compute._sides import Called, S, Sides, Stepped
from jaxclip.parity._verify._port._models import Model
from jaxclip.parity._verify._random._drawn import Drawn

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]


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

    @property
    def coarse(self) -> bool:
        """Whether the port computes in few bits; known when it has been called."""
        return is_coarse(coarsest(self.runs.dtypes))

    def precisions(self, draws: int) -> list[Precision]:
        """Return the precisions in which a step is computed.

        They are the recorded dtype, float64, and the first with changes; how large
        these must be is known when the loss function has been called once.

        Args:
            draws: In how many of them what the port is given is changed.
        """
        change = change_of(coarsest(self.runs.dtypes))
        changed = (Precision(False, draw, change) for draw in range(1, draws + 1))
        return [Precision(False), Precision(True), *changed]

    def sides(self, step: Step, part: Callable[[Precision], S], draws: int) -> Sides[S]:
        """Compute a part of a step in all precisions.

        Args:
            step: The recorded step.
            part: Computes the part in one of them.
            draws: In how many of them what the port is given is changed.
        """
        narrow, wide = part(Precision(False)), part(Precision(True))
        _, _, *changed = self.precisions(draws)
        drawn = (part(precision).errors(step, wide) for precision in changed)
        return Sides(wide, narrow, tuple(drawn))

    def start(self, step: Step, precision: Precision) -> tuple[Any, Any, Any]:
        """Return the variables and the states that the recording has at a step.

        Raises:
            ConversionError: If the optimizer's state does not fit.
        """
        variables = self.alignment.variables(step, precision.cast)
        params, _ = self.model.split(variables)
        opt_state = self.opt_state(step, params, precision)
        return variables, self.clip_state(step, params, precision), opt_state

    def opt_state(self, step: Step, params: Any, precision: Precision) -> Any:
        """Return the state that the optimizer has at a step.

        Raises:
            ConversionError: If it does not fit.
        """
        fresh = self.runs.fresh_optimizer(params)
        return self.alignment.opt_state(
            *(step.opt_state, fresh, params, steps_taken(step), precision.cast)
        )

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

    def called(self, step: Step, precision: Precision) -> Called:
        """Call the loss function with the recorded weights, and differentiate it."""
        own, cast = self.alignment, precision.cast
        with precision.active():
            variables = own.variables(step, cast)
            params, rest = self.model.split(variables)
            batch, drawn = self.batch(step, precision), Drawn.of(step)
            found = self.runs.forward(variables, batch, drawn, precision)
            recorded = arrays_in(step, "grads", step.grads)
            shapes = {
                Place(each.module, each.call, each.output): each.shape
                for each in step.activations
            }
            activations, unseen = own.activations(found.calls, shapes)
            return Called(
                weights={**own.params(params), **own.buffers(rest)},
                activations=activations,
                unseen=unseen,
                outputs=self._outputs(found.outputs, len(step.outputs)),
                loss=np.asarray(found.loss),
                grads=own.params(found.grads),
                buffers=own.buffers(found.rest),
                unrecorded=own.without(found.grads, recorded),
                remarks=(*found.account.of(drawn),),
            )

    def _outputs(self, returned: Any, calls: int) -> Arrays | None:
        """Name the outputs of one call of the model, or of a list of several."""
        each = (returned,) if calls < 2 else returned
        if returned is None or not isinstance(each, list | tuple):
            return None
        if len(each) != max(calls, 1):
            return None
        return {
            output_name(call, place): array
            for call, output in enumerate(each)
            for place, array in self.alignment.outputs(output).items()
        }

    def stepped(self, step: Step, precision: Precision, unrecorded: Any) -> Stepped:
        """Clip the recorded gradients, and take the optimizer's step.

        Args:
            step: The recorded step.
            precision: In which precision.
            unrecorded: The gradients that the recording lacks, as ``called`` returned
                them.
        """
        precision = precision.of_arrays
        with precision.active():
            return self._stepped(step, precision, unrecorded)

    def _stepped(self, step: Step, precision: Precision, unrecorded: Any) -> Stepped:
        own, cast = self.alignment, precision.cast
        params, _ = self.model.split(own.variables(step, cast))
        grads = own.replaced(unrecorded, arrays_in(step, "grads", step.grads), cast)
        clip_state = self.clip_state(step, params, precision)
        clipped = norm = None
        if self.clips:
            grads, clip_state = self.runs.clipped(grads, clip_state, params)
            clipped, norm = own.params(grads), norm_in(clip_state)
            final = arrays_in(step, "final_grads", step.final_grads)
            grads = own.replaced(grads, final, cast)
        try:
            start = self.opt_state(step, params, precision)
        except ConversionError as error:
            norm = _as_kept(step.total_norm, norm, precision)
            return Stepped(norm, clipped, problems=tuple(error.problems))
        after, opt_state = self.runs.optimized(grads, start, params)
        if not self.clips:
            norm = norm_in(opt_state)
        before, params_after = own.params(params), own.params(after)
        update = {name: array - before[name] for name, array in params_after.items()}
        names = digested(step, "final_grads" if self.clips else "grads")
        used = own.params(grads) if names else {}
        given = {name: used[name] for name in names if name in used}
        turned: Arrays = {}
        if given:
            other = own.replaced(grads, {n: -g for n, g in given.items()}, np.asarray)
            elsewhere, _ = self.runs.optimized(other, start, params)
            found = own.params(elsewhere)
            turned = {name: np.abs(params_after[name] - found[name]) for name in given}
        recorded = found_in(step, "opt_state_after", named_state(step.opt_state_after))
        kept = own.kept(opt_state, clip_state, params)
        return Stepped(
            total_norm=_as_kept(step.total_norm, norm, precision),
            clipped=clipped,
            update=update,
            params=params_after,
            kept=_all_as_kept(recorded, kept, precision),
            at_start=self._at_start(step, params, precision),
            own=given,
            turned=turned,
        )

    def _at_start(self, step: Step, params: Any, precision: Precision) -> Arrays:
        """Return what a fresh state keeps, if the recording has that, too."""
        recorded = state_at_start(step)
        if not recorded:
            return {}
        fresh = self.runs.fresh_optimizer(params), self.runs.fresh_clip(params)
        kept = self.alignment.kept(*fresh, params)
        named = {f"{name}{AT_START}": array for name, array in kept.items()}
        return _all_as_kept(recorded, named, precision)


def _all_as_kept(
    recorded: Mapping[str, Any], arrays: Arrays, precision: Precision
) -> dict[str, Array]:
    return {
        name: _as_kept(recorded.get(name), array, precision)
        for name, array in arrays.items()
    }


def _as_kept(recorded: Any, array: Any, precision: Precision) -> Any:
    """Return what a port keeps in float32 in the narrower dtype of the recording."""
    if precision.wide or recorded is None or array is None:
        return array
    both = jnp.issubdtype(recorded.dtype, jnp.floating) and array.dtype == np.float32
    narrower = both and recorded.dtype.itemsize < 4
    return array.astype(recorded.dtype) if narrower else array


def norm_in(state: Any) -> Array | None:
    """Return the norm that a clip of jaxclip's took, if there is one such clip."""
    parts = jax.tree.leaves(state, is_leaf=lambda part: isinstance(part, ClipState))
    norms = [part.total_norm for part in parts if isinstance(part, ClipState)]
    return np.asarray(norms[0]) if len(norms) == 1 else None

"""A recorded step as the port computes it, from torch's own state, part by part.

Each part is given what torch had there: the loss function torch's weights, the clip
torch's gradients, the optimizer torch's clipped gradients. So a fault is seen where it
is, and hides no other. Where digests of torch's gradients were recorded, and not the
gradients, what comes after them is given the port's own.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip import ClipState
from jaxclip.convert import ConversionError
from jaxclip.parity._trace._step import Step
from jaxclip.parity._verify._aligned import Aligned
from jaxclip.parity._verify._alignment import Place
from jaxclip.parity._verify._errors import Error, errors_of
from jaxclip.parity._verify._known import arrays_in, digested, found_in
from jaxclip.parity._verify._models import Model
from jaxclip.parity._verify._precision import change_of, coarsest, is_coarse
from jaxclip.parity._verify._replay import Masks, Remark
from jaxclip.parity._verify._runs import Precision, Runs, nested_batch

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]


S = TypeVar("S", "Called", "Stepped")


@dataclass(frozen=True)
class Called:
    """What calling the loss function and differentiating it gave: by recorded names.

    Attributes:
        weights: The weights, as they came out of the port again.
        activations: What modules returned.
        unseen: Why the modules that are missing there are.
        outputs: What the loss function returned beside the loss; None if nothing.
        loss: The loss.
        grads: The gradients.
        buffers: What is no parameter, after the step.
        left: A tree like the parameters, with the gradients that the recording lacks.
        remarks: What there is to say of the masks of dropout.
    """

    weights: Arrays
    activations: Mapping[Place, Array]
    unseen: Mapping[str, str]
    outputs: Arrays | None
    loss: Array
    grads: Arrays
    buffers: Arrays
    left: Any
    remarks: tuple[Remark, ...]

    def errors(self, step: Step, wide: "Called") -> "Called":
        """Return it with the errors of arrays in their place.

        Args:
            step: The recorded step.
            wide: What a run in float64 gave.
        """
        places = {
            Place(each.module, each.call, each.output)
            for each in step.activations
            if each.digest is not None
        }
        outputs = {name.partition("/")[2] for name in step.digests.get("outputs", {})}
        of: Any = errors_of
        error: Any = Error.of
        return dataclasses.replace(
            self,
            weights=of(self.weights, wide.weights),
            activations=of(self.activations, wide.activations, places),
            outputs=of(self.outputs or {}, wide.outputs or {}, outputs),
            loss=error(self.loss, wide.loss),
            grads=of(self.grads, wide.grads, digested(step, "grads")),
            buffers=of(self.buffers, wide.buffers, digested(step, "buffers_after")),
        )


@dataclass(frozen=True)
class Stepped:
    """What the clip and the optimizer made of gradients: by recorded names.

    Attributes:
        total_norm: The norm that the clip took; None if none says so.
        clipped: The recorded gradients as the port clips them; None if that is in a
            chain.
        update: By how much the optimizer changed the parameters.
        params: The parameters after the step.
        kept: The optimizer's state after the step, by ``"name/key"``.
        own: The gradients that the optimizer was given of parameters of which the
            recording has a digest: the port's own.
        moved: By how much it changed these parameters, without a sign.
        problems: Why the optimizer's state could not be had.
    """

    total_norm: Array | None = None
    clipped: Arrays | None = None
    update: Arrays = field(default_factory=dict)
    params: Arrays = field(default_factory=dict)
    kept: Arrays = field(default_factory=dict)
    own: Arrays = field(default_factory=dict)
    moved: Arrays = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    def errors(self, step: Step, wide: "Stepped") -> "Stepped":
        """Return it with the errors of arrays in their place, but for ``moved``.

        Args:
            step: The recorded step.
            wide: What a run in float64 gave.
        """
        norm: Any = None
        if self.total_norm is not None and wide.total_norm is not None:
            norm = Error.of(self.total_norm, wide.total_norm)
        clipped = digested(step, "final_grads")
        after = digested(step, "params_after")
        of: Any = errors_of
        return dataclasses.replace(
            self,
            total_norm=norm,
            clipped=of(self.clipped or {}, wide.clipped or {}, clipped),
            update=of(self.update, wide.update, after),
            params=of(self.params, wide.params, after),
            kept=of(self.kept, wide.kept, digested(step, "opt_state_after")),
            own=of(self.own, wide.own),
        )


@dataclass(frozen=True)
class Sides(Generic[S]):
    """A part of a step as the port computes it, in all precisions.

    Attributes:
        wide: In float64.
        narrow: In the recorded dtype.
        draws: In the recorded dtype, with what the port is given changed: errors take
            the place of arrays, so that no more than one draw is ever held.
    """

    wide: S
    narrow: S
    draws: Sequence[S]


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
            batch, masks = self.batch(step, precision), Masks.of(step.masks)
            found = self.runs.forward(variables, batch, masks, precision)
            recorded = arrays_in(step, "grads", step.grads)
            order = [Place(a.module, a.call, a.output) for a in step.activations]
            activations, unseen = own.activations(found.calls, order)
            return Called(
                weights={**own.params(params), **own.buffers(rest)},
                activations=activations,
                unseen=unseen,
                outputs=None if found.outputs is None else own.outputs(found.outputs),
                loss=np.asarray(found.loss),
                grads=own.params(found.grads),
                buffers=own.buffers(found.rest),
                left=own.without(found.grads, recorded),
                remarks=(*found.account.of(masks),),
            )

    def stepped(self, step: Step, precision: Precision, left: Any) -> Stepped:
        """Clip the recorded gradients, and take the optimizer's step.

        Args:
            step: The recorded step.
            precision: In which precision.
            left: The gradients that the recording lacks, as ``called`` returned them.
        """
        precision = precision.of_arrays
        with precision.active():
            return self._stepped(step, precision, left)

    def _stepped(self, step: Step, precision: Precision, left: Any) -> Stepped:
        own, cast = self.alignment, precision.cast
        params, _ = self.model.split(own.variables(step, cast))
        grads = own.replaced(left, arrays_in(step, "grads", step.grads), cast)
        clip_state = self.clip_state(step, params, precision)
        clipped = norm = None
        if self.clips:
            grads, clip_state = self.runs.clipped(grads, clip_state, params)
            clipped, norm = own.params(grads), norm_in(clip_state)
            final = arrays_in(step, "final_grads", step.final_grads)
            grads = own.replaced(grads, final, cast)
        try:
            opt_state = self.opt_state(step, params, precision)
        except ConversionError as error:
            norm = _as_kept(step.total_norm, norm, precision)
            return Stepped(norm, clipped, problems=tuple(error.problems))
        after, opt_state = self.runs.optimized(grads, opt_state, params)
        if not self.clips:
            norm = norm_in(opt_state)
        before, params_after = own.params(params), own.params(after)
        update = {name: array - before[name] for name, array in params_after.items()}
        names = digested(step, "final_grads" if self.clips else "grads")
        used = own.params(grads) if names else {}
        recorded = found_in(step, "opt_state_after", named_state(step.opt_state_after))
        return Stepped(
            total_norm=_as_kept(step.total_norm, norm, precision),
            clipped=clipped,
            update=update,
            params=params_after,
            kept={
                name: _as_kept(recorded.get(name), array, precision)
                for name, array in own.kept(opt_state, clip_state, params).items()
            },
            own={name: used[name] for name in names if name in used},
            moved={name: np.abs(update[name]) for name in names if name in update},
        )


def _as_kept(recorded: Any, array: Any, precision: Precision) -> Any:
    """Return what a port keeps in float32 in the narrower dtype of the recording."""
    if precision.wide or recorded is None or array is None:
        return array
    both = jnp.issubdtype(recorded.dtype, jnp.floating) and array.dtype == np.float32
    narrower = both and recorded.dtype.itemsize < 4
    return array.astype(recorded.dtype) if narrower else array


def named_state(state: Mapping[str, Arrays]) -> dict[str, Array]:
    """Return what an optimizer keeps by ``"name/key"``."""
    return {
        f"{name}/{key}": array
        for name, own in state.items()
        for key, array in own.items()
    }


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

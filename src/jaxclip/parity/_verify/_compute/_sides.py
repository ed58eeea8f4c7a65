"""A part of a recorded step as the port computes it: all by the recorded names."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

from jaxclip.parity._trace._step import Step
from jaxclip.parity._verify._alignment._places import Place
from jaxclip.parity._verify._compute._errors import Error, errors_of
from jaxclip.parity._verify._compute._known import digested, output_digests
from jaxclip.parity._verify._random._drawn import Remark

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
        outputs: What the loss function returned beside the loss; None if it is not
            what the model returned in each of its calls.
        loss: The loss.
        grads: The gradients.
        buffers: What is no parameter, after the step.
        unrecorded: A tree like the parameters, with the gradients that the recording
            lacks.
        remarks: What there is to say of what torch drew.
    """

    weights: Arrays
    activations: Mapping[Place, Array]
    unseen: Mapping[str, str]
    outputs: Arrays | None
    loss: Array
    grads: Arrays
    buffers: Arrays
    unrecorded: Any
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
        of: Any = errors_of
        error: Any = Error.of
        return dataclasses.replace(
            self,
            weights=of(self.weights, wide.weights),
            activations=of(self.activations, wide.activations, places),
            outputs=of(self.outputs or {}, wide.outputs or {}, output_digests(step)),
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
        at_start: What a fresh state keeps, where the recording has one.
        own: The gradients that the optimizer was given of parameters of which the
            recording has a digest: the port's own.
        turned: How far it would have moved these parameters from where it did, had
            these gradients had the other sign.
        problems: Why the optimizer's state could not be had.
    """

    total_norm: Array | None = None
    clipped: Arrays | None = None
    update: Arrays = field(default_factory=dict)
    params: Arrays = field(default_factory=dict)
    kept: Arrays = field(default_factory=dict)
    at_start: Arrays = field(default_factory=dict)
    own: Arrays = field(default_factory=dict)
    turned: Arrays = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    def errors(self, step: Step, wide: "Stepped") -> "Stepped":
        """Return it with the errors of arrays in their place, but for ``turned``.

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
            at_start=of(self.at_start, wide.at_start),
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

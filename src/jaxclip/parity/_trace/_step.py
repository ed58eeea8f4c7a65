"""A recorded step, and its arrays one by one."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from jaxclip._safetensors import StoredTensor
from jaxclip.parity._trace._digest import LENGTH, Digest
from jaxclip.parity._trace._json import TraceError
from jaxclip.parity._trace._records import (
    STAGES,
    Call,
    Digested,
    Event,
    LoopWarning,
    StepLine,
)

Arrays = Mapping[str, np.ndarray]
T = TypeVar("T")


_CALL = re.compile("0|[1-9][0-9]{0,8}")
"""The number of a call of the model."""

SMALL = 4096
"""Up to how many bytes an array is read once; to map it takes longer."""


class StoredArrays(Mapping[str, np.ndarray]):
    """Arrays by name, each mapped from its file when it is asked for, unless small."""

    def __init__(self, stored: Mapping[str, StoredTensor]) -> None:
        """Keep what is stored where."""
        self._stored = dict(stored)
        self._read: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        """Map an array: read-only, and without memory of its own; or keep a copy.

        Raises:
            TraceError: If the file has been cut or removed since the step was read.
        """
        stored = self._stored[name]
        if stored.nbytes > SMALL:
            return _mapped(stored)
        if name not in self._read:
            array = _mapped(stored).copy()
            array.flags.writeable = False
            self._read[name] = array
        return self._read[name]

    def __contains__(self, name: object) -> bool:
        """Say whether there is such an array, without reading it."""
        return name in self._stored

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._stored)

    def __len__(self) -> int:
        """Count the arrays."""
        return len(self._stored)

    def __repr__(self) -> str:
        """Show names, shapes and dtypes."""
        shown = (f"{k!r}: {v.dtype}{[*v.shape]}" for k, v in self._stored.items())
        return f"{{{', '.join(shown)}}}"


@dataclass(frozen=True)
class Activation(Call):
    """An array that a module returned, or a mask of dropout, and where it comes from.

    Attributes:
        stored: The array in its file; None if its digest was kept instead.
        digest: Its digest; None if all of it was kept.
    """

    stored: StoredTensor | None
    digest: Digest | None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        known = self.stored or self.digest
        return () if known is None else tuple(known.shape)

    @property
    def array(self) -> np.ndarray:
        """The array, mapped from its file.

        Raises:
            ValueError: If its digest was kept instead.
            TraceError: If the file has been cut or removed since the step was read.
        """
        if self.stored is None:
            raise ValueError(
                f"the output of {self.module!r} was recorded as a digest: compare "
                "`digest` with that of another array."
            )
        return _mapped(self.stored)


class Step:
    """A recorded step of training.

    Arrays are read from the file when they are asked for, and keep their dtypes;
    bfloat16 is that of ml_dtypes. A stage that was not recorded is empty.

    Attributes:
        number: The number of the step in the run, from 0.
        batch: The batch by the names that the loop gave it. ``x=(a, {"b": c})`` has
            the names ``x.0`` and ``x.1.b``.
        params: The parameters before the step, by their names in the model.
        buffers: The buffers before the step.
        opt_state: For each parameter the optimizer's state before the step, by the
            optimizer's own names; numbers are 0-d arrays.
        hyperparameters: For each parameter group, what the optimizer used: ``lr``,
            ``weight_decay`` and the others, under torch's names.
        activations: What each module but the model itself returned, in the order in
            which they returned.
        masks: What each dropout multiplied its input by: 0 or ``1 / (1 - p)``. Of a
            dropout that is a function, and of whatever else draws zeros and ones, what
            was drawn.
        draws: The other random numbers that were drawn, in order.
        outputs: What the model returned, for each time that it was called; where in
            the output each array lies is its name, "" if the output is one array. A
            call of which digests are all that was kept is empty.
        loss: What ``backward`` was called on, one array for each time, before a
            gradient scaler scaled it.
        grads: The gradients after the last ``backward``. A parameter without one is
            left out.
        final_grads: The gradients that the optimizer used.
        total_norm: What ``clip_grad_norm_`` returned last; None if it was not called.
        params_after: The parameters after the optimizer's step.
        buffers_after: The buffers at the end of the step.
        opt_state_after: The optimizer's state after its step.
        digests: By stage and name, the digests of arrays that were too large for
            ``record(digest_above=)``; the stage itself lacks them, but for
            activations, which have each its own.
        events: What the loop did, in order.
        unexplained_draws: Modules that drew random numbers that are in neither
            ``masks`` nor ``draws``; the step cannot be computed anew if there are any.
        warnings: The mistakes of the loop that the step showed.
    """

    def __init__(self, line: StepLine, stored: Mapping[str, StoredTensor]) -> None:
        """Sort the arrays by stage."""
        record = line.record
        taken = {n: _digest(n, of, stored) for n, of in line.digests.items()}
        digests = _by_stage(taken, line.same)
        stored = {n: tensor for n, tensor in stored.items() if n not in taken}
        self.digests: Mapping[str, Mapping[str, Digest]] = {
            stage: held for stage, held in digests.items() if held
        }
        self.number: int = record.number
        self.hyperparameters: tuple[Mapping[str, Any], ...] = record.hyperparameters
        self.events: tuple[Event, ...] = record.events
        self.unexplained_draws: tuple[str, ...] = record.unexplained_draws
        self.warnings: tuple[LoopWarning, ...] = record.warnings
        stages = _by_stage(stored, line.same)
        self.batch: Arrays = StoredArrays(stages["batch"])
        self.params: Arrays = StoredArrays(stages["params"])
        self.buffers: Arrays = StoredArrays(stages["buffers"])
        self.opt_state = _nested(stages["opt_state"])
        self.activations = _joined("activations", record.activations, stages, digests)
        self.masks = _joined("masks", record.masks, stages, digests)
        self.draws = _joined("draws", record.draws, stages, digests)
        self.outputs = _by_call(stages["outputs"], digests["outputs"])
        self.loss = (*StoredArrays(stages["loss"]).values(),)
        self.grads: Arrays = StoredArrays(stages["grads"])
        self.final_grads: Arrays = StoredArrays(stages["final_grads"])
        self.total_norm = StoredArrays(stages["total_norm"]).get("")
        self.params_after: Arrays = StoredArrays(stages["params_after"])
        self.buffers_after: Arrays = StoredArrays(stages["buffers_after"])
        self.opt_state_after = _nested(stages["opt_state_after"])

    def __repr__(self) -> str:
        """Show the number and the losses."""
        return f"<Step {self.number}, loss {[x.tolist() for x in self.loss]}>"


def _mapped(stored: StoredTensor) -> np.ndarray:
    try:
        return np.asarray(stored)
    except (OSError, ValueError) as error:
        raise TraceError(
            f"{str(stored.file)!r}, a file of the recording, cannot be read any more: "
            f"{error}."
        ) from None


def _digest(name: str, of: Digested, stored: Mapping[str, StoredTensor]) -> Digest:
    tensor = stored.get(name)
    if tensor is None or tensor.shape != (LENGTH,) or tensor.dtype != np.float64:
        raise TraceError(f"the digest {name!r} is missing, or none.")
    return Digest(of.shape, of.dtype, _mapped(tensor))


def _by_stage(
    stored: Mapping[str, T], same: Mapping[str, str]
) -> dict[str, dict[str, T]]:
    stages: dict[str, dict[str, T]] = {stage: {} for stage in STAGES}
    for key, tensor in stored.items():
        stage, _, name = key.partition("/")
        if stage not in stages:
            raise TraceError(f"tensor {key!r} belongs to no stage of a step.")
        stages[stage][name] = tensor
    for stage, other in same.items():
        if stage not in stages or other not in stages:
            raise TraceError(f"{stage!r} or {other!r} is no stage of a step.")
        stages[stage] = stages[other]
    return stages


def _nested(stored: Mapping[str, StoredTensor]) -> dict[str, Arrays]:
    """Split names in two at their last slash."""
    by_parameter: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in stored.items():
        parameter, _, key = name.rpartition("/")
        by_parameter.setdefault(parameter, {})[key] = tensor
    return {name: StoredArrays(state) for name, state in by_parameter.items()}


def _by_call(
    stored: Mapping[str, StoredTensor], digests: Iterable[str]
) -> tuple[Arrays, ...]:
    """Split names in two at their first slash, which the number of a call precedes."""
    calls: dict[int, dict[str, StoredTensor]] = {}
    for name in (*stored, *digests):
        call, _, place = name.partition("/")
        if not _CALL.fullmatch(call):
            raise TraceError(f"output {name!r} belongs to no call of the model.")
        own = calls.setdefault(int(call), {})
        if name in stored:
            own[place] = stored[name]
    return tuple(StoredArrays(calls[call]) for call in sorted(calls))


def _joined(
    stage: str,
    calls: Sequence[Call],
    stages: Mapping[str, Mapping[str, StoredTensor]],
    digests: Mapping[str, Mapping[str, Digest]],
) -> tuple[Activation, ...]:
    stored, digested = stages[stage], digests[stage]
    names = [str(index) for index in range(len(calls))]
    if stored.keys() | digested.keys() != {*names}:
        raise TraceError(
            f"the file has {len(stored) + len(digested)} {stage}, and the list of "
            f"steps {len(calls)}."
        )
    return tuple(
        Activation(
            *(call.module, call.type, call.call, call.output),
            stored=stored.get(name),
            digest=digested.get(name),
        )
        for name, call in zip(names, calls, strict=True)
    )

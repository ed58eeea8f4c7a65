"""What is written of a step of JAX."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxclip.parity._arrays import as_array
from jaxclip.parity._jax._names import (
    Arrays,
    LeafPath,
    batch_arrays,
    leaves,
    state_arrays,
    to_array,
    variable_names,
)
from jaxclip.parity._jax._training import Taken, Training, Variables, in_order
from jaxclip.parity._trace._options import Options
from jaxclip.parity._trace._records import Call, Event, StepRecord
from jaxclip.parity._verify._alignment._places import flat

Makers = Mapping[str, Callable[[], Arrays]]
"""By stage, what makes its arrays: nothing is copied that is not kept."""

Returned = Iterable[tuple[str, str, int, Any]]
"""What modules returned: path, class, number of the call, and output."""


def makers_of(taken: Taken, training: Training) -> tuple[Makers, Returned]:
    """Return what makes the arrays of a step that was taken."""
    before, after, found = taken.before, taken.after, taken.forward
    trained, others = variable_names(training.model, before.params, before.rest)

    def params(tree: Any) -> Callable[[], Arrays]:
        return lambda: _named(tree, trained)

    def buffers(tree: Any) -> Callable[[], Arrays]:
        return lambda: _named(tree, others)

    def state(variables: Variables) -> Callable[[], Arrays]:
        # As a chain of the clip and the optimizer has it.
        kept = variables.opt_state
        whole = (variables.clip_state, kept) if training.clips else kept
        return lambda: state_arrays(whole, trained)

    calls = [*in_order(found.calls, training.model.order)]
    outputs = [found.outputs]
    if found.outputs is None:
        outputs = [output for path, *_, output in calls if not path]
    makers = {
        "batch": lambda: batch_arrays(taken.batch),
        "params": params(before.params),
        "buffers": buffers(before.rest),
        "opt_state": state(before),
        "outputs": lambda: outputs_by_call(outputs),
        "loss": lambda: {"0": as_array(found.loss, "the loss")},
        "grads": params(found.grads),
        "params_after": params(after.params),
        "buffers_after": buffers(after.rest),
        "opt_state_after": state(after),
    }
    if taken.clipped is not None:
        makers["final_grads"] = params(taken.clipped)
    if taken.total_norm is not None:
        makers["total_norm"] = lambda: {"": as_array(taken.total_norm, "total_norm")}
    return makers, calls


def _named(tree: Any, names: Mapping[LeafPath, str]) -> Arrays:
    return {
        names[path]: to_array(leaf, repr(names[path]))
        for path, leaf in leaves(tree).items()
    }


def outputs_by_call(outputs: Iterable[Any]) -> Arrays:
    """Return outputs by the number of the call and the place in it."""
    return {
        f"{call}/{place}": array
        for call, output in enumerate(outputs)
        for place, array in flat(output)
    }


def written(
    number: int,
    makers: Makers,
    returned: Returned,
    options: Options,
    hyperparameters: tuple[Mapping[str, Any], ...],
) -> tuple[StepRecord, dict[str, Arrays]]:
    """Make what ``TraceWriter.add`` takes of a step.

    Args:
        number: The number of the step.
        makers: What makes the arrays.
        returned: What modules returned.
        options: What is kept.
        hyperparameters: Those of the optimizer.
    """
    stages = {
        stage: makers[stage]()
        for stage in options.keep
        if stage in makers and stage != "activations"
    }
    calls = []
    if "activations" in options.stages:
        calls = [
            (Call(path, kind, call, place), array)
            for path, kind, call, output in returned
            if path and options.wanted(path)
            for place, array in flat(output)
        ]
        stages["activations"] = {str(i): array for i, (_, array) in enumerate(calls)}
    record = StepRecord(
        number=number,
        events=tuple(_events(makers, stages)),
        hyperparameters=hyperparameters,
        activations=tuple(call for call, _ in calls),
        masks=(),
        draws=(),
        unexplained_draws=(),
        warnings=(),
    )
    return record, stages


def _events(makers: Makers, stages: Mapping[str, Arrays]) -> Iterator[Event]:
    """Say what a step did, as far as what is known of it shows."""
    if "loss" in makers:
        yield Event("forward", {})
    if "grads" in makers:
        losses = stages.get("loss", {}).values()
        values = [float(loss) for loss in losses if loss.size == 1]
        finite = all(map(math.isfinite, values))
        yield Event("backward", {"values": values, "finite": finite})
    if "final_grads" in makers or "total_norm" in makers:
        norms = stages.get("total_norm", {}).values()
        yield Event("clip", {"total_norm": [float(norm) for norm in norms]})
    if "params_after" in makers:
        yield Event("optimizer_step", {})


def hyperparameters_in(opt_state: Any) -> tuple[Mapping[str, Any], ...]:
    """Return the hyperparameters that a state tells, as ``inject_hyperparams``' does.

    The learning rate is called ``lr`` as well, as torch calls it.
    """

    def tells(part: Any) -> bool:
        return isinstance(getattr(part, "hyperparams", None), Mapping)

    found = []
    for part in jax.tree.leaves(opt_state, is_leaf=tells):
        if tells(part):
            plain = {
                name: np.asarray(value).tolist()
                for name, value in part.hyperparams.items()
            }
            if "learning_rate" in plain:
                plain = {"lr": plain["learning_rate"], **plain}
            found.append(plain)
    return (*found,)

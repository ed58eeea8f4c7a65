"""What a recording says beside its arrays."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

OUTSIDE = "(outside the model)"
"""What stands for the path of a module where the loop itself drew random numbers."""

STAGES = (
    "batch",
    "params",
    "buffers",
    "opt_state",
    "activations",
    "masks",
    "draws",
    "outputs",
    "loss",
    "grads",
    "final_grads",
    "total_norm",
    "params_after",
    "buffers_after",
    "opt_state_after",
)
"""The stages of a step that have arrays, in the order in which they come about."""

RESULTS = (
    *("activations", "outputs", "grads", "final_grads"),
    *("params_after", "buffers_after", "opt_state_after"),
)
"""The stages that may be kept as digests: a step is computed anew from the others."""


@dataclass(frozen=True)
class ModuleRecord:
    """A module of the model.

    Attributes:
        path: Its first name in the model; "" is the model itself.
        type: Its class, with the module that defines it.
        parameters: The names of its own parameters, those of submodules left out.
        buffers: The names of its own buffers.
        aliases: Its other names, if it stands in the model more than once.
    """

    path: str
    type: str
    parameters: tuple[str, ...]
    buffers: tuple[str, ...]
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """What holds for a whole recorded run.

    Attributes:
        framework: ``"torch"`` or ``"jax"``.
        versions: Versions of the framework and of what matters to its numbers.
        settings: Settings of the framework that matter to its numbers.
        dtypes: The dtypes of the parameters.
        modules: The modules of the model, parents first.
        tied: By the first name of a shared parameter, its other names.
        frozen: Names of the parameters that take no gradient.
        optimizer: The class of the optimizer.
        groups: For each parameter group of the optimizer, the names of its parameters.
        schedulers: The classes of the schedulers.
        keep: The stages that were recorded.
        every: Of so many steps, one was recorded.
    """

    framework: str
    versions: Mapping[str, str]
    settings: Mapping[str, str]
    dtypes: tuple[str, ...]
    modules: tuple[ModuleRecord, ...]
    tied: Mapping[str, tuple[str, ...]]
    frozen: tuple[str, ...]
    optimizer: str
    groups: tuple[tuple[str, ...], ...]
    schedulers: tuple[str, ...]
    keep: tuple[str, ...]
    every: int


@dataclass(frozen=True)
class Event:
    """Something that the training loop did.

    Attributes:
        kind: What: ``"zero_grad"``, ``"forward"``, ``"scale"``, ``"backward"``,
            ``"unscale"``, ``"clip_grad_norm"``, ``"clip_grad_value"``, ``"clip"`` (of
            JAX),
            ``"grads_changed"``, ``"params_changed"``, ``"optimizer_step"``,
            ``"optimizer_step_skipped"`` or ``"scheduler_step"``.
        details: More about it, by name.
    """

    kind: str
    details: Mapping[str, Any]


@dataclass(frozen=True)
class LoopWarning:
    """A mistake of the training loop, as the order of its events shows it.

    The codes: ``clip_before_backward``, ``clip_after_step``, ``clip_while_scaled``,
    ``clip_of_other_parameters``, ``grads_not_zeroed``, ``weight_decay_by_hand`` (on top
    of the optimizer's own), ``step_without_backward``, ``scheduler_before_optimizer``,
    ``loss_not_finite`` and ``never_a_gradient``.

    Attributes:
        code: A short name for it.
        message: What was seen, and what to do.
        step: The step, from 0; None if it is about the whole run.
    """

    code: str
    message: str
    step: int | None

    def __str__(self) -> str:
        """Return the message, with the step and the code."""
        where = "whole run" if self.step is None else f"step {self.step}"
        return f"{where}: {self.message} [{self.code}]"


@dataclass(frozen=True)
class Call:
    """Where an array of activations, masks or draws comes from.

    Attributes:
        module: The path of the module.
        type: Its class; of what the module drew by a function, that function.
        call: How many times the module had been called in the step before this.
        output: Where in its output the array lies: "" if the output is the array,
            ``"1.0"`` if it is ``output[1][0]``. Of what it drew by functions, the
            number of the draw in the call.
    """

    module: str
    type: str
    call: int
    output: str


@dataclass(frozen=True)
class StepRecord:
    """What a recording says of a step, beside its arrays.

    Attributes:
        number: The number of the step in the run, from 0.
        events: What the loop did, in order.
        hyperparameters: Those of each parameter group, as the optimizer used them.
        activations: Where each of the activations comes from, in the order in which
            the modules returned.
        masks: The same for the masks of dropout.
        draws: The same for the other random numbers.
        unexplained_draws: Paths of modules that drew random numbers that are in
            neither; ``"(outside the model)"`` if something else did.
        warnings: The mistakes of the loop that the step showed.
    """

    number: int
    events: tuple[Event, ...]
    hyperparameters: tuple[Mapping[str, Any], ...]
    activations: tuple[Call, ...]
    masks: tuple[Call, ...]
    draws: tuple[Call, ...]
    unexplained_draws: tuple[str, ...]
    warnings: tuple[LoopWarning, ...]


@dataclass(frozen=True)
class Digested:
    """An array of which the digest is kept.

    Attributes:
        shape: Its shape.
        dtype: Its dtype.
    """

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class StepLine:
    """A line of the list of steps.

    Attributes:
        index: The number of the line, from 0.
        size: The bytes of the step's file.
        sha256: The checksum of the step's file.
        same: By the name of a stage that is left out, the name of its equal.
        digests: By the name of an array of which the digest is kept, what it was.
        record: What else is said of the step.
    """

    index: int
    size: int
    sha256: str
    same: Mapping[str, str]
    digests: Mapping[str, Digested]
    record: StepRecord


@dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` says.

    Attributes:
        run: What holds for the whole run.
        steps: How many steps were recorded, once the run is finished.
        warnings: Mistakes of the loop that no one step shows.
    """

    run: Run
    steps: int | None = None
    warnings: tuple[LoopWarning, ...] = ()

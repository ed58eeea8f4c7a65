"""Recording a run of JAX while it runs."""

import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import optax
from flax import nnx

from jaxclip.parity._arrays import as_array
from jaxclip.parity._jax._describe import describe
from jaxclip.parity._jax._names import (
    Arrays,
    LeafPath,
    arrays,
    batch_arrays,
    leaves,
    state_arrays,
    to_array,
    variable_names,
)
from jaxclip.parity._jax._steps import (
    Makers,
    Returned,
    hyperparameters_in,
    makers_of,
    outputs_by_call,
    written,
)
from jaxclip.parity._jax._training import Training
from jaxclip.parity._trace._options import Options
from jaxclip.parity._trace._records import LoopWarning
from jaxclip.parity._trace._writer import TraceWriter, make_room
from jaxclip.parity._verify._compute._bench import norm_in
from jaxclip.parity._verify._port._port import Port


class JaxRecording:
    """A run of JAX that is being recorded; `record_jax` makes it.

    Attributes:
        path: The folder that it is written to.
    """

    def __init__(self, path: Path, port: Port | None, options: Options) -> None:
        """Keep what to record, and how."""
        self.path = path
        self._port = port
        self._options = options
        self._training = None if port is None else Training(port)
        self._writer: TraceWriter | None = None
        self._warnings: list[LoopWarning] = []
        self._number = 0
        self._open = False

    @property
    def warnings(self) -> tuple[LoopWarning, ...]:
        """The mistakes of the run so far: the first loss that is not finite."""
        return (*self._warnings,)

    @property
    def model(self) -> Any:
        """The port's model with the weights as they are, in the form it was given."""
        return self._trained("model").trained()

    @property
    def opt_state(self) -> Any:
        """The state of the port's optimizer as it is."""
        return self._trained("opt_state").now.opt_state

    @property
    def clip_state(self) -> Any:
        """The state of the port's ``clip`` as it is."""
        return self._trained("clip_state").now.clip_state

    def _trained(self, what: str) -> Training:
        if self._training is None:
            raise ValueError(
                f"run.{what}: the recording has no port, so that it trains nothing: "
                "record_jax(path, port) does, and run.add() takes what a loop has."
            )
        return self._training

    def __enter__(self) -> Self:
        """Begin to write."""
        if self._training is None:
            # What there is to say is known with the first step.
            make_room(self.path, overwrite=self._options.overwrite)
        else:
            model, now = self._training.model, self._training.now
            trained, others = variable_names(model, now.params, now.rest)
            params = {
                trained[path]: to_array(leaf, repr(trained[path]))
                for path, leaf in leaves(now.params).items()
            }
            self._begin(params, others.values())
        self._open = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Say that the run is whole if nothing was raised."""
        self._open = False
        if kind is None:
            self._begin({}, ()).finish(self._warnings)

    def _begin(self, params: Arrays, buffers: Any) -> TraceWriter:
        """Return the writer; make it if there is none."""
        if self._writer is None:
            run = describe(
                None if self._training is None else self._training.model,
                None if self._port is None else self._port.optimizer,
                params,
                buffers,
                self._options,
            )
            self._writer = TraceWriter(self.path, run, **self._options.files)
        return self._writer

    def step(self, /, **batch: Any) -> Any:
        """Take a step of the port's training, and record it.

        Args:
            **batch: The batch, by the names that ``loss_fn`` knows it by: arrays,
                numbers, and tuples, lists and dicts of them.

        Returns:
            The loss.

        Raises:
            TypeError: If something in the batch is nothing of the kind; or if what
                ``loss_fn`` returns is none.
            ValueError: If the recording has no port.
            RuntimeError: If it is not being written: outside of ``with``.
        """
        self._check("step")
        training = self._trained("step()")
        batch_arrays(batch)  # which refuses what cannot be recorded
        taken = training.take(batch)
        if self._number % self._options.every == 0:
            makers, returned = makers_of(taken, training)
            told = hyperparameters_in(taken.after.opt_state)
            self._write(makers, returned, told)
        self._number += 1
        training.now = taken.after
        return taken.forward.loss

    def add(
        self,
        *,
        batch: Mapping[str, Any] | None = None,
        params: Any = None,
        buffers: Any = None,
        opt_state: Any = None,
        activations: Mapping[str, Any] | None = None,
        outputs: Any = None,
        loss: Any = None,
        grads: Any = None,
        final_grads: Any = None,
        total_norm: Any = None,
        updates: Any = None,
        params_after: Any = None,
        buffers_after: Any = None,
        opt_state_after: Any = None,
        hyperparameters: Mapping[str, Any] | None = None,
    ) -> None:
        """Record a step that a loop took by itself, of whatever it has of it.

        All is named as in `Step`. Trees are nested dicts, states of NNX, or other
        pytrees; an NNX module stands for its parameters, and where ``buffers`` is left
        out for its other variables. What a jitted step is given to keep
        (``donate_argnums``) is to be added before it, as a copy. Of arrays with an
        axis of devices, as ``pmap`` returns them, give those of one device.

        Args:
            batch: The batch, by name.
            params: The parameters before the step.
            buffers: The other variables before the step.
            opt_state: The optimizer's state before the step.
            activations: What modules returned, by path, in order.
            outputs: What the model returned.
            loss: The loss.
            grads: The gradients.
            final_grads: The clipped gradients, where the optimizer was given others.
            total_norm: Their norm; by default that which a clip of jaxclip has in
                ``opt_state_after``.
            updates: What ``optax.apply_updates`` is given, instead of
                ``params_after``.
            params_after: The parameters after the step.
            buffers_after: The other variables after the step.
            opt_state_after: The optimizer's state after the step.
            hyperparameters: Those of the optimizer, ``{"lr": 0.1}``; by default what
                ``optax.inject_hyperparams`` has in ``opt_state_after``.

        Raises:
            TypeError: If something is no array.
            ValueError: If nothing is given; if ``updates`` and ``params_after`` both
                are; or if the names of parameters differ.
            RuntimeError: If the recording is not being written: outside of ``with``.
        """
        self._check("add")
        params, buffers = _split(params, buffers)
        params_after, buffers_after = _split(params_after, buffers_after)
        if updates is not None:
            if params_after is not None or params is None:
                raise ValueError(
                    "run.add(updates=...): give it with params=, and without "
                    "params_after=, which is what it makes of them."
                )
            params_after = optax.apply_updates(params, updates)
        if total_norm is None:
            total_norm = norm_in(opt_state_after)
        likes = {"params": params, "grads": grads, "final_grads": final_grads}
        likes["params_after"] = params_after
        _check_names({name: tree for name, tree in likes.items() if tree is not None})
        own: Any = next((tree for tree in likes.values() if tree is not None), {})
        paths = [*leaves(own)]
        trees = {**likes, "buffers": buffers, "buffers_after": buffers_after}
        makers: dict[str, Any] = {
            stage: lambda tree=tree, stage=stage: arrays(tree, stage)
            for stage, tree in trees.items()
            if tree is not None
        }
        states = {"opt_state": opt_state, "opt_state_after": opt_state_after}
        makers |= {
            stage: lambda tree=tree: state_arrays(tree, paths)
            for stage, tree in states.items()
            if tree is not None
        }
        if batch is not None:
            makers["batch"] = lambda: batch_arrays(batch)
        if outputs is not None:
            makers["outputs"] = lambda: outputs_by_call([outputs])
        if loss is not None:
            makers["loss"] = lambda: {"0": as_array(loss, "the loss")}
        if total_norm is not None:
            makers["total_norm"] = lambda: {"": as_array(total_norm, "total_norm")}
        returned = [(path, "", 0, value) for path, value in (activations or {}).items()]
        if not makers and not returned:
            raise ValueError("run.add(): there is nothing to record.")
        if self._number % self._options.every == 0:
            told = hyperparameters_in(
                opt_state if opt_state_after is None else opt_state_after
            )
            if hyperparameters is not None:
                told = (dict(hyperparameters),)
            self._write(makers, returned, told, own, buffers)
        self._number += 1

    def _check(self, method: str) -> None:
        if not self._open:
            raise RuntimeError(
                f"run.{method}() outside of the recording: call it inside of "
                "`with record_jax(...) as run:`."
            )

    def _write(
        self,
        makers: Makers,
        returned: Returned,
        told: tuple[Mapping[str, Any], ...],
        params: Any = None,
        buffers: Any = None,
    ) -> None:
        """Write a step; of which parameters and buffers, if nothing is known yet."""
        record, stages = written(self._number, makers, returned, self._options, told)
        for loss in stages.get("loss", {}).values():
            value = float(loss) if loss.size == 1 else 0.0
            if not math.isfinite(value) and not self._warnings:
                self._warnings.append(
                    LoopWarning(
                        "loss_not_finite", f"The loss is {value}.", self._number
                    )
                )
        if self._writer is None:
            self._begin(arrays(params, "params"), arrays(buffers, "buffers"))
        self._begin({}, ()).add(record, stages)


def _split(params: Any, buffers: Any) -> tuple[Any, Any]:
    """Take an NNX module for its variables."""
    if not isinstance(params, nnx.Module):
        return params, buffers
    own, rest = nnx.state(params, nnx.Param, ...)
    return own, rest if buffers is None else buffers


def _check_names(trees: Mapping[str, Any]) -> None:
    """Raise an error if trees that are like the parameters have not their names."""
    first = ""
    own: set[LeafPath] | None = None
    for what, tree in trees.items():
        names = {*leaves(tree)}
        if own is None:
            first, own = what, names
        elif names != own:
            odd = ".".join(min(names ^ own))
            raise ValueError(
                f"run.add: {first} and {what} are trees of other names: {odd!r} is in "
                "one of them alone."
            )

"""A recurrent language model, trained in torch and in JAX from the same weights."""

import copy
import functools
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import torch
from flax import nnx

import jaxclip
from jaxclip import convert, models
from jaxclip.demo._history import History, OnStep, Recorder, Weights
from jaxclip.demo._settings import Settings
from jaxclip.demo._text import Corpus
from jaxclip.parity import Port, record
from torchref.rnn import RNNLM
from torchref.training import StepResult, sgd, train, train_step

Params = nnx.State[Any, Any]
"""The parameters of an NNX model, split off its structure."""


@dataclass(frozen=True)
class Task:
    """What every run shares.

    Attributes:
        settings: Sizes, learning rate and so on.
        corpus: The text.
        model: The model before the first step, in float32.
    """

    settings: Settings
    corpus: Corpus
    model: RNNLM

    def torch_model(self, dtype: str) -> RNNLM:
        """Return a copy of the model; float64 holds float32 weights exactly."""
        return copy.deepcopy(self.model).to(getattr(torch, dtype))

    def jax_model(self, dtype: str) -> models.RNNLM:
        """Return the model in JAX, with the same weights."""

        def build() -> models.RNNLM:
            return models.RNNLM(
                self.corpus.vocab_size,
                self.settings.hidden,
                self.settings.cell,
                rngs=nnx.Rngs(0),
                param_dtype=dtype,
            )

        return convert.from_torch(nnx.eval_shape(build), self.torch_model(dtype))


def make_task(settings: Settings, corpus: Corpus) -> Task:
    """Draw the first weights; torch's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = RNNLM(corpus.vocab_size, settings.hidden, settings.cell)
    return Task(settings, corpus, model)


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Let torch use one thread: on small steps its threads wait for each other.

    With two threads on two cores that others use as well, a run took 3 to 70 seconds
    where it takes 3 with one.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_torch_thread()
def train_torch(
    task: Task,
    steps: int,
    *,
    max_norm: float | None,
    on_step: OnStep,
    keep: Collection[int] = (),
    dtype: str = "float32",
) -> History:
    """Train with ``torchref.training.train``.

    Args:
        task: The model and what it learns.
        steps: How many steps.
        max_norm: The norm to which gradients are clipped; None clips nothing.
        on_step: Called after each step.
        keep: After how many steps the weights are kept.
        dtype: The dtype of the weights, and of the computation.

    Returns:
        What happened.
    """
    model = task.torch_model(dtype)

    def weights() -> Weights:
        return {name: w.numpy().copy() for name, w in model.state_dict().items()}

    def record(_: int, step: StepResult) -> None:
        recorder.record(step.loss, step.grad_norm, step.clipped_norm, weights)

    recorder = Recorder(dtype, keep, on_step)
    train(
        model,
        task.corpus.batches(steps),
        lr=task.settings.lr,
        max_norm=max_norm,
        on_step=record,
    )
    return recorder.history()


def train_jax(
    task: Task,
    steps: int,
    *,
    max_norm: float,
    on_step: OnStep,
    keep: Collection[int] = (),
    dtype: str = "float32",
) -> History:
    """Train with an Optax chain: the JAX side of ``train_torch``.

    Args:
        task: The model and what it learns.
        steps: How many steps.
        max_norm: The norm to which gradients are clipped.
        on_step: Called after each step.
        keep: After how many steps the weights are kept.
        dtype: The dtype of the weights, and of the computation.

    Returns:
        What happened.
    """
    with jax.enable_x64(dtype == "float64"):
        graphdef, params = nnx.split(task.jax_model(dtype))
        optimizer = optax.chain(
            jaxclip.clip_by_global_norm(max_norm), optax.sgd(task.settings.lr)
        )
        opt_state = optimizer.init(params)
        state = _first_state(graphdef, params, task)

        def loss_fn(
            params: Params, state: Any, inputs: jax.Array, targets: jax.Array
        ) -> tuple[jax.Array, Any]:
            model = nnx.merge(graphdef, params)
            batch = {"inputs": inputs, "targets": targets, "state": state}
            loss, (_, state) = next_token_loss(model, batch)
            return loss, state

        # The old parameters and states are not needed again: their memory is reused.
        @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
        def train_step(
            params: Params,
            opt_state: optax.OptState,
            state: Any,
            inputs: jax.Array,
            targets: jax.Array,
        ) -> tuple[Params, optax.OptState, Any, jax.Array, jaxclip.ClipMetrics]:
            # Differentiated by the parameters alone, the state that comes in is a
            # constant: what torch has to detach.
            (loss, state), grads = jax.value_and_grad(loss_fn, has_aux=True)(
                params, state, inputs, targets
            )
            updates, opt_state = optimizer.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
            return params, opt_state, state, loss, jaxclip.clip_metrics(opt_state)

        def weights() -> Weights:
            state_dict = convert.to_torch(nnx.merge(graphdef, params))
            return {name: tensor.numpy() for name, tensor in state_dict.items()}

        recorder = Recorder(dtype, keep, on_step)
        for inputs, targets in task.corpus.batches(steps):
            params, opt_state, state, loss, metrics = train_step(
                params, opt_state, state, inputs, targets
            )
            recorder.record(
                float(loss),
                float(metrics.total_norm),
                float(metrics.clipped_norm),
                weights,
            )
    return recorder.history()


def next_token_loss(
    model: models.RNNLM, batch: dict[str, Any]
) -> tuple[jax.Array, tuple[jax.Array, Any]]:
    """Return what ``torchref.training.next_token_loss`` does.

    Args:
        model: The model.
        batch: ``inputs`` and ``targets``, ``(B, T)`` each, and the ``state``.

    Returns:
        The loss, and what the model returned: the logits ``(B, T, V)`` and the state.
    """
    logits, state = model(batch["inputs"], batch["state"])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
    return losses.mean(), (logits, state)


def port(task: Task) -> Port:
    """Return what ``train_jax`` trains, for the recordings of ``record_torch``."""
    return Port(
        task.jax_model("float32"),
        next_token_loss,
        optax.sgd(task.settings.lr),
        clip=jaxclip.clip_by_global_norm(task.settings.max_norm),
    )


@one_torch_thread()
def record_torch(
    task: Task, steps: int, path: Path, *, dtype: str, on_step: OnStep
) -> None:
    """Record what ``train_torch`` does in its first steps, clipped.

    Args:
        task: The model and what it learns.
        steps: How many steps.
        path: Where the recording goes; one that is there is replaced.
        dtype: The dtype of the weights, and of the computation.
        on_step: Called after each step.
    """
    model, max_norm = task.torch_model(dtype), task.settings.max_norm
    optimizer = sgd(model, task.settings.lr)
    state = None
    with record(path, model, optimizer, overwrite=True) as run:
        for step, (inputs, targets) in enumerate(task.corpus.batches(steps), 1):
            if state is None:  # zeros, which the port is to be given, too
                _, state = model(torch.from_numpy(inputs.copy()))
                state = jax.tree.map(torch.zeros_like, state)
            with run.step(inputs=inputs, targets=targets, state=state):
                found = train_step(
                    model, optimizer, (inputs, targets), state, max_norm=max_norm
                )
            state = found.state
            on_step(step, found.loss)


def _first_state(
    graphdef: nnx.GraphDef[models.RNNLM], params: Params, task: Task
) -> Any:
    """Return the zeros that the model starts from if no state is given.

    Given from the first step on, so that the step is compiled once.
    """
    [(inputs, _)] = task.corpus.batches(1)

    def run(params: Params) -> Any:
        _, state = nnx.merge(graphdef, params)(jnp.asarray(inputs))
        return state

    state = jax.eval_shape(run, params)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state)

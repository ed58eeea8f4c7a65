"""A recurrent language model, trained in torch and in JAX from the same weights."""

import copy
import functools
from collections.abc import Collection
from dataclasses import dataclass
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
from torchref.rnn import RNNLM
from torchref.training import StepResult, train

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
            params: Params,
            state: Any,
            inputs: jax.Array,
            targets: jax.Array,
        ) -> tuple[jax.Array, Any]:
            logits, state = nnx.merge(graphdef, params)(inputs, state)  # (B, T, V)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
            return losses.mean(), state

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

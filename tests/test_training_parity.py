"""Training in torch and in JAX, from identical weights: every stage is the same.

float64 settles whether the algorithm is the same. In float32 and bfloat16 torch may be
no further from the port's float64 run than the port itself is, but for a factor.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

import jaxclip
from jaxclip import convert
from jaxclip.parity import assert_trees_close, compare_trees
from tests.trios import BATCH, BY_NAME, STEPS, VOCAB, Trio
from torchref.grad_clipping import grad_clipping
from torchref.training import StepResult, next_token_loss, squared_error_loss, train

LR, MOMENTUM, DECAY, MAX_NORM = 0.1, 0.9, 0.01, 0.5
STEPS_TRAINED = 50

# One of each kind; tests/models runs every number of layers.
TRIOS = ["my_net", "scratch", "rnn-1", "gru-2", "lstm-2"]
PORTS = ["nnx", "linen"]

# Halves the time to compile; the results are rounded like any others.
QUICK_COMPILATION = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}

# Each way to clip, in torch and in JAX, with what it adds to the norm.
SEMANTICS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "torch": (
        lambda model, theta: torch.nn.utils.clip_grad_norm_(model.parameters(), theta),
        jaxclip.clip_by_global_norm,
    ),
    "d2l": (
        grad_clipping,
        lambda theta: jaxclip.clip_by_global_norm(theta, eps=0.0),
    ),
    "optax": (grad_clipping, optax.clip_by_global_norm),
}


@dataclass(frozen=True)
class Port:
    """The JAX side of a trio: parameters, and functions of them."""

    params: Any
    apply: Callable[..., Any]
    to_torch: Callable[[Any], dict[str, torch.Tensor]]
    recurrent: bool

    def loss(self, params: Any, batch: Any, state: Any = None) -> tuple[jax.Array, Any]:
        inputs, targets = batch
        if not self.recurrent:
            return jnp.mean((self.apply(params, inputs) - targets) ** 2), None
        logits, state = self.apply(params, inputs, state)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return losses.mean(), state

    def stages(self, batch: Any) -> dict[str, Any]:
        run = jax.value_and_grad(lambda params: self.loss(params, batch)[0])
        loss, grads = quick(run)(self.params)
        norm = jaxclip.global_norm(grads).astype(loss.dtype)
        return {"loss": loss, "norm": norm, "gradients": self.to_torch(grads)}

    def gradients(self, batch: Any) -> Any:
        return quick(jax.grad(lambda params: self.loss(params, batch)[0]))(self.params)

    def trained(self, batches: list[Any], max_norm: float) -> dict[int, Any]:
        """Return the parameters after the first step and after the last."""
        optimizer = optax.chain(
            jaxclip.clip_by_global_norm(max_norm),
            optax.add_decayed_weights(DECAY),
            optax.sgd(LR, momentum=MOMENTUM),
        )

        def step(params: Any, opt_state: Any, state: Any, batch: Any) -> Any:
            loss = jax.grad(self.loss, has_aux=True)
            grads, state = loss(params, batch, jax.lax.stop_gradient(state))
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, state

        step = quick(step)
        params, opt_state = self.params, optimizer.init(self.params)
        shapes = jax.eval_shape(self.loss, params, batches[0])[1]
        state = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        after = {}
        for count, batch in enumerate(batches, start=1):
            params, opt_state, state = step(params, opt_state, state, batch)
            if count in (1, len(batches)):
                after[count] = self.to_torch(params)
        return after


def quick(function: Callable[..., Any]) -> Callable[..., Any]:
    return jax.jit(function, compiler_options=QUICK_COMPILATION)


def port_of(trio: Trio, kind: str, source: Any, dtype: Any) -> Port:
    if kind == "linen":
        module, variables = trio.linen_model(source, dtype)
        return Port(
            variables,
            module.apply,
            lambda tree: convert.to_torch((module, tree)),
            trio.recurrent,
        )
    graphdef, params = nnx.split(trio.nnx_model(source, dtype))
    return Port(
        params,
        lambda params, *inputs: nnx.merge(graphdef, params)(*inputs),
        lambda tree: convert.to_torch(nnx.merge(graphdef, tree)),
        trio.recurrent,
    )


def batches_of(trio: Trio, count: int, dtype: str) -> list[tuple[Any, Any]]:
    """Draw batches of inputs and targets, the same for both frameworks."""
    rng = np.random.default_rng(3)
    if trio.recurrent:
        shape = (count, 2, BATCH, STEPS)
        return [(x, y) for x, y in rng.integers(0, VOCAB, shape)]
    # Few digits, so that every dtype holds the same numbers.
    draws = rng.integers(-16, 17, (count, BATCH, 5)) / 16
    dtype = jnp.dtype(dtype)
    return [(x[:, :4].astype(dtype), x[:, 4:].astype(dtype)) for x in draws]


def as_tensors(batch: tuple[Any, Any], dtype: str) -> tuple[Any, Any]:
    return tuple(
        torch.from_numpy(x)
        if x.dtype.kind == "i"
        else torch.from_numpy(x.astype("f8")).to(getattr(torch, dtype))
        for x in batch
    )


def torch_loss(trio: Trio) -> Callable[..., Any]:
    return next_token_loss if trio.recurrent else squared_error_loss


def torch_stages(trio: Trio, source: Any, batch: Any, dtype: str) -> dict[str, Any]:
    model = copy.deepcopy(source)
    loss, _ = torch_loss(trio)(model, as_tensors(batch, dtype), None)
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    norm = torch.nn.utils.get_total_norm(list(grads.values()))
    return {"loss": loss, "norm": norm, "gradients": grads}


@pytest.fixture(params=TRIOS)
def trio(request: pytest.FixtureRequest) -> Trio:
    return BY_NAME[request.param]


@pytest.fixture
def exact(trio: Trio) -> Any:
    """Torch's side, in float64, with weights that every dtype holds exactly."""
    return trio.torch_model(torch.bfloat16).to(torch.float64)


@pytest.mark.parametrize("kind", PORTS)
def test_loss_gradients_and_norm_are_torchs_in_float64(trio, exact, kind):
    [batch] = batches_of(trio, 1, "float64")
    expected = torch_stages(trio, exact, batch, "float64")
    with jax.enable_x64(True):
        actual = port_of(trio, kind, exact, "float64").stages(batch)
    assert_trees_close(actual, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loss_gradients_and_norm_are_torchs_but_for_rounding(trio, exact, dtype):
    [batch] = batches_of(trio, 1, dtype)
    source = copy.deepcopy(exact).to(getattr(torch, dtype))
    reference = torch_stages(trio, source, batch, dtype)
    candidate = port_of(trio, "nnx", source, dtype).stages(batch)
    [batch] = batches_of(trio, 1, "float64")
    with jax.enable_x64(True):
        truth = port_of(trio, "nnx", exact, "float64").stages(batch)
    compare_trees(reference, candidate, truth).raise_if_different()


@pytest.fixture(scope="module")
def unclipped() -> dict[str, Any]:
    """The gradients of one net in torch, in NNX and in Linen, and their norm."""
    trio = BY_NAME["rnn-1"]
    source = trio.torch_model(torch.float64)
    [batch] = batches_of(trio, 1, "float64")
    stages = torch_stages(trio, source, batch, "float64")
    with jax.enable_x64(True):
        ports = {kind: port_of(trio, kind, source, "float64") for kind in PORTS}
        grads = {kind: port.gradients(batch) for kind, port in ports.items()}
    return stages | {"torch": source, "ports": ports, "in jax": grads}


@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize("share", [0.1, 1.0, 3.0], ids=["below", "at", "above"])
def test_every_way_to_clip_is_its_counterpart(unclipped, semantics, share):
    max_norm = share * unclipped["norm"].item()
    in_torch, in_jax = SEMANTICS[semantics]

    model, before = unclipped["torch"], unclipped["gradients"]
    for name, param in model.named_parameters():
        param.grad = before[name].clone()
    in_torch(model, max_norm)
    expected = {name: param.grad for name, param in model.named_parameters()}
    # At the norm itself torch's 1e-6 makes the gradients a little smaller.
    changed = any(not torch.equal(expected[name], before[name]) for name in before)
    assert changed == (share < 1 or (share == 1 and semantics == "torch"))

    for kind in PORTS:
        with jax.enable_x64(True):
            clip, grads = in_jax(max_norm), unclipped["in jax"][kind]
            clipped, _ = clip.update(grads, clip.init(grads))
            actual = unclipped["ports"][kind].to_torch(clipped)
        assert_trees_close(actual, expected, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("kind", PORTS)
def test_parameters_are_torchs_after_training_in_float64(trio, exact, kind):
    batches = batches_of(trio, STEPS_TRAINED, "float64")
    with jax.enable_x64(True):
        actual = port_of(trio, kind, exact, "float64").trained(batches, MAX_NORM)
    expected, clipped_steps = trained_in_torch(trio, exact, batches, "float64")
    assert 0 < clipped_steps < STEPS_TRAINED
    assert_trees_close(actual, expected, rtol=1e-9, atol=1e-11)


def test_parameters_are_torchs_after_training_but_for_rounding(trio, exact):
    batches = batches_of(trio, STEPS_TRAINED, "float32")
    source = copy.deepcopy(exact).to(torch.float32)
    candidate = port_of(trio, "nnx", source, "float32").trained(batches, MAX_NORM)
    with jax.enable_x64(True):
        doubles = batches_of(trio, STEPS_TRAINED, "float64")
        truth = port_of(trio, "nnx", exact, "float64").trained(doubles, MAX_NORM)
    reference, _ = trained_in_torch(trio, source, batches, "float32")
    compare_trees(reference, candidate, truth).raise_if_different()


def trained_in_torch(
    trio: Trio, model: Any, batches: list[Any], dtype: str
) -> tuple[dict[int, Any], int]:
    """Train; return the parameters after the first and last step, and steps clipped."""
    after = {}

    def keep(step: int, result: StepResult) -> None:
        if step + 1 in (1, len(batches)):
            state = model.state_dict()
            after[step + 1] = {name: value.clone() for name, value in state.items()}

    results = train(
        model,
        [as_tensors(batch, dtype) for batch in batches],
        lr=LR,
        momentum=MOMENTUM,
        weight_decay=DECAY,
        max_norm=MAX_NORM,
        loss_fn=torch_loss(trio),
        on_step=keep,
    )
    return after, sum(result.grad_norm > MAX_NORM for result in results)

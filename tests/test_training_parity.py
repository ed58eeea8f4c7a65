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
from tests.trios import (
    BATCH,
    BY_NAME,
    CHANNELS,
    CLASSES,
    SIZE,
    STEPS,
    VOCAB,
    Trio,
    named_parameters,
)
from torchref.grad_clipping import grad_clipping
from torchref.training import (
    StepResult,
    cross_entropy_loss,
    next_token_loss,
    squared_error_loss,
    train,
)

LR, MOMENTUM, DECAY, MAX_NORM = 0.1, 0.9, 0.01, 0.5

# One of each kind; tests/models runs every number of layers.
SMALL = ["my_net", "scratch", "rnn-1", "gru-2", "lstm-2"]
REAL = ["gpt", "resnet"]
TRIOS = [*SMALL, *REAL]
REAL_LONG = [pytest.param(name, marks=pytest.mark.long) for name in REAL]

# Not the ResNet in bfloat16: a normalised value that is rounded past zero turns a relu
# over, and torch and XLA round to bfloat16 in different places.
LOW_PRECISION = [
    *((name, "float32") for name in TRIOS),
    *((name, "bfloat16") for name in SMALL),
    pytest.param("gpt", "bfloat16", marks=pytest.mark.long),
]
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
    """The JAX side of a trio: parameters, and functions of them.

    What one batch leaves for the next is the state: the hidden state of a recurrent
    model, None before the first batch; the running averages of a ResNet; or nothing.
    """

    params: Any
    state: Any
    apply: Callable[[Any, Any, Any], tuple[jax.Array, Any]]
    to_torch: Callable[[Any, Any], dict[str, torch.Tensor]]

    def loss(self, params: Any, state: Any, batch: Any) -> tuple[jax.Array, Any]:
        inputs, targets = batch
        outputs, state = self.apply(params, state, inputs)
        if targets.dtype.kind != "i":
            return jnp.mean((outputs - targets) ** 2), state
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs, targets)
        return losses.mean(), state

    def stages(self, batch: Any) -> dict[str, Any]:
        run = quick(jax.value_and_grad(self.loss, has_aux=True))
        (loss, _), grads = run(self.params, self.state, batch)
        norm = jaxclip.global_norm(grads).astype(loss.dtype)
        gradients = self.to_torch(grads, self.state)
        return {"loss": loss, "norm": norm, "gradients": without_buffers(gradients)}

    def gradients(self, batch: Any) -> Any:
        grads, _ = quick(jax.grad(self.loss, has_aux=True))(
            self.params, self.state, batch
        )
        return grads

    def trained(self, batches: list[Any], max_norm: float) -> dict[int, Any]:
        """Return the parameters after the first step and after the last."""
        optimizer = optax.chain(
            jaxclip.clip_by_global_norm(max_norm),
            optax.add_decayed_weights(DECAY),
            optax.sgd(LR, momentum=MOMENTUM),
        )

        def step(params: Any, opt_state: Any, state: Any, batch: Any) -> Any:
            loss = jax.grad(self.loss, has_aux=True)
            grads, state = loss(params, jax.lax.stop_gradient(state), batch)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, state

        step = quick(step)
        params, opt_state, state = self.params, optimizer.init(self.params), self.state
        if state is None:
            shapes = jax.eval_shape(self.loss, params, None, batches[0])[1]
            state = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        after = {}
        for count, batch in enumerate(batches, start=1):
            params, opt_state, state = step(params, opt_state, state, batch)
            if count in (1, len(batches)):
                after[count] = self.to_torch(params, state)
        return after


def without_buffers(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Leave out running averages, which have no gradients."""
    endings = ("running_mean", "running_var", "num_batches_tracked")
    return {name: t for name, t in state_dict.items() if not name.endswith(endings)}


def quick(function: Callable[..., Any]) -> Callable[..., Any]:
    return jax.jit(function, compiler_options=QUICK_COMPILATION)


def port_of(trio: Trio, kind: str, source: Any, dtype: Any) -> Port:
    return (linen_port if kind == "linen" else nnx_port)(trio, source, dtype)


def linen_port(trio: Trio, source: Any, dtype: Any) -> Port:
    module, variables = trio.linen_model(source, dtype)
    params, statistics = variables["params"], variables.get("batch_stats")

    def apply(params: Any, state: Any, inputs: Any) -> tuple[jax.Array, Any]:
        inputs = trio.for_flax(inputs)
        if trio.recurrent:
            return module.apply({"params": params}, inputs, state)
        if statistics is None:
            return module.apply({"params": params}, inputs), None
        outputs, updates = module.apply(
            {"params": params, "batch_stats": state},
            inputs,
            train=True,
            mutable=["batch_stats"],
        )
        return outputs, updates["batch_stats"]

    def to_torch(params: Any, state: Any) -> dict[str, torch.Tensor]:
        kept = {} if statistics is None else {"batch_stats": state}
        return convert.to_torch((module, {"params": params, **kept}))

    return Port(params, statistics, apply, to_torch)


def nnx_port(trio: Trio, source: Any, dtype: Any) -> Port:
    model = trio.nnx_model(source, dtype)
    graphdef, params, statistics = nnx.split(model, nnx.Param, ...)

    def apply(params: Any, state: Any, inputs: Any) -> tuple[jax.Array, Any]:
        inputs = trio.for_flax(inputs)
        if trio.recurrent:
            return nnx.merge(graphdef, params, statistics)(inputs, state)
        # A copy, for a ResNet writes to it.
        called = nnx.merge(graphdef, params, state, copy=True)
        outputs = called(inputs)
        return outputs, nnx.split(called, nnx.Param, ...)[2]

    def to_torch(params: Any, state: Any) -> dict[str, torch.Tensor]:
        kept = statistics if trio.recurrent else state
        return convert.to_torch(nnx.merge(graphdef, params, kept))

    return Port(params, None if trio.recurrent else statistics, apply, to_torch)


def batches_of(trio: Trio, count: int, dtype: str) -> list[tuple[Any, Any]]:
    """Draw batches of inputs and targets, the same for both frameworks."""
    rng = np.random.default_rng(3)
    if trio.takes == "tokens":
        shape = (count, 2, BATCH, STEPS)
        return [(x, y) for x, y in rng.integers(0, VOCAB, shape)]

    # Few digits, so that every dtype holds the same numbers.
    def draw(*shape: int) -> np.ndarray:
        draws = rng.integers(-16, 17, (count, BATCH, *shape)) / 16
        return draws.astype(jnp.dtype(dtype))

    if trio.takes == "images":
        classes = rng.integers(0, CLASSES, (count, BATCH))
        images = draw(CHANNELS, SIZE, SIZE)
        return list(zip(images, classes, strict=True))
    both = draw(5)
    return [(x[:, :4], x[:, 4:]) for x in both]


def as_tensors(batch: tuple[Any, Any], dtype: str) -> tuple[Any, Any]:
    return tuple(
        torch.from_numpy(x)
        if x.dtype.kind == "i"
        else torch.from_numpy(x.astype("f8")).to(getattr(torch, dtype))
        for x in batch
    )


def torch_loss(trio: Trio) -> Callable[..., Any]:
    if trio.recurrent:
        return next_token_loss
    return squared_error_loss if trio.takes == "vectors" else cross_entropy_loss


def torch_stages(trio: Trio, source: Any, batch: Any, dtype: str) -> dict[str, Any]:
    model = copy.deepcopy(source)
    loss, _ = torch_loss(trio)(model, as_tensors(batch, dtype), None)
    loss.backward()
    # A tied weight has several names and one gradient, which counts once.
    grads = {name: p.grad for name, p in named_parameters(model).items()}
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
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


@pytest.mark.parametrize(("trio", "dtype"), LOW_PRECISION, indirect=["trio"])
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
            actual = unclipped["ports"][kind].to_torch(clipped, None)
        assert_trees_close(actual, expected, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("kind", PORTS)
def test_parameters_are_torchs_after_training_in_float64(trio, exact, kind):
    batches = batches_of(trio, trio.steps, "float64")
    with jax.enable_x64(True):
        actual = port_of(trio, kind, exact, "float64").trained(batches, MAX_NORM)
    expected, clipped_steps = trained_in_torch(trio, exact, batches, "float64")
    assert 0 < clipped_steps < trio.steps
    assert_trees_close(actual, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("trio", [*SMALL, *REAL_LONG], indirect=True)
def test_parameters_are_torchs_after_training_but_for_rounding(trio, exact):
    batches = batches_of(trio, trio.steps, "float32")
    source = copy.deepcopy(exact).to(torch.float32)
    candidate = port_of(trio, "nnx", source, "float32").trained(batches, MAX_NORM)
    with jax.enable_x64(True):
        doubles = batches_of(trio, trio.steps, "float64")
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

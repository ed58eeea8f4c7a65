"""A run goes on in JAX where torch stopped, and in torch where JAX did."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from torch.optim import lr_scheduler

from jaxclip import convert
from tests.convert.optimizers.nets import gradients, net, step, target, weights
from tests.trios import BATCH, BY_NAME, CLASSES

PART = 3
"""Steps in torch, then in JAX, then in torch again."""

# Halves the time to compile; the results are rounded like any others.
QUICK_COMPILATION = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}


def scanned(update, carry, inputs):
    """Take steps, all of them compiled as one."""
    run = jax.jit(
        lambda carry, inputs: jax.lax.scan(update, carry, inputs)[0],
        compiler_options=QUICK_COMPILATION,
    )
    return run(carry, jax.tree.map(lambda *parts: jnp.stack(parts), *inputs))


OPTIMIZERS = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "nesterov": False},
    "Adam": {"amsgrad": True, "weight_decay": 0.1},
    "AdamW": {},
    "Adamax": {},
    "NAdam": {},
    "RAdam": {},
    "RMSprop": {"centered": True, "momentum": 0.5},
    "Adagrad": {"lr_decay": 0.1, "initial_accumulator_value": 0.1},
    "Adadelta": {"rho": 0.8},
    "ASGD": {"t0": 2.0, "lambd": 1e-3},
    "Rprop": {},
    "Adafactor": {},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_on(name):
    """Gradients are given, so that nothing but the optimizers is compared."""
    grads = gradients(net(), 3 * PART)
    # One parameter has taken no step yet when it goes over, and another fewer.
    for early in grads[:PART]:
        del early["fc2.weight"]
    del grads[0]["fc1.bias"]

    def make(model):
        optimizer = getattr(torch.optim, name)(model.parameters(), **OPTIMIZERS[name])
        return optimizer, lr_scheduler.ExponentialLR(optimizer, 0.9)

    whole = net()
    step(whole, *split(make(whole), grads))

    model = net()
    optimizer, scheduler = make(model)
    step(model, optimizer, grads[:PART], scheduler)

    flax = target(model)
    layout = convert.mapping(flax).parameters()
    params = nnx.state(flax, nnx.Param)
    tx = convert.optimizer_from_torch(optimizer, flax, scheduler=scheduler)
    state = convert.opt_state_from_torch(
        optimizer, flax, tx, model=model, scheduler=scheduler
    )

    def update(carry, grad):
        params, state = carry
        updates, state = tx.update(grad, state, params)
        return (optax.apply_updates(params, updates), state), None

    middle = [layout.to_flax(g, like=params) for g in grads[PART : 2 * PART]]
    params, state = scanned(update, (params, state), middle)

    nnx.update(flax, params)
    made = convert.opt_state_to_torch(
        state, flax, optimizer, model=model, scheduler=scheduler
    )
    model.load_state_dict(convert.to_torch(flax))
    optimizer.load_state_dict(made["optimizer"])
    scheduler.load_state_dict(made["scheduler"])
    step(model, optimizer, grads[2 * PART :], scheduler)
    expected = weights(whole)
    for key, value in weights(model).items():
        np.testing.assert_allclose(value, expected[key], rtol=1e-12, atol=1e-14)


def test_a_plateau_goes_on():
    """The values reduce the learning rate once in each part."""
    metrics = [1.0, 1.0, 0.9, 0.9, 0.9, 0.9, 0.8, 0.8, 0.8]
    grads = gradients(net(), 3 * PART)

    def make(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return optimizer, lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=0.5, patience=0, cooldown=1
        )

    def train(model, optimizer, scheduler, part):
        for n in range(3 * PART)[part]:
            step(model, optimizer, grads[n : n + 1])
            scheduler.step(metrics[n])

    whole = net()
    train(whole, *make(whole), slice(None))
    model = net()
    optimizer, scheduler = make(model)
    train(model, optimizer, scheduler, slice(PART))

    flax = target(model)
    tx = convert.optimizer_from_torch(optimizer, flax, scheduler=scheduler)
    assert "schedules.reduce_lr_on_plateau(" in str(tx)
    state = convert.opt_state_from_torch(
        optimizer, flax, tx, model=model, scheduler=scheduler
    )
    layout = convert.mapping(flax).parameters()
    params = nnx.state(flax, nnx.Param)
    for n in range(PART, 2 * PART):
        grad = layout.to_flax(grads[n], like=params)
        updates, state = tx.update(grad, state, params, value=metrics[n])
        params = optax.apply_updates(params, updates)
    nnx.update(flax, params)
    made = convert.opt_state_to_torch(
        state, flax, optimizer, model=model, scheduler=scheduler
    )
    model.load_state_dict(convert.to_torch(flax))
    optimizer.load_state_dict(made["optimizer"])
    scheduler.load_state_dict(made["scheduler"])
    assert (scheduler.last_epoch, scheduler.best) == (2 * PART, 0.9)
    train(model, optimizer, scheduler, slice(2 * PART, None))
    assert optimizer.param_groups[0]["lr"] < 0.1 / 2**3
    expected = weights(whole)
    for key, value in weights(model).items():
        np.testing.assert_allclose(value, expected[key], rtol=1e-12, atol=1e-14)


def split(made, grads):
    optimizer, scheduler = made
    return optimizer, grads, scheduler


def two_groups(model):
    """Return what decays and what does not, by name."""
    named = list(model.named_parameters())
    return [
        {"params": [(n, p) for n, p in named if p.ndim > 1], "weight_decay": 0.1},
        {"params": [(n, p) for n, p in named if p.ndim < 2], "weight_decay": 0.0},
    ]


def only_matrices(model):
    """Freeze what is no matrix, which Muon does not take."""
    for param in model.parameters():
        param.requires_grad_(param.ndim == 2)
    return [(n, p) for n, p in model.named_parameters() if p.requires_grad]


def step_lr(optimizer):
    return lr_scheduler.StepLR(optimizer, 2, 0.5)


def one_cycle(optimizer):
    # torch steps its scheduler once more than its optimizer steps, to no use.
    total_steps = 3 * PART + 1
    return lr_scheduler.OneCycleLR(optimizer, [0.1, 0.05], total_steps=total_steps)


# The gradient of a key's bias is 0 but for rounding, which what divides by its size
# makes steps of: an eps is far above it, so that they are none that could be seen.
RUNS = {
    "SGD": (
        lambda model: torch.optim.SGD(
            model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01
        ),
        step_lr,
    ),
    "AdamW": (
        lambda model: torch.optim.AdamW(two_groups(model), eps=1e-5, amsgrad=True),
        one_cycle,
    ),
    "RMSprop": (
        lambda model: torch.optim.RMSprop(model.parameters(), eps=1e-5, centered=True),
        step_lr,
    ),
    "Adafactor": (
        lambda model: torch.optim.Adafactor(
            model.parameters(), lr=0.1, eps=(1e-6, 1e-3)
        ),
        step_lr,
    ),
    "Muon": (lambda model: torch.optim.Muon(only_matrices(model), lr=0.1), step_lr),
}
QUICK = [("SGD", "lstm-1")]
CASES = [
    pytest.param(
        name,
        trio,
        marks=[] if (name, trio) in QUICK else [pytest.mark.long],
        id=f"{name}-{trio}",
    )
    for name in RUNS
    for trio in ("lstm-1", "resnet", "gpt")
]


def batches(trio):
    rng = np.random.default_rng(4)
    made = []
    for seed in range(3 * PART):
        inputs = trio.inputs(seed)
        if trio.takes == "images":
            made.append((inputs, rng.integers(0, CLASSES, BATCH)))
        else:
            made.append((inputs[:, :-1], inputs[:, 1:]))
    return made


def train_in_torch(model, optimizer, scheduler, batches):
    for inputs, targets in batches:
        outputs = model(torch.tensor(inputs))
        logits = outputs[0] if isinstance(outputs, tuple) else outputs
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, -2), torch.tensor(targets).flatten()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()


def train_in_jax(trio, model, tx, opt_state, batches):
    """Return the model and the optimizer's state after some more steps."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params, rest, inputs, targets):
        called = nnx.merge(graphdef, params, rest, copy=True)
        outputs = called(inputs)
        logits = outputs[0] if isinstance(outputs, tuple) else outputs
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return losses.mean(), nnx.split(called, nnx.Param, ...)[2]

    def update(carry, batch):
        params, rest, opt_state = carry
        grads, rest = jax.grad(loss, has_aux=True)(params, rest, *batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), rest, opt_state), None

    inputs = [(trio.for_flax(inputs), jnp.asarray(y)) for inputs, y in batches]
    params, rest, opt_state = scanned(update, (params, rest, opt_state), inputs)
    return nnx.merge(graphdef, params, rest), opt_state


@pytest.mark.parametrize(("name", "trio_name"), CASES)
def test_a_run_goes_on_from_a_checkpoint(name, trio_name, tmp_path, monkeypatch):
    trio = BY_NAME[trio_name]
    make_optimizer, make_scheduler = RUNS[name]
    # Muon rounds to bfloat16, where another order of sums may be another number.
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    data = batches(trio)

    def begin():
        model = trio.torch_model(torch.float64)
        optimizer = make_optimizer(model)
        return model, optimizer, make_scheduler(optimizer)

    # torch alone: after the second part, and after the third.
    whole = begin()
    train_in_torch(*whole, data[: 2 * PART])
    second = {n: t.clone() for n, t in whole[0].state_dict().items()}
    train_in_torch(*whole, data[2 * PART :])

    model, optimizer, scheduler = begin()
    train_in_torch(model, optimizer, scheduler, data[:PART])
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    path = tmp_path / "checkpoint.pt"
    torch.save({key: part.state_dict() for key, part in parts.items()}, path)

    make = lambda: trio.nnx(rngs=nnx.Rngs(0), param_dtype="float64")  # noqa: E731
    flax = convert.from_torch(make, path, key="model")
    tx = convert.optimizer_from_torch(optimizer, flax, scheduler=scheduler, model=model)
    if name == "Muon":
        tx = in_float64(tx)
    opt_state = convert.opt_state_from_torch(path, flax, tx)
    flax, opt_state = train_in_jax(trio, flax, tx, opt_state, data[PART : 2 * PART])
    close(convert.to_torch(flax), second)

    made = convert.opt_state_to_torch(
        opt_state, flax, optimizer, model=model, scheduler=scheduler
    )
    path = tmp_path / "from_jax.pt"
    torch.save({"model": convert.to_torch(flax), **made}, path)
    saved = torch.load(path, weights_only=True)
    model, optimizer, scheduler = begin()
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    scheduler.load_state_dict(saved["scheduler"])
    train_in_torch(model, optimizer, scheduler, data[2 * PART :])
    close(model.state_dict(), whole[0].state_dict())


def in_float64(muon):
    """Return what the printed code makes when it is told to round to float64."""
    names = {}
    code = str(muon)
    assert "optim.muon(" in code
    exec(code.replace("optim.muon(", 'optim.muon(ns_dtype="float64", '), names)
    return names["optimizer"]


def close(made, expected):
    for name, value in expected.items():
        scale = value.abs().max().item()
        torch.testing.assert_close(made[name], value, rtol=0, atol=1e-10 * scale)

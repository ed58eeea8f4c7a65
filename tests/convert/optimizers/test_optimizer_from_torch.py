"""torch's optimizers become Optax code that steps as they do, and prints as it runs."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from torch.optim import lr_scheduler

import jaxclip
import torchref.resnet
from jaxclip import convert, models, optim
from jaxclip.convert._optimizers.choices import choose
from jaxclip.convert._optimizers.expressions import code_of
from jaxclip.convert._optimizers.schedulers import momentum_call, schedule_call
from tests.convert.optimizers.nets import (
    gradients,
    net,
    step,
    target,
    weights,
)


@pytest.fixture
def model():
    return net()


def matrices(model):
    """Freeze what is no matrix, which Muon does not take."""
    for param in model.parameters():
        param.requires_grad_(param.ndim == 2)
    return [param for param in model.parameters() if param.ndim == 2]


def run(transformation, model, flax, grads):
    """Return the weights after steps on torch's gradients, under torch's names."""
    layout = convert.mapping(flax).parameters()
    params = nnx.state(flax, nnx.Param)
    whole = [layout.to_flax(grad, like=params) for grad in grads]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *whole)

    def update(carry, grad):
        params, state = carry
        updates, state = transformation.update(grad, state, params)
        return (optax.apply_updates(params, updates), state), None

    start = params, transformation.init(params)
    (params, _), _ = jax.lax.scan(update, start, stacked)
    return {name: t.numpy() for name, t in layout.to_torch(params).items()}


def executed(ported, **given):
    """Return the transformation that the printed code makes."""
    names = dict(given)
    exec(str(ported), names)
    return names["optimizer"]


def is_equal(made, expected, tolerance=1e-12):
    for name, value in expected.items():
        np.testing.assert_allclose(made[name], value, rtol=tolerance, atol=1e-14)
    return True


def check(optimizer, model, scheduler=None, steps=6):
    """Hold what the printed code makes against torch."""
    flax = target(model)
    ported = convert.optimizer_from_torch(
        optimizer, flax, scheduler=scheduler, model=model
    )
    grads = gradients(model, steps)
    made = run(executed(ported), model, flax, grads)
    step(model, optimizer, grads, scheduler)
    assert is_equal(made, weights(model))
    return str(ported)


OPTIMIZERS = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1},
    "Adam": {"amsgrad": True, "betas": (0.8, 0.99), "weight_decay": 0.1},
    "AdamW": {"maximize": True, "eps": 1e-3},
    "Adamax": {"weight_decay": 0.1},
    "NAdam": {"momentum_decay": 0.01, "decoupled_weight_decay": True},
    "RAdam": {"weight_decay": 0.1},
    "RMSprop": {"centered": True, "momentum": 0.5},
    "Adagrad": {"lr_decay": 0.1, "initial_accumulator_value": 0.1},
    "Adadelta": {"rho": 0.8},
    "ASGD": {"t0": 2.0, "lambd": 1e-3},
    "Rprop": {"etas": (0.4, 1.3), "step_sizes": (1e-5, 1.0)},
    "Adafactor": {"d": 1.5},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_and_its_arguments(model, name):
    optimizer = getattr(torch.optim, name)(model.parameters(), **OPTIMIZERS[name])
    code = check(optimizer, model)
    for argument, value in OPTIMIZERS[name].items():
        assert f"{argument}={value!r}" in code


def test_muon_finds_torchs_axes(model):
    optimizer = torch.optim.Muon(matrices(model))
    flax = target(model)
    code = str(convert.optimizer_from_torch(optimizer, flax, model=model))
    assert "optim.muon(lr=0.001)" in code
    raw = nnx.Dict(weight=nnx.Param(jnp.ones((3, 2))))
    weight = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = torch.optim.Muon([("weight", weight)])
    assert "out_axis=0" in str(convert.optimizer_from_torch(optimizer, raw))


def test_adafactor_finds_torchs_axes():
    source = torchref.resnet.ResNet(2, 3, (4, 5))
    flax = nnx.eval_shape(lambda: models.ResNet(2, 3, (4, 5), rngs=nnx.Rngs(0)))
    optimizer = torch.optim.Adafactor(source.parameters())
    code = str(convert.optimizer_from_torch(optimizer, flax))
    assert "factored_axes=factored_axes" in code
    assert "def factored_axes(path, array):" in code
    assert "return (0, 1)" in code


def test_lbfgs_is_ported_and_its_state_is_not(model):
    optimizer = torch.optim.LBFGS(model.parameters(), line_search_fn="strong_wolfe")
    flax = target(model)
    ported = convert.optimizer_from_torch(optimizer, flax)
    assert str(ported).endswith(
        'optimizer = optim.lbfgs(lr=1, max_eval=25, line_search_fn="strong_wolfe")'
    )
    with pytest.raises(convert.ConversionError) as raised:
        convert.opt_state_from_torch(optimizer, flax, ported, model=model, count=0)
    assert "LBFGSState is a state that is not carried over." in str(raised.value)


SCHEDULERS = {
    "StepLR": {"step_size": 2, "gamma": 0.5},
    "MultiStepLR": {"milestones": [1, 1, 4], "gamma": 0.5},
    "ConstantLR": {"factor": 0.25, "total_iters": 3},
    "LinearLR": {"start_factor": 0.2, "end_factor": 0.8, "total_iters": 4},
    "ExponentialLR": {"gamma": 0.8},
    "PolynomialLR": {"total_iters": 4, "power": 2.0},
    "CosineAnnealingLR": {"T_max": 4, "eta_min": 0.01},
    "CosineAnnealingWarmRestarts": {"T_0": 2, "T_mult": 2, "eta_min": 0.01},
    "CyclicLR": {
        **{"base_lr": 0.01, "max_lr": 0.3, "step_size_up": 3, "step_size_down": 2},
        **{"mode": "exp_range", "gamma": 0.9},
    },
    "OneCycleLR": {
        **{"max_lr": 0.3, "total_steps": 7, "pct_start": 0.4, "div_factor": 7.0},
        **{"final_div_factor": 30.0, "three_phase": True, "anneal_strategy": "linear"},
    },
}


def rates(optimizer, scheduler, steps):
    """Return torch's learning rates and momenta of the second group."""
    found = []
    for _ in range(steps):
        group = optimizer.param_groups[1]
        found.append((group["lr"], group["momentum"]))
        optimizer.step()
        scheduler.step()
    return np.array(found).T


def values(call, epochs):
    """Return the values of a schedule that its code makes."""
    made = eval(code_of(call), {"schedules": optim.schedules})
    return np.asarray(made(np.arange(epochs)))


@pytest.mark.parametrize("per_epoch", [1, 2])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_and_its_arguments(name, per_epoch):
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(2)]
    optimizer = torch.optim.SGD([groups[0], {**groups[1], "lr": 0.2}], momentum=0.9)
    scheduler = getattr(lr_scheduler, name)(optimizer, **SCHEDULERS[name])
    # Also where torch is under way.
    optimizer.step()
    scheduler.step()
    group = optimizer.param_groups[1]
    if (name, per_epoch) == ("OneCycleLR", 2):
        with pytest.raises(convert.ConversionError, match="which goes by updates"):
            schedule_call(scheduler, 1, group, per_epoch)
        return
    call = schedule_call(scheduler, 1, group, per_epoch)
    momentum = momentum_call(scheduler, group, per_epoch)
    lr, momenta = rates(optimizer, scheduler, 5)
    made = values(call, 6 * per_epoch).reshape(6, per_epoch)
    np.testing.assert_allclose(made[1:], np.stack([lr] * per_epoch, 1), rtol=1e-12)
    if momentum is None:
        assert not np.ptp(momenta)
    else:
        made = values(momentum, 6 * per_epoch).reshape(6, per_epoch)
        expected = np.stack([momenta] * per_epoch, 1)
        np.testing.assert_allclose(made[1:], expected, rtol=1e-12)
    for argument, value in SCHEDULERS[name].items():
        shown = f'"{value}"' if isinstance(value, str) else repr(value)
        named = argument not in ("base_lr", "max_lr")
        assert (f"{argument}={shown}" if named else shown) in code_of(call)


def test_schedulers_of_schedulers():
    def made(*parts, milestones=None):
        """Return the call, and torch's learning rates."""
        weight = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([{"params": [weight]}, {"params": []}], lr=0.2)
        parts = [make(optimizer) for make in parts]
        if milestones is None:
            scheduler = lr_scheduler.ChainedScheduler(parts)
        else:
            scheduler = lr_scheduler.SequentialLR(optimizer, parts, milestones)
        call = schedule_call(scheduler, 1, optimizer.param_groups[1])
        return call, rates(optimizer, scheduler, 8)[0]

    warm_up = functools.partial(lr_scheduler.LinearLR, total_iters=3)
    call, lr = made(
        warm_up, lambda opt: lr_scheduler.CosineAnnealingLR(opt, 5), milestones=[3]
    )
    np.testing.assert_allclose(values(call, 8), lr, rtol=1e-12)
    assert code_of(call).startswith("schedules.sequential_lr(")
    call, lr = made(warm_up, lambda opt: lr_scheduler.ExponentialLR(opt, 0.9))
    np.testing.assert_allclose(values(call, 8), lr, rtol=1e-12)
    assert code_of(call).startswith("schedules.chained_scheduler(")


def test_a_cycle_of_the_first_beta(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler = lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10)
    assert (
        "    betas=(schedules.one_cycle_momentum(total_steps=10), 0.999),\n"
    ) in check(optimizer, model, scheduler)


def grouped(model):
    """Return parameter groups of which each has a rate and a decay of its own."""
    decayed = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim == 1]
    return [
        {"params": decayed, "lr": 0.01, "weight_decay": 0.1},
        {"params": others, "lr": 0.1, "weight_decay": 0.0, "betas": (0.5, 0.9)},
    ]


def clip_in_torch(model, max_norm):
    """Clip before each step; torch's clip leaves out what has no gradient."""

    def clip(*_):
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)

    return clip


def test_groups_with_a_scheduler_and_one_clip(model):
    optimizer = torch.optim.AdamW(grouped(model), amsgrad=True)
    scheduler = lr_scheduler.StepLR(optimizer, 2)
    flax = target(model)
    clip = jaxclip.clip_by_global_norm(0.5)
    ported = convert.optimizer_from_torch(
        optimizer, flax, scheduler=scheduler, clip=clip, model=model
    )
    assert str(ported) == (
        "import jaxclip\n"
        "import optax\n"
        "from jaxclip import optim\n"
        "from jaxclip.optim import schedules\n"
        "\n\n"
        "def group(path):\n"
        '    if path.endswith("/kernel/value"):\n'
        '        return "group_0"\n'
        '    return "group_1"\n'
        "\n\n"
        "# clip is the transformation that was given.\n"
        "optimizer = optax.chain(\n"
        "    clip,\n"
        "    optax.partition(\n"
        "        {\n"
        '            "group_0": optim.adamw(\n'
        "                lr=schedules.step_lr(0.01, step_size=2), weight_decay=0.1, "
        "amsgrad=True\n"
        "            ),\n"
        '            "group_1": optim.adamw(\n'
        "                lr=schedules.step_lr(0.1, step_size=2),\n"
        "                betas=(0.5, 0.9),\n"
        "                weight_decay=0.0,\n"
        "                amsgrad=True,\n"
        "            ),\n"
        "        },\n"
        "        jaxclip.by_path(group),\n"
        "    ),\n"
        ")"
    )
    grads = gradients(model, 6)
    made = run(ported, model, flax, grads)
    assert is_equal(run(executed(ported, clip=clip), model, flax, grads), made, 0)
    optimizer.register_step_pre_hook(clip_in_torch(model, 0.5))
    step(model, optimizer, grads, scheduler)
    assert is_equal(made, weights(model))


@pytest.mark.parametrize("needs_grad", [True, False])
def test_what_is_frozen_neither_moves_nor_counts_for_the_clip(model, needs_grad):
    model.norm.requires_grad_(needs_grad)
    held = [p for name, p in model.named_parameters() if "norm" not in name]
    # What is in the optimizer and needs no gradient is as frozen as what is not.
    parameters = held if needs_grad else model.parameters()
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    clip = jaxclip.clip_by_global_norm(0.5)
    flax = target(model)
    ported = convert.optimizer_from_torch(optimizer, flax, clip=clip, model=model)
    assert "optax.set_to_zero()" in str(ported)
    grads = gradients(model, 3)
    made = run(ported, model, flax, grads)
    assert is_equal(run(executed(ported, clip=clip), model, flax, grads), made, 0)
    without = [{n: g for n, g in grad.items() if "norm" not in n} for grad in grads]
    optimizer.register_step_pre_hook(clip_in_torch(model, 0.5))
    step(model, optimizer, without)
    assert is_equal(made, weights(model))


def test_groups_may_have_names(model):
    decay, others = grouped(model)
    groups = [{**decay, "name": "decay"}, {**others, "name": "others"}]
    code = check(torch.optim.AdamW(groups), model)
    assert '"decay": optim.adamw(' in code
    assert 'return "others"' in code


def test_a_plain_optimizer_is_a_plain_call(model):
    optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.25))
    ported = convert.optimizer_from_torch(optimizer, target(model))
    expected = "from jaxclip import optim\n\noptimizer = optim.adam(lr=0.25)"
    assert str(ported) == expected
    assert isinstance(ported, optax.GradientTransformationExtraArgs)


def test_a_schedule_begins_at_the_beginning_and_the_state_says_how_far(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.5)
    step(model, optimizer, gradients(model, 2), scheduler)
    flax = target(model)
    ported = convert.optimizer_from_torch(optimizer, flax, scheduler=scheduler)
    assert "schedules.exponential_lr(0.2, gamma=0.5)" in str(ported)
    state = convert.opt_state_from_torch(
        optimizer, flax, ported, model=model, scheduler=scheduler
    )
    params = nnx.state(flax, nnx.Param)
    updates, _ = ported.update(jax.tree.map(jnp.zeros_like, params), state, params)
    momentum = optimizer.state[model.fc2.weight]["momentum_buffer"].numpy()
    np.testing.assert_allclose(updates["fc2"]["kernel"], -0.05 * 0.9 * momentum.T)


def test_a_learning_rate_of_0_is_what_the_scheduler_gives(model):
    """But for the rounding of what torch makes it of."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 7)
    step(model, optimizer, gradients(model, 7), scheduler)
    assert abs(optimizer.param_groups[0]["lr"]) < 1e-16
    convert.optimizer_from_torch(optimizer, target(model), scheduler=scheduler)


def test_numbers_that_python_has_no_literal_for_are_printed_as_code():
    assert code_of((float("inf"), -float("inf"))) == '(float("inf"), float("-inf"))'


@pytest.mark.parametrize(
    ("results", "code"),
    [
        (
            {"a/kernel": 0, "a/bias": 1, "b/kernel": 0, "b/bias": 1, "b/scale": 1},
            ('path.endswith("/kernel")', 0, 1),
        ),
        (
            {"body/a/w": 0, "body/b/w": 0, "body/c/w": 0, "head/w": 1, "head/b": 1},
            ('path.startswith("head/")', 1, 0),
        ),
        (
            {"a/w": 0, "b/w": 1, "a/b": 1, "b/b": 0, "c/b": 0},
            ('path in ("b/w", "a/b")', 1, 0),
        ),
        # Fewer names would do, if they did not mean others, too.
        (
            {"a/w": 1, "b/w": 1, "c/w": 0, "d/w": 0, "a/b": 0},
            ('path in ("a/w", "b/w")', 1, 0),
        ),
        # A name that ends as another does is another name.
        (
            {"a/bias": 1, "b/bias": 1, "a/my_bias": 0, "b/my_bias": 0, "c/w": 0},
            ('path.endswith("/bias")', 1, 0),
        ),
    ],
)
def test_a_choice_is_as_a_person_would_make_it(results, code):
    choice = choose("f", results)
    condition, one, other = code
    assert choice.code == (
        f"def f(path):\n    if {condition}:\n        return {one}\n    return {other}"
    )
    assert {path: choice(path) for path in results} == results


def test_the_code_is_formatted(model):
    groups = grouped(model)
    optimizer = torch.optim.AdamW(groups, amsgrad=True)
    scheduler = lr_scheduler.OneCycleLR(optimizer, [0.1, 0.2], total_steps=10)
    clip = jaxclip.clip_by_global_norm(1.0)
    ported = convert.optimizer_from_torch(
        optimizer, target(model), scheduler=scheduler, clip=clip, model=model
    )
    command = [sys.executable, "-m", "ruff", "format", "--diff", "-"]
    done = subprocess.run(
        command, input=f"{ported}\n", text=True, capture_output=True, check=False
    )
    assert done.stdout == ""


def refusal(optimizer, source, **options):
    with pytest.raises(convert.ConversionError) as raised:
        convert.optimizer_from_torch(optimizer, target(source), **options)
    return str(raised.value)


class Other(torch.optim.SGD):
    pass


def test_optimizers_without_a_counterpart(model):
    assert "optimizer is a torch.optim.sparse_adam.SparseAdam, which has no" in refusal(
        torch.optim.SparseAdam(model.parameters()), model
    )
    assert ".Other, which has no counterpart. Those that have are torch's SGD" in (
        refusal(Other(model.parameters()), model)
    )
    optimizer = torch.optim.SGD(model.parameters())
    optimizer.register_step_post_hook(print)
    assert "optimizer has hooks around its step" in refusal(optimizer, model)
    handle = model.fc1.bias.register_hook(lambda grad: grad)
    assert "1 of the optimizer's parameters have hooks on their gradients" in refusal(
        torch.optim.SGD(model.parameters()), model
    )
    handle.remove()
    with pytest.raises(TypeError, match="optimizer is a int; it must be one of torch"):
        convert.optimizer_from_torch(3, target(model))


def made(model, scheduler, *arguments, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = getattr(lr_scheduler, scheduler)(optimizer, *arguments, **options)
    return optimizer, scheduler


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("LambdaLR", [lambda n: 1.0], "calls functions of yours, which no code can be"),
        ("MultiplicativeLR", [lambda n: 1.0], "Use schedules.multiplicative_lr with"),
    ],
)
def test_schedulers_without_a_counterpart(model, name, arguments, said):
    optimizer, scheduler = made(model, name, *arguments)
    text = refusal(optimizer, model, scheduler=scheduler)
    assert f"scheduler is a torch.optim.lr_scheduler.{name}: it " in text
    assert said in text


def test_a_plateau_that_scales_unevenly_is_refused(model):
    groups = grouped(model)
    for group in groups:
        group.pop("betas", None)
    optimizer = torch.optim.ASGD(groups)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer)
    said = refusal(optimizer, model, scheduler=scheduler, model=model)
    assert "the steps of ASGD are not proportional to the learning rate." in said
    assert "a ReduceLROnPlateau of groups with learning rates of their own" in said


def test_schedulers_that_are_not_all(model):
    optimizer, scheduler = made(model, "StepLR", 1)
    assert "a scheduler has set the optimizer's learning rates, and there is none." in (
        refusal(optimizer, model)
    )
    other = torch.optim.SGD(model.parameters())
    assert "scheduler is that of another optimizer." in refusal(
        other, model, scheduler=scheduler
    )
    optimizer.param_groups[0]["lr"] = 0.3
    assert (
        "a group has lr=0.3, and after 0 steps its StepLR gives 0.1. Something else "
        "sets it, too, which cannot be ported."
    ) in refusal(optimizer, model, scheduler=scheduler)
    optimizer, scheduler = made(model, "OneCycleLR", 0.1, total_steps=9)
    assert "which goes by updates; steps_per_epoch is 2." in refusal(
        optimizer, model, scheduler=scheduler, steps_per_epoch=2
    )
    optimizer.param_groups[0]["momentum"] = 0.5
    assert "a group has momentum=0.5, and after 0 steps" in refusal(
        optimizer, model, scheduler=scheduler
    )
    optimizer, scheduler = made(model, "CyclicLR", 0.1, 0.2, scale_fn=lambda x: x)
    assert "a CyclicLR with a scale_fn of yours" in refusal(
        optimizer, model, scheduler=scheduler
    )
    optimizer, part = made(model, "OneCycleLR", 0.1, total_steps=9)
    scheduler = lr_scheduler.SequentialLR(optimizer, [part], [])
    assert "scheduler is a SequentialLR with a part that cycles the momentum" in (
        refusal(optimizer, model, scheduler=scheduler)
    )


def test_an_argument_that_is_not_known_is_refused(model):
    optimizer = torch.optim.SGD(model.parameters())
    optimizer.defaults["twist"] = optimizer.param_groups[0]["twist"] = 2
    assert "SGD has twist=2, which optim.sgd has no argument for." in refusal(
        optimizer, model
    )


def test_groups_are_not_guessed(model):
    assert "the optimizer's parameters have numbers and no names" in refusal(
        torch.optim.AdamW(grouped(model)), model
    )

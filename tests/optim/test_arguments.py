"""Arguments are refused where torch refuses them, by name."""

import inspect
import itertools
import re

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxclip import optim

OPTIMIZERS = {
    "adadelta": (torch.optim.Adadelta, ["lr", "rho", "eps", "weight_decay"]),
    "adagrad": (
        torch.optim.Adagrad,
        ["lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps"],
    ),
    "adam": (torch.optim.Adam, ["lr", "eps", "weight_decay"]),
    "adamax": (torch.optim.Adamax, ["lr", "eps", "weight_decay"]),
    "adamw": (torch.optim.AdamW, ["lr", "eps", "weight_decay"]),
    "asgd": (torch.optim.ASGD, ["lr", "lambd", "alpha", "t0", "weight_decay"]),
    "nadam": (torch.optim.NAdam, ["lr", "eps", "weight_decay", "momentum_decay"]),
    "radam": (torch.optim.RAdam, ["lr", "eps", "weight_decay"]),
    "rmsprop": (
        torch.optim.RMSprop,
        ["lr", "alpha", "eps", "weight_decay", "momentum"],
    ),
    "rprop": (torch.optim.Rprop, ["lr"]),
    "sgd": (torch.optim.SGD, ["lr", "momentum", "dampening", "weight_decay"]),
}
PAIRS = {
    "betas": ["adam", "adamax", "adamw", "nadam", "radam"],
    "etas": ["rprop"],
    "step_sizes": ["rprop"],
}
FLAGS = {
    "maximize": list(OPTIMIZERS),
    "amsgrad": ["adam", "adamw"],
    "centered": ["rmsprop"],
    "decoupled_weight_decay": ["adam", "nadam", "radam"],
    "nesterov": ["sgd"],
}
VALUES = [-0.5, 0.0, 0.5, 1.0, 1.5]
SCALARS = [(name, arg) for name, (_, args) in OPTIMIZERS.items() for arg in args]
PAIRED = [(name, arg) for arg, names in PAIRS.items() for name in names]


def torch_takes(name, **options):
    try:
        OPTIMIZERS[name][0]([torch.zeros(1)], **options)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(("name", "argument"), SCALARS)
@pytest.mark.parametrize("value", VALUES)
def test_a_number_is_refused_where_torch_refuses_it(name, argument, value):
    make = getattr(optim, name)
    for given in (value, jnp.asarray(value), np.float32(value)):
        if torch_takes(name, **{argument: value}):
            make(**{argument: given})
            continue
        message = rf"^{name}\({argument}={value:g}\): expected a number (≥|from) 0"
        with pytest.raises(ValueError, match=message):
            make(**{argument: given})


@pytest.mark.parametrize(("name", "argument"), PAIRED)
def test_a_pair_is_refused_where_torch_refuses_it(name, argument):
    make = getattr(optim, name)
    for pair in itertools.product(VALUES, VALUES):
        if torch_takes(name, **{argument: pair}):
            make(**{argument: pair})
            continue
        message = rf"^{name}\({argument}\[[01]\]=-?[\d.]+\): expected .*a number"
        with pytest.raises(ValueError, match=message):
            make(**{argument: pair})


@pytest.mark.parametrize(("name", "argument"), PAIRED)
@pytest.mark.parametrize("given", [0.9, (0.9,), (0.5, 0.9, 1.2)], ids=str)
def test_a_pair_is_of_two(name, argument, given):
    message = re.escape(f"{name}({argument}={given!r}): expected two numbers, such as ")
    with pytest.raises(ValueError, match=message):
        getattr(optim, name)(**{argument: given})


@pytest.mark.parametrize(("name", "argument"), SCALARS)
def test_what_is_no_number_is_refused(name, argument):
    make = getattr(optim, name)
    with pytest.raises(TypeError, match=rf"^{name}\({argument}='1'\): expected a real"):
        make(**{argument: "1"})
    with pytest.raises(TypeError, match=rf"^{name}\({argument}=...\).* shape \(2,\)"):
        make(**{argument: jnp.ones(2)})


@pytest.mark.parametrize(
    ("name", "argument"),
    [(name, flag) for flag, names in FLAGS.items() for name in names],
)
def test_a_flag_is_a_bool(name, argument):
    message = rf"^{name}\({argument}=1\): expected True or False, got int\."
    with pytest.raises(TypeError, match=message):
        getattr(optim, name)(**{argument: 1})


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_not_a_number_is_refused(name):
    with pytest.raises(ValueError, match=rf"^{name}\(lr=nan\): expected a number ≥ 0"):
        getattr(optim, name)(lr=float("nan"))


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "dampening": 0.1}], ids=str)
def test_nesterov_needs_a_momentum_and_no_dampening(options):
    assert not torch_takes("sgd", nesterov=True, **options)
    message = r"^sgd\(nesterov=True, momentum=.*\): expected a momentum above 0, and a "
    with pytest.raises(ValueError, match=message):
        optim.sgd(nesterov=True, **options)


def test_the_messages_say_what_is_expected():
    for make, message in (
        (lambda: optim.adam(lr=-1), "adam(lr=-1): expected a number ≥ 0."),
        (
            lambda: optim.nadam(betas=(0.9, 1)),
            "nadam(betas[1]=1): expected 0 ≤ a number < 1, such as 0.9.",
        ),
        (
            lambda: optim.adadelta(rho=1.5),
            "adadelta(rho=1.5): expected a number from 0 to 1.",
        ),
        (
            lambda: optim.rprop(etas=(0, 1.2)),
            "rprop(etas[0]=0): expected 0 < a number < 1.",
        ),
        (
            lambda: optim.rprop(etas=(0.5, 1)),
            "rprop(etas[1]=1): expected 1 < a number.",
        ),
        (
            lambda: optim.rprop(etas=0.5),
            "rprop(etas=0.5): expected two numbers, such as (0.5, 1.2).",
        ),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            make()


@pytest.mark.parametrize("name", ["adam", "asgd", "sgd"])
def test_what_a_schedule_returns_is_checked_when_it_is_called(name):
    params = jnp.ones(2)
    optimizer = getattr(optim, name)(lr=lambda count: 0.5 - count)
    state = optimizer.init(params)
    _, state = optimizer.update(params, state, params)
    with pytest.raises(ValueError, match=rf"^{name}\(lr=-0.5\): expected a number ≥ 0"):
        optimizer.update(params, state, params)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_defaults_and_the_order_are_torchs(name):
    """Every argument of torch that means something here is taken, with its default."""
    own = {"params", "foreach", "capturable", "differentiable", "fused"}
    theirs, ours = (
        {
            argument.name: argument.default
            for argument in inspect.signature(function).parameters.values()
            if argument.name not in own
        }
        for function in (OPTIMIZERS[name][0], getattr(optim, name))
    )
    assert ours == theirs
    # Where torch puts `foreach` and the like between, ours are by keyword.
    assert [name for name in ours if name != "maximize"] == [
        name for name in theirs if name != "maximize"
    ]

"""Optimizer state goes where the weights go, and nothing is guessed or left over."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from jaxclip import clip_by_global_norm, convert, optim
from tests.convert.optimizers.nets import (
    LinenNet,
    Net,
    gradients,
    net,
    step,
    target,
)


@pytest.fixture
def model():
    return net()


def trained(model, make=torch.optim.AdamW, steps=3, **options):
    """Return an optimizer that has taken steps, the bias of fc1 one step fewer."""
    optimizer = make(model.parameters(), **options)
    grads = gradients(model, steps)
    del grads[0]["fc1.bias"]
    step(model, optimizer, grads)
    return optimizer


def own(optimizer, model, name):
    return optimizer.state[model.get_parameter(name)]


def is_averages(state, optimizer, model):
    """Hold an AdamState against torch's."""
    for key in ("exp_avg", "exp_avg_sq"):
        tree = getattr(state, key)
        for layer in ("fc1", "fc2"):
            expected = own(optimizer, model, f"{layer}.weight")[key].numpy().T
            np.testing.assert_array_equal(tree[layer]["kernel"], expected)
        for name, torchs in (("scale", "weight"), ("bias", "bias")):
            expected = own(optimizer, model, f"norm.{torchs}")[key].numpy()
            np.testing.assert_array_equal(tree["norm"][name], expected)
    return True


def test_averages_lie_as_the_weights_do(model):
    optimizer = trained(model)
    state = convert.opt_state_from_torch(
        optimizer, target(model), optim.adamw(), model=model
    )
    assert is_averages(state, optimizer, model)
    # In the order of the tree: fc1's bias and kernel, fc2's kernel, norm's.
    np.testing.assert_array_equal(state.step, [2, 3, 3, 3, 3])
    assert state.count == 3
    assert isinstance(state.exp_avg, nnx.State)


def by_rank(params):
    return jax.tree.map(lambda p: "matrix" if p.ndim > 1 else "vector", params)


WRAPPED = {
    "chain": (
        lambda inner: optax.chain(clip_by_global_norm(1.0), inner),
        lambda state: state[1],
    ),
    "MultiSteps": (
        lambda inner: optax.MultiSteps(inner, 2).gradient_transformation(),
        lambda state: state.inner_opt_state,
    ),
    "inject_hyperparams": (
        lambda inner: optax.inject_hyperparams(optim.adamw)(lr=0.1),
        lambda state: state.inner_state,
    ),
    "apply_if_finite": (
        lambda inner: optax.apply_if_finite(inner, 3),
        lambda state: state.inner_state,
    ),
    "masked": (
        lambda inner: optax.masked(inner, lambda p: jax.tree.map(lambda _: True, p)),
        lambda state: state.inner_state,
    ),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_states_are_found_in_wrappers(model, name):
    wrap, inner = WRAPPED[name]
    optimizer = trained(model)
    state = convert.opt_state_from_torch(
        optimizer, target(model), wrap(optim.adamw()), model=model
    )
    assert is_averages(inner(state), optimizer, model)
    counters = ("count", "gradient_step")
    for counter in (getattr(state, name, 3) for name in counters):
        assert callable(counter) or counter == 3
    back = convert.opt_state_to_torch(state, target(model), optimizer, model=model)
    assert_same(back["optimizer"], optimizer.state_dict())


def assert_same(made, expected):
    assert made["param_groups"] == expected["param_groups"]
    assert made["state"].keys() == expected["state"].keys()
    for number, kept in expected["state"].items():
        assert made["state"][number].keys() == kept.keys()
        for key, value in kept.items():
            torch.testing.assert_close(
                made["state"][number][key], value, rtol=0, atol=0
            )


def test_a_partition_has_a_part_in_each_group(model):
    optimizer = trained(model)
    groups = {"matrix": optim.adamw(), "vector": optim.adamw(weight_decay=0.0)}
    tx = optax.partition(groups, by_rank)
    state = convert.opt_state_from_torch(optimizer, target(model), tx, model=model)
    matrix, vector = (state.inner_states[name].inner_state for name in groups)
    np.testing.assert_array_equal(matrix.step, [3, 3])
    np.testing.assert_array_equal(vector.step, [2, 3, 3])
    expected = own(optimizer, model, "fc2.weight")["exp_avg"].numpy().T
    np.testing.assert_array_equal(matrix.exp_avg["fc2"]["kernel"], expected)
    assert vector.exp_avg["fc2"]["kernel"].get_value() == optax.MaskedNode()
    back = convert.opt_state_to_torch(state, target(model), optimizer, model=model)
    assert_same(back["optimizer"], optimizer.state_dict())


@pytest.mark.parametrize("whole", [False, True], ids=["params", "variables"])
def test_linen(model, whole):
    optimizer = trained(model)
    module, variables = convert.from_torch((LinenNet(), jnp.ones((1, 3))), model)
    params = variables if whole else None
    pair = (module, variables)
    state = convert.opt_state_from_torch(
        optimizer, pair, optim.adamw(), params=params, model=model
    )
    tree = state.exp_avg["params"] if whole else state.exp_avg
    expected = own(optimizer, model, "fc1.weight")["exp_avg"].numpy().T
    np.testing.assert_array_equal(tree["fc1"]["kernel"], expected)
    back = convert.opt_state_to_torch(state, pair, optimizer, model=model)
    assert_same(back["optimizer"], optimizer.state_dict())


def test_a_parameter_that_torch_never_stepped_is_at_step_0(model):
    optimizer = torch.optim.Adam(model.parameters(), amsgrad=True)
    grads = gradients(model, 2)
    for grad in grads:
        del grad["fc2.weight"]
    step(model, optimizer, grads)
    state = convert.opt_state_from_torch(
        optimizer, target(model), optim.adam(amsgrad=True), model=model
    )
    np.testing.assert_array_equal(state.step, [2, 2, 0, 2, 2])
    assert not np.any(state.max_exp_avg_sq["fc2"]["kernel"])


@pytest.mark.parametrize("count", [7, 0])
def test_sgd_knows_its_first_step_by_the_buffer(model, count):
    make = {"make": torch.optim.SGD, "momentum": 0.9, "dampening": 0.5}
    optimizer = trained(model, steps=1, **make)
    tx = optim.sgd(momentum=0.9, dampening=0.5)
    state = convert.opt_state_from_torch(
        optimizer, target(model), tx, model=model, count=count
    )
    # One of which it is not known which it was is not the first.
    np.testing.assert_array_equal(state.step, [0, *[max(count, 1)] * 4])
    back = convert.opt_state_to_torch(state, target(model), optimizer, model=model)
    assert_same(back["optimizer"], optimizer.state_dict())
    assert len(back["optimizer"]["state"]) == 4


OPTAX = {
    "adam": (torch.optim.Adam, {}, optax.adam(1e-3)),
    "adamw": (torch.optim.AdamW, {}, optax.adamw(optax.constant_schedule(1e-3))),
    "sgd": (torch.optim.SGD, {"momentum": 0.9}, optax.sgd(1e-3, momentum=0.9)),
    "adamax": (torch.optim.Adamax, {}, optax.adamax(1e-3)),
    "rmsprop": (torch.optim.RMSprop, {}, optax.rmsprop(1e-3, eps_in_sqrt=False)),
    "centered rmsprop": (
        torch.optim.RMSprop,
        {"centered": True},
        optax.rmsprop(1e-3, eps_in_sqrt=False, centered=True),
    ),
    "adagrad": (torch.optim.Adagrad, {"eps": 0.0}, optax.adagrad(1e-2, 0.0, 0.0)),
    "adadelta": (torch.optim.Adadelta, {}, optax.adadelta(1.0)),
}

UNCOUNTED = "rmsprop", "centered rmsprop", "adagrad", "adadelta"
"""Nothing in Optax's state counts, and in torch nothing depends on it."""


@pytest.mark.parametrize("name", OPTAX)
def test_optaxs_own_states(model, name):
    make, options, tx = OPTAX[name]
    optimizer = make(model.parameters(), **options)
    step(model, optimizer, gradients(model, 3))
    flax = target(model)
    state = convert.opt_state_from_torch(optimizer, flax, tx, model=model, count=3)
    if name == "adam":
        assert is_averages(Renamed(state[0]), optimizer, model)
    back = convert.opt_state_to_torch(state, flax, optimizer, model=model)["optimizer"]
    if name in UNCOUNTED:
        for kept in back["state"].values():
            kept["step"] += 2
    assert_same(back, optimizer.state_dict())


@pytest.mark.parametrize("name", OPTAX)
def test_optaxs_own_go_on_as_torchs(model, name):
    make, options, _ = OPTAX[name]
    lr = 0.01
    tx = {
        "adam": optax.adam(lr),
        "adamw": optax.adamw(lr, weight_decay=0.01),
        "sgd": optax.sgd(lr, momentum=0.9),
        "adamax": optax.adamax(lr),
        "rmsprop": optax.rmsprop(lr, 0.99, eps_in_sqrt=False),
        "centered rmsprop": optax.rmsprop(lr, 0.99, eps_in_sqrt=False, centered=True),
        "adagrad": optax.adagrad(lr, 0.0, 0.0),
        "adadelta": optax.adadelta(lr),
    }[name]
    optimizer = make(model.parameters(), lr=lr, **options)
    step(model, optimizer, gradients(model, 3))
    flax = target(model)
    state = convert.opt_state_from_torch(optimizer, flax, tx, model=model, count=3)
    layout = convert.mapping(flax).parameters()
    params = nnx.state(flax, nnx.Param)
    for grads in gradients(model, 2):
        step(model, optimizer, [grads])
        updates, state = tx.update(layout.to_flax(grads, like=params), state, params)
        params = optax.apply_updates(params, updates)
    nnx.update(flax, params)
    # In float64, by formulas in another order.
    for key, value in convert.to_torch(flax).items():
        np.testing.assert_allclose(
            value, model.state_dict()[key], rtol=1e-12, atol=1e-14
        )


def test_an_adamax_that_took_no_step_is_known_by_its_arguments(model):
    flax, tx = target(model), optax.adamax(1e-3)
    optimizer = torch.optim.Adamax(model.parameters())
    fresh = tx.init(nnx.state(flax, nnx.Param))
    made = convert.opt_state_to_torch(fresh, flax, optimizer, model=model)
    assert made["optimizer"]["state"][0].keys() == {"step", "exp_avg", "exp_inf"}
    for make in (torch.optim.Adam, torch.optim.RAdam, torch.optim.SparseAdam):
        optimizer = make(model.parameters())
        made = convert.opt_state_to_torch(fresh, flax, optimizer, model=model)
        assert made["optimizer"]["state"][0].keys() == {"step", "exp_avg", "exp_avg_sq"}


class Renamed:
    def __init__(self, state):
        """Name Optax's averages as torch does."""
        self.exp_avg, self.exp_avg_sq = state.mu, state.nu


def test_a_state_dict_has_the_names_that_torch_stored(model):
    optimizer = torch.optim.AdamW(reversed(list(model.named_parameters())))
    step(model, optimizer, gradients(model, 2))
    state = convert.opt_state_from_torch(
        optimizer.state_dict(), target(model), optim.adamw()
    )
    assert is_averages(state, optimizer, model)


def test_parameters_may_be_numbered_by_their_names(model):
    """torch.distributed.checkpoint has names where a state dict has numbers."""
    names = [name for name, _ in model.named_parameters()]
    optimizer = trained(model)
    saved = optimizer.state_dict()
    (group,) = saved["param_groups"]
    by_name = {
        "state": {names[number]: kept for number, kept in saved["state"].items()},
        "param_groups": [{**group, "params": names}],
    }
    state = convert.opt_state_from_torch(by_name, target(model), optim.adamw())
    assert is_averages(state, optimizer, model)
    made = convert.opt_state_to_torch(state, target(model), by_name)
    assert_same(made["optimizer"], by_name)


def test_an_optimizer_of_nnx_takes_the_state_and_gives_it(model):
    flax = target(model)
    optimizer = trained(model)
    tx = optim.adamw()
    state = convert.opt_state_from_torch(optimizer, flax, tx, model=model)
    held = nnx.Optimizer(flax, tx, wrt=nnx.Param)
    structure = jax.tree.structure(held.opt_state)
    held.opt_state = jax.tree.unflatten(structure, jax.tree.leaves(state))
    assert is_averages(held.opt_state, optimizer, model)
    made = convert.opt_state_to_torch(held.opt_state, flax, optimizer, model=model)
    assert_same(made["optimizer"], optimizer.state_dict())
    with pytest.raises(TypeError, match="opt_state is a State; it must be a state of"):
        convert.opt_state_to_torch(
            nnx.state(held.opt_state), flax, optimizer, model=model
        )


class Stacked(nnx.Module):
    def __init__(self):
        """Hold three layers as one."""

        @nnx.split_rngs(splits=3)
        @nnx.vmap
        def layers(rngs):
            return nnx.Linear(3, 2, rngs=rngs, param_dtype="float64")

        self.layers = layers(nnx.Rngs(0))


@pytest.mark.parametrize("name", ["AdamW", "Adafactor"])
def test_stacked_layers(name):
    layers = torch.nn.ModuleList(torch.nn.Linear(3, 2) for _ in range(3))
    source = torch.nn.ModuleDict({"layers": layers}).double()
    optimizer = getattr(torch.optim, name)(source.parameters())
    step(source, optimizer, gradients(source, 2))
    flax = Stacked()
    weights = convert.mapping(flax, stacked="layers")
    # (layers, in, out), of which torch's last two are out and in.
    axes = {"factored_axes": lambda path, _: (2, 1) if "kernel" in path else ()}
    tx = getattr(optim, name.lower())(**(axes if name == "Adafactor" else {}))
    state = convert.opt_state_from_torch(
        optimizer, flax, tx, model=source, mapping=weights
    )
    key = "exp_avg" if name == "AdamW" else "row_var"
    expected = [
        own(optimizer, source, f"layers.{n}.weight")[key].numpy() for n in (0, 1, 2)
    ]
    made = getattr(state, key)["layers"]["kernel"].get_value()
    np.testing.assert_array_equal(made, np.moveaxis(np.stack(expected), 1, 2))
    back = convert.opt_state_to_torch(
        state, flax, optimizer, model=source, mapping=weights
    )
    assert_same(back["optimizer"], optimizer.state_dict())


@pytest.mark.parametrize("live", [True, False])
def test_parameters_of_a_loss_are_ignored_and_stay(model, live):
    model.loss = torch.nn.ParameterDict({"scale": torch.ones(2), "bias": torch.ones(1)})
    optimizer = trained(model)
    source = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    options = {"ignore": "loss.*", "model": model if live else None}
    flax = convert.from_torch(lambda: Net("float64"), model, ignore="loss.*")
    given = optimizer if live else source
    state = convert.opt_state_from_torch(given, flax, optim.adamw(), **options)
    assert is_averages(state, optimizer, model)
    made = convert.opt_state_to_torch(state, flax, given, **options)
    assert_same(made["optimizer"], optimizer.state_dict())
    code = str(convert.optimizer_from_torch(optimizer, flax, model=model, ignore="l*"))
    assert "optim.adamw(lr=0.001)" in code
    options |= {"ignore": (), "mapping": convert.mapping(flax)}
    said = refusal(optimizer, flax, optim.adamw(), **{**options, "model": model})
    assert (
        "'loss.scale' is a parameter of the optimizer, but none of the target's. If it "
        "is to be left out: ignore='loss.scale'."
    ) in said


def test_names_may_be_given_for_each_group(model):
    matrices, vectors = ["fc2.weight", "fc1.weight"], ["fc1.bias", "norm.weight"]
    param_names = [matrices, [*vectors, "norm.bias"]]
    groups = [
        {"params": [model.get_parameter(name) for name in names]}
        for names in param_names
    ]
    optimizer = torch.optim.AdamW(groups)
    step(model, optimizer, gradients(model, 2))
    state = convert.opt_state_from_torch(
        {"optimizer": optimizer.state_dict()},
        target(model),
        optim.adamw(),
        param_names=param_names,
    )
    assert is_averages(state, optimizer, model)


@pytest.mark.parametrize("beside", ["file", "model", "state dict"])
def test_one_group_has_the_order_of_the_model(model, beside, tmp_path):
    optimizer = trained(model)
    source, given = optimizer.state_dict(), model
    if beside == "file":
        source, given = tmp_path / "checkpoint.pt", None
        parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save({**parts, "epoch": 3}, source)
    elif beside == "state dict":
        given = model.state_dict()
    state = convert.opt_state_from_torch(
        source, target(model), optim.adamw(), model=given
    )
    assert is_averages(state, optimizer, model)


def scheduled(model, scheduler, steps, **options):
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = scheduler(optimizer, **options)
    step(model, optimizer, gradients(model, steps), scheduler)
    return optimizer, scheduler


@pytest.mark.parametrize(
    ("epoch", "steps", "steps_per_epoch", "count"),
    [(3, 3, 1, 3), (2, 9, 4, 9), (2, 8, 4, 8), (2, 5, 4, 8), (5, 3, 1, 5)],
    ids=["update", "within", "between", "skipped", "skipped updates"],
)
def test_the_scheduler_counts(model, epoch, steps, steps_per_epoch, count):
    optimizer = torch.optim.AdamW(model.parameters())
    step(model, optimizer, gradients(model, steps))
    state = convert.opt_state_from_torch(
        {"optimizer": optimizer.state_dict(), "lr": {"last_epoch": epoch}},
        target(model),
        optim.adamw(),
        model=model,
        steps_per_epoch=steps_per_epoch,
    )
    assert state.count == count


def test_a_chained_scheduler_has_the_count_of_its_parts(model):
    chained = torch.optim.lr_scheduler.ChainedScheduler

    def make(optimizer):
        return chained([torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)])

    optimizer, scheduler = scheduled(model, make, 2)
    state = convert.opt_state_from_torch(
        optimizer, target(model), optim.adamw(), model=model, scheduler=scheduler
    )
    assert state.count == 2


def test_the_scheduler_goes_on_as_torchs_does(model):
    options = {"max_lr": 0.1, "total_steps": 10}
    scheduler = torch.optim.lr_scheduler.OneCycleLR
    optimizer, scheduler = scheduled(model, scheduler, 2, **options)
    before = (optimizer.state_dict()["param_groups"], scheduler.state_dict())
    flax = target(model)
    state = convert.opt_state_from_torch(
        optimizer, flax, optim.adamw(), model=model, count=6
    )
    options = {"model": model, "scheduler": scheduler}
    made = convert.opt_state_to_torch(state, flax, optimizer, **options)
    saved = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    again = convert.opt_state_to_torch(state, flax, saved, **options)
    assert_same(again["optimizer"], made["optimizer"])
    assert again["scheduler"] == made["scheduler"]
    assert (optimizer.state_dict()["param_groups"], scheduler.state_dict()) == before
    for _ in range(4):
        scheduler.step()
    assert made["scheduler"] == scheduler.state_dict()
    expected = optimizer.state_dict()["param_groups"]
    assert made["optimizer"]["param_groups"] == expected


def test_float32_widens_and_float64_is_not_rounded(model):
    model = model.float()
    optimizer = trained(model)
    state = convert.opt_state_from_torch(
        optimizer.state_dict(),
        convert.from_torch(lambda: Net("float64"), model, dtype="float64"),
        optim.adamw(),
        model=model,
    )
    assert state.exp_avg["fc1"]["kernel"].dtype == jnp.float64
    assert is_averages(state, optimizer, model)


def refusal(source, flax, tx, **options):
    with pytest.raises(convert.ConversionError) as raised:
        convert.opt_state_from_torch(source, flax, tx, **options)
    return str(raised.value)


def test_what_does_not_fit_is_one_error(model):
    optimizer = trained(model, amsgrad=True)
    tx = optax.chain(optax.ema(0.9), optim.sgd(0.1, momentum=0.9))
    assert refusal(optimizer, target(model), tx, model=model) == (
        "nothing was converted; 5 problems:\n"
        "  - EmaState is a state that is not carried over.\n"
        "  - torch keeps no 'momentum_buffer' of 'fc1.bias' and 4 more, and a state of "
        "the transformation does. Are the options the same?\n"
        "  - torch keeps 'exp_avg' of 'fc1.weight' and 4 more, and no state of the "
        "transformation does. Are the options the same?\n"
        "  - torch keeps 'exp_avg_sq' of 'fc1.weight' and 4 more, and no state of the "
        "transformation does. Are the options the same?\n"
        "  - torch keeps 'max_exp_avg_sq' of 'fc1.weight' and 4 more, and no state of "
        "the transformation does. Are the options the same?"
    )


OTHER_NUMBERS = {
    "Adam": (
        {"amsgrad": True},
        optax.amsgrad(1e-3),
        "ScaleByAmsgradState",
        "adam(amsgrad=True)",
    ),
    "Rprop": ({}, optax.rprop(1e-2), "ScaleByRpropState", "rprop"),
    "Adafactor": ({}, optax.adafactor(1e-2), "FactoredState", "adafactor"),
    "RMSprop": (
        {"momentum": 0.9},
        optax.rmsprop(1e-2, eps_in_sqrt=False, momentum=0.9),
        "the momentum of optax.rmsprop, which is of what the learning rate scaled,",
        "rmsprop",
    ),
}


@pytest.mark.parametrize("name", OTHER_NUMBERS)
def test_a_state_of_other_numbers_is_refused_with_what_has_the_same(model, name):
    options, tx, what, ours = OTHER_NUMBERS[name]
    optimizer = trained(model, getattr(torch.optim, name), **options)
    said = (
        f"{what} is a state that is not carried over: torch's holds other numbers, and "
        f"that of jaxclip.optim.{ours} the same."
    )
    flax = target(model)
    assert said in refusal(optimizer, flax, tx, model=model, count=3)
    assert said in back(tx.init(nnx.state(flax, nnx.Param)), model, optimizer)


def test_momentum_that_the_learning_rate_scales_afterwards_is_torchs(model):
    """What optax.rmsprop has the other way round may be chained as torch has it."""
    tx = optax.chain(
        optax.scale_by_rms(0.99, 1e-8, eps_in_sqrt=False),
        optax.trace(0.9),
        optax.scale_by_learning_rate(0.01),
    )
    optimizer = torch.optim.RMSprop(model.parameters(), momentum=0.9)
    step(model, optimizer, gradients(model, 2))
    flax = target(model)
    state = convert.opt_state_from_torch(optimizer, flax, tx, model=model, count=2)
    buffer = own(optimizer, model, "fc1.weight")["momentum_buffer"]
    np.testing.assert_array_equal(state[1].trace["fc1"]["kernel"], buffer.numpy().T)


def test_two_states_do_not_share_an_average(model):
    optimizer = trained(model)
    said = refusal(
        optimizer,
        target(model),
        optax.chain(optim.adam(), optim.adam()),
        model=model,
    )
    assert "two states of the transformation hold 'exp_avg' of 'fc1.bias'." in said


def test_a_parameter_that_torch_does_not_train_is_to_be_frozen(model):
    parts = [p for name, p in model.named_parameters() if "norm" not in name]
    optimizer = torch.optim.Adam(parts)
    step(model, optimizer, gradients(model, 1))
    said = refusal(optimizer, target(model), optim.adam(), model=model)
    assert (
        "'norm.bias' is trained here, and none of the parameters of torch's optimizer. "
        "Freeze it: optax.partition, with optax.set_to_zero() for it."
    ) in said

    def label(path, _):
        return "freeze" if path[0].key == "norm" else "train"

    tx = optax.partition(
        {"train": optim.adam(), "freeze": optax.set_to_zero()},
        lambda params: jax.tree_util.tree_map_with_path(label, params),
    )
    state = convert.opt_state_from_torch(optimizer, target(model), tx, model=model)
    np.testing.assert_array_equal(
        state.inner_states["train"].inner_state.step, [1, 1, 1]
    )


def test_which_is_which_is_not_guessed(model):
    optimizer = trained(model)
    saved = optimizer.state_dict()
    assert (
        "the optimizer's parameters have numbers and no names. Pass model=, the torch "
        "model or its state dict, whose order they have."
    ) in refusal(saved, target(model), optim.adamw())
    parts = [*model.parameters()]
    groups = [{"params": parts[:2]}, {"params": parts[2:]}]
    several = torch.optim.AdamW(groups).state_dict()
    assert (
        "lie in 2 groups of 2, 3, so that the order of the model's says nothing."
    ) in refusal(several, target(model), optim.adamw(), model=model)
    fewer = torch.optim.AdamW(parts[1:]).state_dict()
    assert (
        "the optimizer has 4 parameters without names, and the model 5."
    ) in refusal(fewer, target(model), optim.adamw(), model=model)
    names = [name for name, _ in model.named_parameters()]
    assert "param_names has 4 names; the optimizer has 5 parameters" in refusal(
        saved, target(model), optim.adamw(), param_names=names[1:]
    )
    assert "'fc3.weight' is a parameter of the optimizer, but none of" in refusal(
        saved, target(model), optim.adamw(), param_names=["fc3.weight", *names[1:]]
    )
    assert "'fc1.bias' stands for 2 of the optimizer's parameters." in refusal(
        saved, target(model), optim.adamw(), param_names=["fc1.bias", *names[1:]]
    )
    assert "has a parameter of shape (4, 3) that is none of model's." in refusal(
        optimizer, target(model), optim.adamw(), model=net()
    )
    turned = [names[1], names[0], *names[2:]]
    assert (
        "'exp_avg' of 'fc1.bias' has shape (4, 3); the parameter has (4,). Are "
        "param_names, or the order, right?"
    ) in refusal(saved, target(model), optim.adamw(), param_names=turned)


def test_nothing_is_rounded(model):
    optimizer = trained(model)
    flax = convert.from_torch(lambda: Net("float32"), net().float())
    assert (
        "'exp_avg' of 'fc1.weight' is float64, and the state of the transformation "
        "float32. Nothing is rounded: make the state of float64 parameters."
    ) in refusal(optimizer, flax, optim.adamw(), model=model)


def test_optax_counts_one_step_for_all(model):
    said = refusal(trained(model), target(model), optax.adam(1e-3), model=model)
    assert "'fc1.bias' has taken 2 steps, and 'norm.scale' 3." in said


def test_a_count_is_not_made_up(model):
    optimizer = trained(model, torch.optim.SGD, momentum=0.9)
    tx = optim.sgd(momentum=0.9)
    assert (
        "nothing in the source counts the updates, of which schedules are functions. "
        "Pass scheduler=, or count=; where no schedule is in the transformation, "
        "count=0 will do."
    ) in refusal(optimizer, target(model), tx, model=model)
    beside = {f"scheduler{n}": {"last_epoch": n} for n in range(2)}
    assert "source holds 2 schedulers; say which of them counts" in refusal(
        {"optimizer": optimizer.state_dict(), **beside}, target(model), tx, model=model
    )


def test_a_plateau_is_on_both_sides(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    behind = optim.schedules.reduce_lr_on_plateau(0.1)
    options = {"model": model, "count": 0}
    assert "and no state is that of jaxclip.optim.schedules.reduce_lr_on_plateau" in (
        refusal(
            optimizer, target(model), optim.sgd(0.1), scheduler=scheduler, **options
        )
    )
    assert "a state is that of reduce_lr_on_plateau, and the source holds no" in (
        refusal(optimizer, target(model), behind, **options)
    )
    groups = [{"params": [p], "lr": 0.1 * n} for n, p in enumerate(model.parameters())]
    several = torch.optim.SGD(groups)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(several)
    assert "a ReduceLROnPlateau of groups with the learning rates 0.0, 0.1" in (
        refusal(several, target(model), behind, scheduler=scheduler, **options)
    )


class Summed(nnx.Module):
    """One bias where torch adds two, as in the cells of Flax."""

    def __init__(self):
        """Hold the bias."""
        self.bias = nnx.Param(jnp.zeros(4))


def summed(layer, variables):
    yield convert.Link(
        ("bias_ih", "bias_hh"),
        ("bias",),
        to_flax=lambda one, other: (one + other,),
        to_torch=lambda both: (both / 2, both / 2),
    )


def test_a_moment_of_a_sum_is_refused(monkeypatch):
    from jaxclip.convert._rules.registry import RULES

    monkeypatch.setattr("jaxclip.convert._rules.registry.RULES", {**RULES})
    monkeypatch.setitem(RULES, Summed, None)
    convert.register(Summed, summed)
    biases = {
        name: torch.nn.Parameter(torch.ones(4).double())
        for name in ("bias_ih", "bias_hh")
    }
    optimizer = torch.optim.Adam(biases.items())
    for bias in biases.values():
        bias.grad = torch.ones_like(bias)
    optimizer.step()
    assert (
        "their rule computes one from the other, as where two biases are added, and "
        "does not only move elements about."
    ) in refusal(optimizer, Summed(), optim.adam())


@pytest.mark.parametrize(
    ("source", "error", "said"),
    [
        (3, TypeError, "source is a int; it must be a torch optimizer, its state dict"),
        ("none.pt", FileNotFoundError, "there is no such file"),
        (
            {"model": {}},
            ValueError,
            "has no optimizer's state dict. It has the keys 'm",
        ),
        (
            {key: {"state": {}, "param_groups": []} for key in "gd"},
            ValueError,
            "more than one optimizer's state dict. Say which it is: key='g', key='d'.",
        ),
    ],
)
def test_sources_that_are_none(model, source, error, said):
    with pytest.raises(error, match=said):
        convert.opt_state_from_torch(source, target(model), optim.adam())


def test_a_model_without_values_has_no_state(model):
    with pytest.raises(TypeError, match="target has no values"):
        convert.opt_state_from_torch(trained(model), Net, optim.adamw(), model=model)
    with pytest.raises(TypeError, match="scheduler is a int; it must be one of"):
        convert.opt_state_from_torch(
            trained(model), target(model), optim.adamw(), model=model, scheduler=3
        )


def back(state, model, optimizer, **options):
    with pytest.raises(convert.ConversionError) as raised:
        convert.opt_state_to_torch(
            state, target(model), optimizer, **{"model": model, **options}
        )
    return str(raised.value)


def test_what_does_not_fit_on_the_way_back(model):
    optimizer = trained(model, amsgrad=True)
    params = nnx.state(target(model), nnx.Param)
    state = optim.adamw().init(params)
    assert (
        "torch's optimizer keeps exp_avg, exp_avg_sq, max_exp_avg_sq, step of "
        "'fc1.weight', and the states hold exp_avg, exp_avg_sq, step."
    ) in back(state, model, optimizer)
    optimizer, scheduler = scheduled(
        model, torch.optim.lr_scheduler.ExponentialLR, 2, gamma=0.9
    )
    assert (
        "scheduler has taken 2 steps more than the 0 that the optimizer's state is at."
    ) in back(state, model, optimizer, scheduler=scheduler)
    saved = {"optimizer": optimizer.state_dict(), "lr": scheduler.state_dict()}
    with pytest.raises(TypeError, match="scheduler is a dict; it must be a live"):
        convert.opt_state_to_torch(
            state, target(model), optimizer, model=model, scheduler=saved["lr"]
        )
    assert "Pass it as a live one, scheduler=..., or the optimizer alone." in back(
        state, model, saved
    )
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    assert "there is a ReduceLROnPlateau on one side alone" in back(
        state, model, optimizer, scheduler=plateau
    )
    assert "EmaState is a state that is not carried over." in back(
        (state, optax.ema(0.9).init(params)), model, optimizer
    )
    assert "no state counts the updates, and so scheduler cannot go on." in back(
        optax.sgd(0.1).init(params),
        model,
        torch.optim.SGD(model.parameters()),
        scheduler=scheduler,
    )

"""A recording of a torch loop holds what the loop did, and leaves it as it was."""

from collections import UserDict
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_ as imported_clip_grad_norm_
from torch.nn.utils import clip_grad_value_ as imported_clip_grad_value_
from torch.utils.checkpoint import checkpoint

from jaxclip.parity import STAGES, open_trace, record
from jaxclip.parity._torch._random import Generators, dropout_mask, same_state
from tests.trios import BY_NAME
from torchref.grad_clipping import grad_clipping
from torchref.my_linear import my_net

X = torch.linspace(-1, 1, 24).reshape(6, 4)
Y = torch.linspace(1, -1, 6).reshape(6, 1)


class Net(nn.Module):
    """A net with buffers, dropout, a shared weight, and a nested output."""

    def __init__(self):
        """Make the layers."""
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Dropout(0.5))
        self.again = nn.Linear(4, 4)
        self.again.weight = self.body[0].weight
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        hidden = self.body(self.norm(x))
        return {"y": self.head(self.again(self.body(hidden))), "rest": (hidden, 3)}


def setup(model=Net, seed=0, **options):
    torch.manual_seed(seed)
    model = model()
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01} | options
    return model, torch.optim.SGD(model.parameters(), **options)


def step(model, optimizer, scheduler=None, x=X, y=Y):
    optimizer.zero_grad()
    output = model(x)
    output = output["y"] if isinstance(output, dict) else output
    loss = F.mse_loss(output, y)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step()
    if scheduler is not None:
        scheduler.step()
    return loss.detach(), norm


def recorded(path, model, optimizer, *, steps=1, take=step, **options):
    with record(path, model, optimizer, **options) as run:
        for _ in range(steps):
            with run.step(x=X, y=Y):
                take(model, optimizer)
    return run, open_trace(path)


def equal(one, other):
    """Say whether two nests of tensors and numbers are equal to the bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        pairs = zip(one.items(), other.items(), strict=True)
        return all(k == m and equal(v, w) for (k, v), (m, w) in pairs)
    if isinstance(one, list | tuple):
        return all(equal(v, w) for v, w in zip(one, other, strict=True))
    return one == other


# The run is left as it was


class Recurrent(nn.Module):
    def __init__(self):
        """Make the layers."""
        super().__init__()
        self.lstm = nn.LSTM(2, 3, num_layers=2, dropout=0.3, batch_first=True)
        self.head = nn.Linear(3, 1)

    def forward(self, x):
        states, _ = self.lstm(x.reshape(6, 2, 2))
        return self.head(F.dropout(states[:, -1], 0.2, self.training))


class Attentive(nn.Module):
    def __init__(self):
        """Make the layers."""
        super().__init__()
        self.block = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.block(x[None]))[0]


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.01, amsgrad=True),
}


@pytest.mark.parametrize("net", [Net, Recurrent, Attentive])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_recorded_run_is_the_same_to_the_bit(net, optimizer, tmp_path):
    def train(record_it):
        torch.manual_seed(0)
        model = net()
        tuned = OPTIMIZERS[optimizer](model.parameters())
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(tuned, 5)
        seen = []
        if record_it:
            with record(tmp_path, model, tuned, scheduler=scheduler) as run:
                for _ in range(3):
                    with run.step(x=X, y=Y):
                        seen.append(step(model, tuned, scheduler))
            assert run.warnings == ()
        else:
            seen = [step(model, tuned, scheduler) for _ in range(3)]
        grads = [p.grad for p in model.parameters()]
        drawn = torch.rand(3)
        return (
            *(seen, grads, drawn, model.state_dict(), tuned.state_dict()),
            scheduler.state_dict(),
        )

    assert equal(train(True), train(False))


MODULES = [
    name for name, trio in BY_NAME.items() if isinstance(trio.torch(), nn.Module)
]


@pytest.mark.parametrize("name", MODULES)
def test_the_reference_models_train_the_same_while_recorded(name, tmp_path):
    inputs = torch.as_tensor(BY_NAME[name].inputs())

    def train(run, model, optimizer):
        seen = []
        for _ in range(2):
            with nullcontext() if run is None else run.step(x=inputs):
                optimizer.zero_grad()
                output = model(inputs)
                output = output[0] if isinstance(output, tuple) else output
                loss = output.square().mean()
                loss.backward()
                norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
            seen.append((loss.item(), norm.item()))
        return seen, model.state_dict(), optimizer.state_dict()

    def start():
        model = BY_NAME[name].torch_model(torch.float64)
        return model, torch.optim.Adam(model.parameters(), 0.01)

    plain = train(None, *start())
    model, optimizer = start()
    with record(tmp_path, model, optimizer) as run:
        assert equal(train(run, model, optimizer), plain)
    trace = open_trace(tmp_path)
    assert run.warnings == trace.warnings == ()
    assert [(step.loss[0], step.total_norm) for step in trace] == plain[0]


def attributes():
    """Collect what recording stands in for."""
    schedulers = vars(torch.optim.lr_scheduler).values()
    owners = [torch.autograd, torch.optim.Optimizer, nn.Module, torch.amp.GradScaler]
    owners += [kind for kind in schedulers if isinstance(kind, type)]
    names = ("backward", "zero_grad", "scale", "unscale_", "step")
    found = [vars(owner).get(name) for owner in owners for name in names]
    clip = nn.utils.clip_grad
    for wrapper in (
        clip.clip_grad_norm_,
        clip._clip_grads_with_norm_,
        clip.clip_grad_value_,
    ):
        found += [cell.cell_contents for cell in wrapper.__closure__]
    return found


@pytest.mark.parametrize("failing", ["never", "in a step", "between steps"])
def test_everything_is_put_back_whatever_happens(failing, tmp_path):
    before = attributes()
    model, optimizer = setup()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)

    def hooks():
        found = [optimizer._optimizer_step_pre_hooks]
        found += [optimizer._optimizer_step_post_hooks]
        for module in model.modules():
            found += [module._forward_hooks, module._forward_pre_hooks]
        return [*map(len, found)]

    clean = hooks()
    try:
        with record(tmp_path, model, optimizer, scheduler=scheduler) as run:
            assert attributes() != before
            with run.step():
                assert hooks() != clean
                step(model, optimizer, scheduler)
                if failing == "in a step":
                    raise KeyError("mine")
            if failing == "between steps":
                raise KeyError("mine")
    except KeyError:
        assert failing != "never"
    assert attributes() == before
    assert hooks() == clean
    trace = open_trace(tmp_path)
    assert trace.finished == (failing == "never")
    assert len(trace) == (failing != "in a step")


# What a recording holds


def test_a_step_holds_what_the_loop_did(tmp_path):
    """Held against a loop that copies everything itself."""
    seen = {}

    def take(model, optimizer):
        names = dict(model.named_parameters())

        def copy(tensors):
            return {k: v.detach().clone().numpy() for k, v in tensors.items()}

        def state():
            return {k: copy(optimizer.state[p]) for k, p in names.items()}

        seen["params"], seen["opt_state"] = copy(names), state()
        seen["buffers"] = copy(dict(model.named_buffers()))
        optimizer.zero_grad()
        output = model(X)
        seen["y"], seen["hidden"] = output["y"], output["rest"][0]
        loss = F.mse_loss(output["y"], Y)
        loss.backward()
        seen["loss"] = loss
        seen["grads"] = copy({k: p.grad for k, p in names.items()})
        seen["total_norm"] = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        seen["final_grads"] = copy({k: p.grad for k, p in names.items()})
        optimizer.step()
        seen["params_after"], seen["opt_state_after"] = copy(names), state()
        seen["buffers_after"] = copy(dict(model.named_buffers()))

    model, optimizer = setup()
    run, trace = recorded(tmp_path, model, optimizer, steps=2, take=take)
    assert run.warnings == trace.warnings == ()
    last = trace[-1]
    for stage in (*("params", "buffers", "grads", "final_grads", "params_after"),):
        assert [*getattr(last, stage)] == [*seen[stage]]
    for stage in ("params", "buffers", "grads", "final_grads", "params_after"):
        for name, array in getattr(last, stage).items():
            np.testing.assert_array_equal(array, seen[stage][name], strict=True)
    for stage in ("opt_state", "opt_state_after"):
        held = getattr(last, stage)
        assert held.keys() == seen[stage].keys()
        for name, arrays in held.items():
            assert [*arrays] == ["momentum_buffer"]
            np.testing.assert_array_equal(
                arrays["momentum_buffer"], seen[stage][name]["momentum_buffer"]
            )
    assert [*last.outputs[0]] == ["y", "rest.0", "rest.1"]
    np.testing.assert_array_equal(last.outputs[0]["y"], seen["y"].detach())
    np.testing.assert_array_equal(last.outputs[0]["rest.0"], seen["hidden"].detach())
    assert last.outputs[0]["rest.1"] == 3
    assert last.loss == (seen["loss"].item(),)
    assert last.total_norm == seen["total_norm"].item()
    np.testing.assert_array_equal(last.batch["x"], X)
    assert last.hyperparameters[0]["lr"] == 0.1
    assert last.hyperparameters[0]["weight_decay"] == 0.01
    # The state of an optimizer that has not stepped is empty.
    assert trace[0].opt_state == {}
    assert last.unexplained_draws == ()
    assert [event.kind for event in last.events] == [
        *("zero_grad", "forward", "backward", "clip_grad_norm", "optimizer_step")
    ]
    (clip,) = (e for e in last.events if e.kind == "clip_grad_norm")
    assert clip.details["max_norm"] == 0.1
    assert clip.details["total_norm"] == seen["total_norm"].item()


def test_activations_come_in_the_order_of_the_calls(tmp_path):
    seen = []
    model, optimizer = setup()
    for path, module in model.named_modules():
        module.register_forward_hook(
            lambda module, given, output, path=path: seen.append((path, output))
        )
    _, trace = recorded(tmp_path, model, optimizer)
    activations = trace[0].activations
    assert [(a.module, a.call) for a in activations] == [
        *(("norm", 0), ("body.0", 0), ("body.1", 0), ("body.2", 0), ("body", 0)),
        *(("body.0", 1), ("body.1", 1), ("body.2", 1), ("body", 1)),
        *(("again", 0), ("head", 0)),
    ]
    assert seen.pop()[0] == ""
    for activation, (path, output) in zip(activations, seen, strict=True):
        assert (activation.module, activation.output) == (path, "")
        np.testing.assert_array_equal(activation.array, output.detach(), strict=True)
    assert activations[0].type == "torch.nn.modules.batchnorm.BatchNorm1d"


def test_what_is_overwritten_later_was_copied_before(tmp_path):
    model = nn.Sequential(nn.Linear(4, 1), nn.ReLU(inplace=True))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    batch = X.clone()

    def take(model, optimizer):
        step(model, optimizer, x=batch)
        batch.zero_()

    with record(tmp_path, model, optimizer) as run, run.step(x=batch):
        take(model, optimizer)
    (held,) = open_trace(tmp_path)
    assert held.activations[0].array.min() < 0
    np.testing.assert_array_equal(held.batch["x"], X)


def test_the_manifest_describes_the_model(tmp_path):
    model, _ = setup()
    model.head.bias.requires_grad_(False)
    groups = [
        {"params": [model.head.weight, model.head.bias]},
        {"params": [*model.body.parameters(), nn.Parameter(torch.ones(2))], "lr": 1},
    ]
    optimizer = torch.optim.AdamW(groups, 0.1, betas=(0.8, 0.9))
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    _, trace = recorded(tmp_path, model, optimizer, scheduler=scheduler)
    run = trace.run
    assert run.framework == "torch"
    assert run.versions["torch"] == torch.__version__
    assert run.dtypes == ("float32",)
    modules = {module.path: module for module in run.modules}
    assert [*modules] == [path for path, _ in model.named_modules()]
    assert modules["body.0"].type == "torch.nn.modules.linear.Linear"
    assert modules["again"].parameters == ("again.weight", "again.bias")
    assert modules["norm"].buffers[0] == "norm.running_mean"
    assert run.tied == {"body.0.weight": ("again.weight",)}
    assert run.frozen == ("head.bias",)
    assert run.groups == (
        ("head.weight", "head.bias"),
        ("body.0.weight", "body.0.bias", "group 1, parameter 2"),
    )
    assert run.optimizer == "torch.optim.adamw.AdamW"
    assert run.schedulers == ("torch.optim.lr_scheduler.ExponentialLR",)
    assert run.keep == STAGES
    step = trace[0]
    np.testing.assert_array_equal(step.params["group 1, parameter 2"], [1, 1])
    assert [group["lr"] for group in step.hyperparameters] == [0.1, 1]
    assert step.hyperparameters[0]["betas"] == [0.8, 0.9]
    assert "head.bias" not in step.grads
    assert step.opt_state_after["head.weight"]["step"] == 1


def test_a_module_with_two_names_has_both(tmp_path):
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    _, trace = recorded(tmp_path, model, optimizer)
    assert trace.run.modules[1].aliases == ("2",)
    assert trace.run.tied == {"0.weight": ("2.weight",), "0.bias": ("2.bias",)}
    calls = [(a.module, a.call) for a in trace[0].activations]
    assert calls == [("0", 0), ("1", 0), ("0", 1), ("3", 0)]


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_dtypes_are_kept(dtype, tmp_path):
    kind = getattr(torch, dtype)

    def take(model, optimizer):
        step(model, optimizer, x=X.to(kind), y=Y.to(kind))

    model, optimizer = setup(lambda: my_net().to(kind))
    _, trace = recorded(tmp_path, model, optimizer, take=take)
    assert trace.run.dtypes == (dtype,)
    held = trace[0]
    for arrays in (held.params, held.grads, held.params_after, held.outputs[0]):
        assert {str(array.dtype) for array in arrays.values()} == {dtype}
    for name, parameter in model.named_parameters():
        want = parameter.detach().double().numpy()
        np.testing.assert_array_equal(held.params_after[name].astype("f8"), want)


def test_sparse_gradients_are_made_dense(tmp_path):
    model = nn.Embedding(5, 2, sparse=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)

    def take(model, optimizer):
        optimizer.zero_grad()
        model(torch.tensor([1, 1, 3])).sum().backward()
        optimizer.step()

    run, trace = recorded(tmp_path, model, optimizer, steps=2, take=take)
    np.testing.assert_array_equal(trace[1].grads["weight"][:, 0], [0, 2, 0, 1, 0])
    assert run.warnings == ()


def test_micro_batches_have_a_loss_and_an_output_each(tmp_path):
    def take(model, optimizer):
        optimizer.zero_grad()
        for part in (slice(0, 2), slice(2, 6)):
            F.mse_loss(model(X[part]), Y[part]).backward()
        optimizer.step()

    model, optimizer = setup(my_net)
    run, trace = recorded(tmp_path, model, optimizer, take=take)
    assert run.warnings == ()
    (held,) = trace
    assert len(held.loss) == len(held.outputs) == 2
    assert [output[""].shape for output in held.outputs] == [(2, 1), (4, 1)]
    model, _ = setup(my_net)
    losses = [
        F.mse_loss(model(X[part]), Y[part]) for part in (slice(0, 2), slice(2, 6))
    ]
    sum(losses).backward()
    assert held.loss == tuple(loss.item() for loss in losses)
    torch.testing.assert_close(
        torch.tensor(held.grads["3.weight"]), model[1].weight.grad
    )


def test_the_batch_is_flattened_by_its_names(tmp_path):
    model, optimizer = setup(my_net)
    nested = {"a": (X, [Y, None]), "b": UserDict(c=np.arange(3)), "n": 2, "t": True}
    with record(tmp_path, model, optimizer) as run:
        with run.step(self=X, **nested):
            step(model, optimizer)
        with pytest.raises(TypeError, match=r"the batch's 'text' is a str, not a tens"):
            with run.step(text="hello"):
                pass
        with pytest.raises(TypeError, match=r"the batch's 'x.0' is a <U1 array, not a"):
            with run.step(x=[np.array("a")]):
                pass
        with pytest.raises(ValueError, match=r"two arrays of the path 'a.b'"):
            with run.step(**{"a.b": X, "a": {"b": X}}):
                pass
    held = open_trace(tmp_path)[0].batch
    assert [*held] == ["self", "a.0", "a.1.0", "b.c", "n", "t"]
    assert (held["n"], held["t"]) == (2, True)


# What the loop calls, by whatever name


def clip_with_norm(parameters, max_norm):
    parameters = [*parameters]
    norm = nn.utils.get_total_norm([p.grad for p in parameters])
    nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


CLIPS = {
    "imported": lambda m: imported_clip_grad_norm_(m.parameters(), 0.1),
    "looked up": lambda m: nn.utils.clip_grad_norm_(m.parameters(), max_norm=0.1),
    "named": lambda m: nn.utils.clip_grad_norm_(
        parameters=m.parameters(), max_norm=0.1
    ),
    "full path": lambda m: torch.nn.utils.clip_grad.clip_grad_norm_(
        [*m.parameters()], 0.1, norm_type=2, foreach=False
    ),
    "filtered": lambda m: imported_clip_grad_norm_(
        filter(lambda p: p.requires_grad, m.parameters()), 0.1
    ),
    "in two parts": lambda m: clip_with_norm(m.parameters(), 0.1),
}


@pytest.mark.parametrize("clip", CLIPS)
def test_a_clip_is_seen_by_whatever_name(clip, tmp_path):
    def take(model, optimizer):
        optimizer.zero_grad()
        F.mse_loss(model(X), Y).backward()
        norms.append(CLIPS[clip](model))
        optimizer.step()

    norms = []
    model, optimizer = setup(my_net)
    run, (held,) = recorded(tmp_path, model, optimizer, take=take)
    kinds = [event.kind for event in held.events]
    assert kinds[2:] == ["backward", "clip_grad_norm", "optimizer_step"]
    assert held.events[3].details["max_norm"] == 0.1
    assert held.events[3].details["own"] == [n for n, _ in model.named_parameters()]
    assert held.total_norm == norms[0].item()
    ratio = held.final_grads["3.bias"] / held.grads["3.bias"]
    np.testing.assert_allclose(ratio, 0.1 / (norms[0] + 1e-6), rtol=1e-6)
    assert run.warnings == ()


def test_a_clip_by_value_of_one_tensor_is_seen(tmp_path):
    def take(model, optimizer):
        optimizer.zero_grad()
        F.mse_loss(model(X), Y).backward()
        imported_clip_grad_value_(model[1].weight, clip_value=1e-3)
        optimizer.step()

    model, optimizer = setup(my_net)
    _, (held,) = recorded(tmp_path, model, optimizer, take=take)
    clip = held.events[3]
    assert (clip.kind, clip.details["clip_value"]) == ("clip_grad_value", 1e-3)
    assert clip.details["own"] == ["3.weight"]
    assert held.total_norm is None
    assert np.abs(held.final_grads["3.weight"]).max() == np.float32(1e-3)
    np.testing.assert_array_equal(held.final_grads["3.bias"], held.grads["3.bias"])


def test_an_empty_generator_is_warned_of_as_ever(tmp_path):
    model, optimizer = setup(my_net)
    with record(tmp_path, model, optimizer) as run, run.step():
        with pytest.warns(UserWarning, match="`parameters` is an empty generator"):
            nn.utils.clip_grad_norm_((p for p in ()), 1.0)


def test_clipping_by_hand_is_seen_in_the_gradients(tmp_path):
    def take(model, optimizer):
        optimizer.zero_grad()
        F.mse_loss(model(X), Y).backward()
        norms.append(grad_clipping(model, theta=0.1))
        optimizer.step()

    norms = []
    model, optimizer = setup(my_net)
    run, (held,) = recorded(tmp_path, model, optimizer, take=take)
    change = held.events[3]
    assert (change.kind, change.details["how"]) == ("grads_changed", "scaled")
    assert change.details["factor"] == pytest.approx(0.1 / norms[0].item(), rel=1e-5)
    assert run.warnings == ()


SCHEDULERS = {
    "StepLR": lambda o: torch.optim.lr_scheduler.StepLR(o, 1),
    "warm restarts": lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(
        o, 3
    ),
    "in sequence": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [
            torch.optim.lr_scheduler.ConstantLR(o, 0.5),
            torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
        ],
        [1],
    ),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("given", [True, False])
def test_schedulers_are_seen_given_or_not(scheduler, given, tmp_path):
    model, optimizer = setup(my_net)
    made = SCHEDULERS[scheduler](optimizer)
    rates = []
    options = {"scheduler": made} if given else {}
    with record(tmp_path, model, optimizer, **options) as run:
        for _ in range(3):
            with run.step():
                rates.append(optimizer.param_groups[0]["lr"])
                step(model, optimizer, made)
    trace = open_trace(tmp_path)
    assert [s.hyperparameters[0]["lr"] for s in trace] == rates
    for held in trace:
        assert [e.kind for e in held.events][-2:] == [
            "optimizer_step",
            "scheduler_step",
        ]
        assert held.events[-1].details["scheduler"].endswith(type(made).__name__)


def test_making_a_scheduler_is_no_step_of_it(tmp_path):
    def take(model, optimizer):
        F.mse_loss(model(X), Y).backward()
        torch.optim.lr_scheduler.StepLR(optimizer, 1)
        optimizer.step()

    run, (held,) = recorded(tmp_path, *setup(my_net), take=take)
    kinds = [event.kind for event in held.events]
    assert kinds == ["forward", "backward", "optimizer_step"]
    assert run.warnings == ()


class OwnScheduler:
    def __init__(self, optimizer):
        """Find the learning rate."""
        self.group = optimizer.param_groups[0]

    def step(self):
        self.group["lr"] *= 0.5


def test_a_scheduler_of_ones_own_is_seen_if_it_is_given(tmp_path):
    model, optimizer = setup(my_net)
    own = OwnScheduler(optimizer)
    with record(tmp_path, model, optimizer, scheduler=[own]) as run, run.step():
        step(model, optimizer, own)
    assert open_trace(tmp_path)[0].events[-1].kind == "scheduler_step"


def test_a_gradient_scaler_is_seen_and_losses_are_not_scaled(tmp_path):
    model, optimizer = setup(my_net)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with record(tmp_path, model, optimizer) as run:
        for factor in (1.0, float("inf")):
            with run.step():
                optimizer.zero_grad()
                loss = F.mse_loss(model(X), Y)
                scaler.scale(loss * factor).backward()
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                scaler.step(optimizer)
                scaler.update()
    good, bad = open_trace(tmp_path)
    assert [event.kind for event in good.events] == [
        *("zero_grad", "forward", "scale", "backward", "unscale", "clip_grad_norm"),
        "optimizer_step",
    ]
    assert good.events[2].details["factor"] == 1024
    setup_model, _ = setup(my_net)
    assert good.loss == (F.mse_loss(setup_model(X), Y).item(),)
    assert bad.events[-1].kind == "optimizer_step_skipped"
    for name, array in bad.params.items():
        np.testing.assert_array_equal(array, bad.params_after[name])
    assert [warning.code for warning in run.warnings] == ["loss_not_finite"]


def test_a_closure_is_seen_from_inside(tmp_path):
    model, _ = setup(my_net)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)

    def take(model, optimizer):
        def closure():
            optimizer.zero_grad()
            loss = F.mse_loss(model(X), Y)
            loss.backward()
            return loss

        optimizer.step(closure)

    run, trace = recorded(tmp_path, model, optimizer, take=take, steps=2)
    assert run.warnings == ()
    assert len(trace[0].loss) > 1
    for name, array in trace[0].grads.items():
        np.testing.assert_array_equal(trace[0].final_grads[name], array)
    assert trace[1].opt_state["1.weight"]["n_iter"] > 0


def test_a_checkpoint_that_is_computed_anew_is_not_another_call(tmp_path):
    class Checkpointed(nn.Module):
        def __init__(self):
            """Make the layers."""
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 1), nn.Dropout(0.5))

        def forward(self, x):
            return checkpoint(self.body, x, use_reentrant=False)

    _, trace = recorded(tmp_path, *setup(Checkpointed))
    calls = [(a.module, a.call) for a in trace[0].activations]
    assert calls == [("body.0", 0), ("body.1", 0), ("body", 0)]
    assert len(trace[0].masks) == 1
    assert trace[0].unexplained_draws == ()


# Random numbers


class Dropped(nn.Module):
    def __init__(self, kind, shape, inplace):
        """Make the layers."""
        super().__init__()
        self.shape = shape
        self.fc = nn.Linear(4, 4)
        self.drop = kind(0.4, inplace=inplace)
        self.seen = []

    def forward(self, x):
        hidden = self.fc(x).clamp(min=0).reshape(self.shape)
        self.seen.append(hidden.detach().clone().numpy())
        hidden = self.drop(hidden)
        self.seen.append(hidden.detach().clone().numpy())
        return hidden.reshape(6, 4)[:, :1]


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (nn.Dropout, (6, 4)),
        (nn.Dropout1d, (2, 6, 2)),
        (nn.Dropout2d, (2, 3, 2, 2)),
        (nn.Dropout3d, (2, 6, 2, 1, 1)),
    ],
)
def test_masks_are_what_dropout_multiplied_its_input_by(kind, shape, inplace, tmp_path):
    model, optimizer = setup(lambda: Dropped(kind, shape, inplace))
    _, trace = recorded(tmp_path, model, optimizer)
    (mask,) = trace[0].masks
    assert (mask.module, mask.call) == ("drop", 0)
    given, returned = model.seen
    assert {*np.unique(mask.array)} == {0, np.float32(1 / 0.6)}
    # The output does not show the mask where the input is 0.
    assert ((mask.array > 0) & (given == 0)).any()
    np.testing.assert_array_equal(given * mask.array, returned)
    assert trace[0].unexplained_draws == ()


def test_a_mask_that_a_module_did_not_apply_is_not_kept():
    torch.manual_seed(0)
    generators = Generators(nn.Linear(1, 1))
    given = torch.ones(4, 4)

    def twice(x):
        return F.dropout(F.dropout(x))

    def other(x):
        return F.dropout(x, 0.3)

    def and_more(x):
        dropped = F.dropout(x)
        torch.rand(1)
        return dropped

    wrong = ((twice, False), (other, False), (and_more, False))
    for forward, found in ((F.dropout, True), *wrong):
        before = generators.state()
        returned = F.dropout(given)
        after = generators.state()
        module = nn.Dropout()
        module.forward = forward
        mask = dropout_mask(module, given, returned, generators, before)
        assert (mask is not None) == found
        # Whatever was drawn, the run goes on as if it had not been.
        assert same_state(generators.state(), after)


def test_draws_that_no_mask_explains_are_named(tmp_path):
    class Noisy(nn.Module):
        def __init__(self):
            """Make the layers."""
            super().__init__()
            self.fc = nn.Linear(4, 1)
            self.quiet = nn.Dropout(0.5).eval()
            self.alpha = nn.AlphaDropout(0.5)

        def train(self, mode=True):
            return super().train(mode)

        def forward(self, x):
            x = x + torch.randn_like(x)
            return self.fc(self.alpha(self.quiet(x)))

    model, optimizer = setup(Noisy)
    with record(tmp_path, model, optimizer) as run:
        with run.step():
            step(model, optimizer)
        with run.step():
            model.eval()
            F.mse_loss(model.fc(X), Y).backward()
            torch.rand(1)
        with run.step():
            F.mse_loss(model.fc(X), Y).backward()
    drawn = [held.unexplained_draws for held in open_trace(tmp_path)]
    assert drawn == [("", "alpha"), ("(outside the model)",), ()]


# What an optimizer may be like


def test_an_optimizer_gains_no_state_by_being_looked_at(tmp_path):
    model, optimizer = setup(my_net)

    def take(model, optimizer):
        model[0](X).sum().backward()
        optimizer.step()
        assert model[1].weight not in optimizer.state

    recorded(tmp_path, model, optimizer, take=take, steps=2)


def test_hyperparameters_are_those_that_the_optimizer_used(tmp_path):
    def take(model, optimizer):
        F.mse_loss(model(X), Y).backward()
        optimizer.param_groups[0]["lr"] = 0.5
        optimizer.step()
        optimizer.param_groups[0]["lr"] = 7.0

    _, (held,) = recorded(tmp_path, *setup(my_net), take=take)
    assert held.hyperparameters[0]["lr"] == 0.5


def test_the_names_of_an_optimizer_are_no_hyperparameters(tmp_path):
    model, _ = setup(my_net)
    optimizer = torch.optim.Adam(model.named_parameters(), torch.tensor(0.25))
    _, (held,) = recorded(tmp_path, model, optimizer)
    (group,) = held.hyperparameters
    assert group.keys() == {*optimizer.defaults}
    assert (group["lr"], group["betas"], group["fused"]) == (0.25, [0.9, 0.999], None)


# How much is kept


def test_keep_chooses_stages(tmp_path):
    model, optimizer = setup()
    run, trace = recorded(tmp_path, model, optimizer, keep=("loss", "final_grads"))
    assert trace.run.keep == ("loss", "final_grads")
    (held,) = trace
    assert len(held.loss) == 1
    assert "head.weight" in held.final_grads
    for stage in {*STAGES} - {"loss", "final_grads"}:
        assert not getattr(held, stage)
    assert run.warnings == ()
    # Without masks there is nothing to explain what dropout drew.
    assert held.unexplained_draws == ("body.2",)


@pytest.mark.parametrize(
    ("activations", "paths"),
    [
        (False, {*()}),
        ("body.*", {"body.0", "body.1", "body.2"}),
        (["head", "body"], {"head", "body"}),
    ],
)
def test_activations_chooses_modules(activations, paths, tmp_path):
    _, trace = recorded(tmp_path, *setup(), activations=activations)
    assert {a.module for a in trace[0].activations} == paths
    assert len(trace[0].masks) == 2


def test_digest_above_chooses_arrays(tmp_path):
    _, trace = recorded(tmp_path, *setup(), digest_above=4 * 16 - 1)
    (held,) = trace
    assert held.digests["grads"].keys() == {"body.0.weight"}
    assert held.params["body.0.weight"].shape == (4, 4)
    hidden = next(a for a in held.activations if a.module == "body.0")
    assert hidden.digest.shape == (6, 4)
    assert {*held.batch, *held.masks} - {"x", "y"} == {*held.masks}


def test_every_chooses_steps(tmp_path):
    _, trace = recorded(tmp_path, *setup(), steps=8, every=3)
    assert trace.numbers == (0, 3, 6)


def test_gradients_that_pile_up_between_recorded_steps_are_no_mistake(tmp_path):
    """The optimizer steps in every second step, of which every third is recorded."""
    model, optimizer = setup(my_net)
    with record(tmp_path, model, optimizer, every=3) as run:
        for number in range(8):
            with run.step():
                F.mse_loss(model(X), Y).backward()
                if number % 2:
                    optimizer.step()
                    optimizer.zero_grad()
    assert run.warnings == ()
    held = open_trace(tmp_path)[0]
    for name, array in held.params.items():
        np.testing.assert_array_equal(array, held.params_after[name])


def test_arguments_are_checked(tmp_path):
    model, optimizer = setup(my_net)
    for arguments, options, kind, message in (
        ((optimizer, model), {}, TypeError, "model is a SGD; it must be an nn.Module"),
        ((model, model), {}, TypeError, "optimizer is a Sequential; it must be a torc"),
        (
            (model, optimizer),
            {"every": 0},
            ValueError,
            r"record\(every=0\): it must be",
        ),
        (
            (model, optimizer),
            {"digest_above": 0.5},
            ValueError,
            r"record\(digest_above=0.5\): it must be a number of bytes, or None",
        ),
        (
            (model, optimizer),
            {"keep": ["grad"]},
            ValueError,
            r"record\(keep=\) has 'grad', which is no stage of a step: the stages are",
        ),
        (
            (torch.compile(model, backend="eager"), optimizer),
            {},
            ValueError,
            "model is the result of torch.compile, whose modules are not called one by",
        ),
    ):
        with pytest.raises(kind, match=message):
            record(tmp_path / "run.trace", *arguments, **options)
    assert not (tmp_path / "run.trace").exists()


def test_a_step_has_no_steps(tmp_path):
    model, optimizer = setup(my_net)
    with record(tmp_path, model, optimizer) as run, run.step():
        with pytest.raises(RuntimeError, match=r"run.step\(\) within run.step\(\)"):
            with run.step():
                pass


def test_a_recording_is_not_written_over_unless_asked(tmp_path):
    model, optimizer = setup(my_net)
    recorded(tmp_path, model, optimizer, steps=2)
    with pytest.raises(FileExistsError, match="pass overwrite=True to replace a reco"):
        with record(tmp_path, model, optimizer):
            pass
    assert len(recorded(tmp_path, model, optimizer, overwrite=True)[1]) == 1


def test_two_optimizers_are_recorded_at_once(tmp_path):
    """Each recording sees the steps of its own."""
    one, two = setup(my_net), setup(my_net, seed=1)
    with (
        record(tmp_path / "one", *one) as first,
        record(tmp_path / "two", *two) as second,
    ):
        with first.step(), second.step():
            step(*one)
            step(*two)
    for name in ("one", "two"):
        kinds = [event.kind for event in open_trace(tmp_path / name)[0].events]
        assert kinds.count("optimizer_step") == 1
        assert kinds.count("forward") == kinds.count("zero_grad") == 1

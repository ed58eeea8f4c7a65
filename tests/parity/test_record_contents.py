"""A recording holds what the loop did."""

from collections import UserDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from jaxclip.parity import STAGES, open_trace, record
from tests.parity.loops import X, Y, recorded, setup, step
from torchref.my_linear import my_net


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

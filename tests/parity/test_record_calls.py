"""What a loop calls is seen, by whatever name."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_ as imported_clip_grad_norm_
from torch.nn.utils import clip_grad_value_ as imported_clip_grad_value_
from torch.utils.checkpoint import checkpoint

from jaxclip.parity import open_trace, record
from tests.parity.loops import X, Y, recorded, setup, step
from torchref.grad_clipping import grad_clipping
from torchref.my_linear import my_net


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

"""The mistakes of a training loop are named, and a right loop has none."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from jaxclip.parity import open_trace, record
from torchref.my_linear import my_net

X = torch.linspace(-1, 1, 24).reshape(6, 4)
Y = torch.linspace(1, -1, 6).reshape(6, 1)


class Loop:
    """A model, its optimizer, and what a loop needs more, with a right step."""

    def __init__(self, net=my_net, **options):
        """Make the model and its optimizer."""
        torch.manual_seed(0)
        self.model = net()
        options = {"lr": 0.01, "weight_decay": 0.25} | options
        self.optimizer = torch.optim.SGD(self.model.parameters(), **options)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 2)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        self.other = my_net()
        for parameter in self.other.parameters():
            parameter.grad = torch.ones_like(parameter)

    def zero_grad(self, **options):
        self.optimizer.zero_grad(**options)

    def loss(self):
        return F.mse_loss(self.model(X), Y)

    def backward(self):
        self.loss().backward()

    def clip(self, model=None):
        model = self.model if model is None else model
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)

    def step(self):
        self.optimizer.step()

    def add_decay(self, decay=0.25):
        """Do what the notebook means to do."""
        for param in self.model.parameters():
            if param.requires_grad and param.grad is not None:
                param.grad.add_(param.data, alpha=decay)

    @torch.no_grad()
    def shrink(self, factor=0.99):
        for param in self.model.parameters():
            param.mul_(factor)

    def right(self):
        self.zero_grad()
        self.backward()
        self.clip()
        self.step()
        self.scheduler.step()


def warned(path, loop, take, steps=3):
    """Record steps of a loop, and return the warnings, held against the recording's."""
    with record(path, loop.model, loop.optimizer) as run:
        for _ in range(steps):
            with run.step(x=X, y=Y):
                take(loop)
    assert open_trace(path).warnings == run.warnings
    return run.warnings


def clip_before_backward(loop):
    loop.zero_grad()
    loop.clip()
    loop.backward()
    loop.step()


def clip_after_step(loop):
    loop.zero_grad()
    loop.backward()
    loop.step()
    loop.clip()


def clip_by_value_after_step(loop):
    loop.zero_grad()
    loop.backward()
    loop.step()
    nn.utils.clip_grad_value_(loop.model.parameters(), 0.1)


def clip_of_other_parameters(loop):
    loop.zero_grad()
    loop.backward()
    loop.clip(loop.other)
    loop.step()


def clip_while_scaled(loop):
    loop.zero_grad()
    loop.scaler.scale(loop.loss()).backward()
    loop.clip()
    loop.scaler.step(loop.optimizer)
    loop.scaler.update()


def grads_not_zeroed(loop):
    loop.backward()
    loop.clip()
    loop.step()


def decay_added_to_gradients(loop):
    loop.zero_grad()
    loop.backward()
    loop.add_decay()
    loop.step()


def decay_added_before_backward(loop):
    """Do as the notebook does, in place; its gradients are zeros, and not None."""
    for parameter in loop.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    loop.add_decay()
    loop.backward()
    loop.step()


def decay_added_after_clipping(loop):
    loop.zero_grad()
    loop.backward()
    loop.clip()
    loop.add_decay()
    loop.step()


def parameters_shrunk_after_the_step(loop):
    loop.right()
    loop.shrink()


def parameters_shrunk_before_the_step(loop):
    loop.zero_grad()
    loop.backward()
    loop.shrink()
    loop.step()


def scheduler_first(loop):
    loop.zero_grad()
    loop.backward()
    loop.scheduler.step()
    loop.step()


def no_backward(loop):
    loop.zero_grad()
    loop.loss()
    loop.step()


def step_twice(loop):
    loop.right()
    loop.step()


def loss_is_nan(loop):
    loop.zero_grad()
    (loop.loss() * float("nan")).backward()
    loop.step()


def of_another_model(loop):
    """Do as the notebook does: what is differentiated is not what is optimized."""
    loop.zero_grad()
    F.mse_loss(loop.other(X), Y).backward()
    loop.step()


WRONG = [
    (
        clip_before_backward,
        "clip_before_backward",
        "step 0: clip_grad_norm_ comes before backward(), which makes gradients that "
        "are not clipped: clip between backward() and optimizer.step().",
    ),
    (
        clip_after_step,
        "clip_after_step",
        "step 0: clip_grad_norm_ comes after optimizer.step(), which has used the "
        "gradients unclipped",
    ),
    (clip_by_value_after_step, "clip_after_step", "step 0: clip_grad_value_ comes aft"),
    (
        clip_of_other_parameters,
        "clip_of_other_parameters",
        "step 0: clip_grad_norm_ clips 'a tensor of shape [4, 3]', 'a tensor of shape "
        "[3]', 'a tensor of shape [3, 3]' and 3 more, and not one parameter that the "
        "optimizer updates: pass the parameters of the model that is trained.",
    ),
    (
        clip_while_scaled,
        "clip_while_scaled",
        "step 0: clip_grad_norm_ clips gradients that the scaler has scaled",
    ),
    (
        grads_not_zeroed,
        "grads_not_zeroed",
        "step 1: backward() added to gradients that the step before has used already, "
        "of '1.weight', '1.bias', '1.fc.weight' and 3 more: call optimizer.zero_grad()",
    ),
    (
        decay_added_to_gradients,
        "weight_decay_by_hand",
        "step 0: 0.25 times the parameters was added to the gradients of '1.weight', "
        "'1.bias', '1.fc.weight' and 3 more by hand, and the optimizer adds "
        "weight_decay=0.25 times once more: leave one of them out.",
    ),
    (
        decay_added_before_backward,
        "weight_decay_by_hand",
        "step 0: 0.25 times the parameters was added to the gradients of",
    ),
    (
        decay_added_after_clipping,
        "weight_decay_by_hand",
        "step 0: 0.25 times the parameters was added",
    ),
    (
        parameters_shrunk_after_the_step,
        "weight_decay_by_hand",
        "step 0: '1.weight', '1.bias', '1.fc.weight' and 3 more became 0.99 times what "
        "it was outside of optimizer.step(), and the optimizer has weight_decay=0.25",
    ),
    (
        parameters_shrunk_before_the_step,
        "weight_decay_by_hand",
        "step 0: '1.weight', '1.bias', '1.fc.weight' and 3 more became 0.99 times",
    ),
    (
        scheduler_first,
        "scheduler_before_optimizer",
        "step 0: scheduler.step() comes before optimizer.step(), so that the first "
        "learning rate is never used: call it after.",
    ),
    (
        no_backward,
        "step_without_backward",
        "step 0: optimizer.step() comes without a backward() before it",
    ),
    (step_twice, "step_without_backward", "step 0: optimizer.step() comes without a"),
    (loss_is_nan, "loss_not_finite", "step 0: The loss is nan."),
    (
        of_another_model,
        "never_a_gradient",
        "whole run: No backward() gave a gradient to '1.weight', '1.bias', "
        "'1.fc.weight' and 3 more of the optimizer: the loss does not depend on it",
    ),
]


@pytest.mark.parametrize(("take", "code", "said"), WRONG)
def test_a_mistake_is_named_once_with_its_first_step(take, code, said, tmp_path):
    with warnings.catch_warnings():
        # torch has a word about schedulers itself.
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        found = warned(tmp_path, Loop(), take)
    assert [warning.code for warning in found if warning.code == code] == [code]
    # A step without a gradient follows from each of the others.
    allowed = {code, "never_a_gradient"}
    assert {warning.code for warning in found} <= allowed
    (warning,) = (warning for warning in found if warning.code == code)
    assert str(warning).startswith(said)
    assert str(warning).endswith(f"[{code}]")


# Loops that are right


def right(loop):
    loop.right()


def zeroes_at_the_end(loop):
    loop.backward()
    loop.clip()
    loop.step()
    loop.zero_grad()


def zeroes_by_hand(loop):
    for parameter in loop.model.parameters():
        parameter.grad = None
    loop.backward()
    loop.step()


def zeroes_with_zeros(loop):
    loop.zero_grad(set_to_none=False)
    loop.backward()
    loop.step()


def zeroes_the_model(loop):
    loop.model.zero_grad()
    loop.backward()
    loop.step()


def clips_while_unscaled(loop):
    loop.zero_grad()
    loop.scaler.scale(loop.loss()).backward()
    loop.scaler.unscale_(loop.optimizer)
    loop.clip()
    loop.scaler.step(loop.optimizer)
    loop.scaler.update()
    loop.scheduler.step()


def scales_and_does_not_clip(loop):
    loop.zero_grad()
    loop.scaler.scale(loop.loss()).backward()
    loop.scaler.step(loop.optimizer)
    loop.scaler.update()


def clips_some_of_its_parameters(loop):
    loop.zero_grad()
    loop.backward()
    nn.utils.clip_grad_norm_(loop.model[0].parameters(), 0.1)
    nn.utils.clip_grad_value_(loop.model[1].parameters(), 0.1)
    loop.step()


def trains_another_model_through_this_one(loop):
    """Two optimizers take turns, as in adversarial training."""
    loop.zero_grad()
    loop.backward()
    loop.clip()
    loop.step()
    through = nn.Linear(4, 4)
    other = torch.optim.SGD(through.parameters(), 0.1)
    loop.model(through(X)).sum().backward()
    loop.clip(through)
    other.step()


def clips_another_model_for_itself(loop):
    """The gradients of the other are there already, without a backward pass."""
    loop.right()
    loop.clip(loop.other)
    torch.optim.SGD(loop.other.parameters(), 0.1).step()


def adds_up_gradients_that_are_the_parameters(loop):
    loop.zero_grad()
    for _ in range(2):
        sum(p.square().sum() / 2 for p in loop.model.parameters()).backward()
    loop.step()


def clips_another_model_as_well(loop):
    loop.zero_grad()
    loop.backward()
    both = nn.ModuleList([loop.model, loop.other])
    nn.utils.clip_grad_norm_(both.parameters(), 0.1)
    loop.step()


def adds_micro_batches_up(loop):
    loop.zero_grad()
    for _ in range(3):
        (loop.loss() / 3).backward()
    loop.clip()
    loop.step()


def adds_noise(loop):
    """Noise of its own generator, which is no decay."""
    loop.zero_grad()
    loop.backward()
    generator = torch.Generator().manual_seed(0)
    for parameter in loop.model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.grad += 0.1 * noise
    loop.step()


def averages_by_hand(loop):
    loop.zero_grad()
    loop.backward()
    for parameter in loop.model.parameters():
        parameter.grad /= 2
    loop.step()


@torch.no_grad()
def clamps_the_parameters(loop):
    with torch.enable_grad():
        loop.right()
    for parameter in loop.model.parameters():
        parameter.clamp_(-0.5, 0.5)


RIGHT = [
    *(right, zeroes_at_the_end, zeroes_by_hand, zeroes_with_zeros, zeroes_the_model),
    *(clips_while_unscaled, scales_and_does_not_clip, clips_some_of_its_parameters),
    *(trains_another_model_through_this_one, clips_another_model_as_well),
    *(clips_another_model_for_itself, adds_up_gradients_that_are_the_parameters),
    *(adds_micro_batches_up, adds_noise),
    *(averages_by_hand, clamps_the_parameters),
]


@pytest.mark.parametrize("take", RIGHT)
def test_a_right_loop_has_no_mistakes(take, tmp_path):
    assert warned(tmp_path, Loop(), take) == ()


@pytest.mark.parametrize(
    "take", [decay_added_to_gradients, parameters_shrunk_after_the_step]
)
def test_decay_by_hand_is_right_where_the_optimizer_has_none(take, tmp_path):
    assert warned(tmp_path, Loop(weight_decay=0), take) == ()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_decay_by_hand_is_known_in_every_precision(dtype, tmp_path):
    loop = Loop(lambda: my_net().to(dtype))
    loop.loss = lambda: F.mse_loss(loop.model(X.to(dtype)), Y.to(dtype))
    (found,) = warned(tmp_path, loop, decay_added_to_gradients)
    assert found.code == "weight_decay_by_hand"
    assert found.message.startswith("0.25 times the parameters")


@pytest.mark.parametrize("keep", ["grads", "final_grads"])
def test_decay_by_hand_is_seen_if_gradients_of_either_kind_are_kept(keep, tmp_path):
    loop = Loop()
    with record(tmp_path, loop.model, loop.optimizer, keep=keep) as run, run.step():
        decay_added_to_gradients(loop)
    assert [warning.code for warning in run.warnings] == ["weight_decay_by_hand"]


def test_gradients_may_pile_up_over_steps(tmp_path):
    number = iter(range(6))

    def every_other(loop):
        loop.backward()
        if next(number) % 2:
            loop.clip()
            loop.step()
            loop.zero_grad()

    assert warned(tmp_path, Loop(), every_other, steps=6) == ()


def test_gradients_used_in_a_step_that_is_not_recorded_are_used(tmp_path):
    loop = Loop()
    with record(tmp_path, loop.model, loop.optimizer, every=2) as run:
        for update in (False, True, True):
            with run.step():
                loop.backward()
                if update:
                    loop.step()
    assert [(w.code, w.step) for w in run.warnings] == [("grads_not_zeroed", 2)]


def test_a_frozen_parameter_needs_no_gradient(tmp_path):
    def net():
        model = my_net()
        model[0].weight.requires_grad_(False)
        return model

    assert warned(tmp_path, Loop(net), right) == ()


def test_a_parameter_that_gets_its_gradient_later_is_no_mistake(tmp_path):
    number = iter(range(3))

    def take(loop):
        loop.zero_grad()
        hidden = loop.model[0](X)
        late = next(number) == 2
        (loop.model[1](hidden) if late else hidden).sum().backward()
        loop.step()

    assert warned(tmp_path, Loop(), take) == ()


def test_a_part_that_never_gets_a_gradient_is_named(tmp_path):
    def take(loop):
        loop.zero_grad()
        loop.model[0](X).sum().backward()
        loop.step()

    (found,) = warned(tmp_path, Loop(), take)
    assert (found.code, found.step) == ("never_a_gradient", None)
    assert "'3.weight', '3.bias' of the optimizer" in found.message


# The notebook's cells


def test_the_notebooks_decay_has_no_effect_and_in_place_it_has(tmp_path):
    """Its first cell: decay before backward(), out of place, beside the optimizer's.

    It is written `lambda=` there, which is no Python.
    """

    def cell(add):
        def take(loop):
            # The optimizer leaves zeros behind, so that the cell has what to add to.
            loop.zero_grad(set_to_none=False)
            loss = loop.loss()
            for param in loop.model.parameters():
                if param.requires_grad and param.grad is not None:
                    add(param.grad, param.data)
            loss.backward()
            loop.step()

        return take

    out_of_place = cell(lambda grad, data: grad.add(data, alpha=0.25))
    in_place = cell(lambda grad, data: grad.add_(data, alpha=0.25))
    # What is thrown away leaves no trace, in the run or in the recording of it.
    assert warned(tmp_path / "out", Loop(), out_of_place) == ()
    (found,) = warned(tmp_path / "in", Loop(), in_place)
    assert (found.code, found.step) == ("weight_decay_by_hand", 1)


def test_the_notebooks_clip_of_another_model(tmp_path):
    """Its second cell: `net` runs, `model` is clipped, and `optimizer` is model's."""

    def take(loop):
        y = loop.other(torch.ones(4) * 1)
        y.backward()
        nn.utils.clip_grad_norm_(loop.model.parameters(), 1.0)
        loop.step()

    found = warned(tmp_path / "one", Loop(), take)
    assert [warning.code for warning in found] == ["never_a_gradient"]

    def take_clipping_the_other(loop):
        loop.zero_grad()
        y = loop.model(torch.ones(4) * 1)
        y.backward()
        nn.utils.clip_grad_norm_(loop.other.parameters(), 1.0)
        loop.step()

    found = warned(tmp_path / "two", Loop(), take_clipping_the_other)
    assert [warning.code for warning in found] == ["clip_of_other_parameters"]

"""A recorded run is the same to the bit, and all is put back after it."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.optimizer import _global_optimizer_pre_hooks

from jaxclip.parity import open_trace, record
from tests.parity.loops import Net, X, Y, equal, setup, step
from tests.trios import BY_NAME


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


# TorchDynamo asks tensors for it, and hides the warning, but not from errors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_a_compiled_run_is_the_same_to_the_bit(tmp_path):
    def train(record_it):
        torch.manual_seed(0)
        model = Net()
        compiled = torch.compile(model, backend="eager")
        tuned = torch.optim.AdamW(model.parameters(), 0.01)
        if record_it:
            with record(tmp_path, model, tuned) as run:
                for _ in range(2):
                    with run.step(x=X, y=Y):
                        step(compiled, tuned)
        else:
            for _ in range(2):
                step(compiled, tuned)
        return model.state_dict(), tuned.state_dict()

    assert equal(train(True), train(False))
    [first, second] = open_trace(tmp_path)
    for held in (first, second):
        assert {call.module for call in held.activations} == {
            path for path, _ in Net().named_modules() if path
        }
        assert len(held.outputs) == 1
        assert held.unexplained_draws == ()


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
        found += [_global_optimizer_pre_hooks]
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

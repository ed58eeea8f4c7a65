"""A loop that calls its model several times in a step, as with micro-batches."""

import pytest
import torch
from flax import nnx
from torch.nn import functional as F

from jaxclip import optim
from jaxclip.parity import Port, open_trace, record, verify

pytestmark = pytest.mark.usefixtures("quick_compilation")

# How many rows each of the batches has with which a step calls the model.
SIZES = 40, 30


class Net(torch.nn.Module):
    """A layer that returns an array, or a dict of two."""

    def __init__(self, named):
        """Make the layer."""
        super().__init__()
        self.fc = torch.nn.Linear(3, 8)
        self.named = named

    def forward(self, x):
        y = self.fc(x)
        return {"y": y, "twice": 2 * y} if self.named else y


class Ported(nnx.Module):
    """The port of `Net`, by its array."""

    def __init__(self):
        """Make the layer."""
        self.fc = nnx.Linear(3, 8, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.fc(x)


def recorded(path, *, named=False, **options):
    torch.manual_seed(0)
    model = Net(named)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with record(path, model, optimizer, **options) as run:
        for _ in range(2):
            batch = [torch.randn(size, 3) for size in SIZES]
            with run.step(x=batch):
                optimizer.zero_grad()
                for x in batch:
                    returned = model(x)
                    F.relu(returned["y"] if named else returned).mean().backward()
                optimizer.step()
    return path


def port(returned, *, slope=1.0):
    """Return a port whose loss function returns what is made of its outputs."""

    def loss_fn(model, batch):
        outputs = [model(x) * (slope if call else 1.0) for call, x in enumerate(batch)]
        loss = sum(nnx.relu(y).mean() for y in outputs)
        made = returned(outputs)
        return loss if made is None else (loss, made)

    return Port(
        Ported(), lambda model, batch: loss_fn(model, batch["x"]), optim.sgd(0.1)
    )


def names(report):
    return [tensor.name for tensor in report.of_stage("output")[0].tensors]


@pytest.mark.parametrize("listed", [list, tuple])
def test_each_call_is_held_against_an_item_of_a_list(tmp_path, listed):
    path = recorded(tmp_path)
    report = verify(path, port(listed))
    assert report, report
    assert names(report) == ["output", "output, call 1"]
    assert not verify(path, port(lambda outputs: outputs[::-1]))


def test_a_call_may_return_several_arrays_of_which_the_port_returns_some(tmp_path):
    path = recorded(tmp_path, named=True)
    report = verify(path, port(lambda outputs: [{"y": y} for y in outputs]))
    assert report, report
    assert names(report) == ["y", "y, call 1"]
    left = [each.name for each in report.of_stage("output")[0].not_compared]
    assert left == ["twice", "twice, call 1"]


def test_a_fault_in_a_later_call_is_found_there(tmp_path):
    report = verify(recorded(tmp_path), port(list, slope=1.001))
    failures = [t.name for t in report.failures if (t.step, t.stage) == (0, "output")]
    assert failures == ["output, call 1"]
    assert report.last_same.name == "fc, call 1"


@pytest.mark.parametrize(
    "returned", [lambda outputs: None, lambda outputs: outputs[0], lambda o: [*o, o[0]]]
)
def test_what_is_no_such_list_is_not_compared(tmp_path, returned):
    report = verify(recorded(tmp_path), port(returned))
    assert report, report
    [left] = report.of_stage("output")[0].not_compared
    assert "called 2 times: let loss_fn return (loss, outputs), a list" in left.reason


def test_calls_of_which_digests_were_kept_keep_their_numbers(tmp_path):
    path = recorded(tmp_path, digest_above=4 * 8 * SIZES[1])
    [first, second] = open_trace(path)[0].outputs
    assert [*first] == []
    assert [*second] == [""]
    report = verify(path, port(list))
    assert report, report
    assert {*names(report)} == {"output", "output, call 1"}
    assert not verify(path, port(list, slope=1.01))


def test_a_kink_in_a_later_call_is_named(tmp_path):
    torch.manual_seed(0)
    model = Net(named=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = [torch.randn(size, 3) for size in SIZES]
    batch[1][0] = torch.tensor([1.0, 0.0, 0.0])
    with torch.no_grad():
        model.fc.weight[0, 0] = 1.0
        model.fc.bias[0] = -1.0000001  # an element of the second call is at -1.2e-7
    with record(tmp_path, model, optimizer) as run, run.step(x=batch):
        for call, x in enumerate(batch):
            rounded = torch.zeros(len(x), 8)
            rounded[0, 0] = 2e-7 * call  # and by torch's rounding above 0
            F.relu(model(x) + rounded).mean().backward()
        optimizer.step()
    report = verify(tmp_path, port(list), free_run=False)
    assert report, report
    [(step, kink)] = report.kinks
    assert step == 0
    assert "(0, 0)" in kink
    assert not verify(tmp_path, port(list, slope=1.001), free_run=False)

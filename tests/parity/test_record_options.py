"""What is kept of a run can be chosen."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from jaxclip.parity import STAGES, open_trace, record
from tests.parity.loops import X, Y, recorded, setup, step
from torchref.my_linear import my_net


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
    assert first.warnings == second.warnings == ()
    for name in ("one", "two"):
        kinds = [event.kind for event in open_trace(tmp_path / name)[0].events]
        assert kinds.count("optimizer_step") == 1
        assert kinds.count("forward") == kinds.count("zero_grad") == 1

"""`jaxclip inspect` shows a recording, and refuses a damaged one."""

import json

import jax
import numpy as np
import optax
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from jaxclip import cli
from jaxclip.parity import open_trace, record, record_jax
from torchref.my_linear import my_net

X, Y = torch.ones(2, 4), torch.zeros(2, 1)


@pytest.fixture
def recording(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(my_net(), nn.RReLU())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.125)
    with record(tmp_path / "run.trace", model, optimizer) as run:
        for factor in (1.0, float("inf")):
            with run.step(x=X):
                optimizer.zero_grad()
                (F.mse_loss(model(X), Y) * factor).backward()
                if factor == 1:
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
    return tmp_path / "run.trace"


def test_a_recording_is_shown_step_by_step(recording, capsys):
    assert cli.main(["inspect", str(recording)]) == 0
    lines = capsys.readouterr().out.splitlines()
    facts = {line.split()[0]: line for line in lines}
    assert "Sequential, 6 modules, 6 parameters of float32" in facts["model"]
    assert "torch.optim.sgd.SGD" in facts["optimizer"]
    assert f"torch {torch.__version__}" in facts["versions"]
    first = open_trace(recording)[0]
    assert facts["0"].split() == [
        *("0", f"{first.loss[0].item():.6g}", f"{first.total_norm.item():.6g}"),
        *("0.125", "zero_grad", "forward", "backward", "clip_grad_norm"),
        "optimizer_step",
    ]
    assert facts["1"].split()[1:4] == ["inf", "None", "0.125"]
    assert lines[-3].startswith("2 steps, ")
    assert lines[-2] == "Note: random numbers that are not recorded, of '1'."
    assert lines[-1] == "Warning: step 1: The loss is inf. [loss_not_finite]"


def test_a_run_that_was_killed_is_said_to_be(recording, capsys):
    manifest = recording / "manifest.json"
    whole = manifest.read_bytes()
    model = my_net()
    torn = record(recording, model, torch.optim.SGD(model.parameters()), overwrite=True)
    with pytest.raises(KeyError), torn as run, run.step():
        raise KeyError
    assert manifest.read_bytes() != whole
    assert cli.main(["inspect", str(recording)]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == "0 steps, 0 bytes; the run did not come to its end"


def test_a_run_of_jax_is_shown_too(tmp_path, capsys):
    state = optax.inject_hyperparams(optax.sgd)(0.5).init({"w": np.ones(2, "f")})
    with record_jax(tmp_path / "run.trace") as run:
        run.add(params={"w": np.ones(2, "f")}, loss=1.5, opt_state_after=state)
    assert cli.main(["inspect", str(tmp_path / "run.trace")]) == 0
    facts = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert f"jax {jax.__version__}" in facts["versions"]
    assert facts["0"].split()[1:4] == ["1.5", "None", "0.5"]
    assert cli.main(["inspect", str(tmp_path / "run.trace"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["framework"] == "jax"


def test_programs_get_json(recording, capsys):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    assert cli.main(["inspect", str(recording), "--json"]) == 0
    said = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert said["finished"] is True
    assert [step["step"] for step in said["steps"]] == [0, 1]
    assert said["steps"][1]["loss"] == ["inf"]
    assert said["steps"][1]["total_norm"] is None
    assert said["bytes"] == sum(p.stat().st_size for p in recording.glob("step-*"))
    assert said["warnings"] == [
        {"code": "loss_not_finite", "message": "The loss is inf.", "step": 1}
    ]


@pytest.mark.parametrize("file", ["step-000001.safetensors", "steps.jsonl"])
def test_a_damaged_recording_is_an_error(file, recording, capsys):
    path = recording / file
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    assert cli.main(["inspect", str(recording)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("jaxclip inspect: error: ")
    assert file in captured.err
    assert "is damaged" in captured.err


def test_a_folder_that_is_no_recording_is_an_error(tmp_path, capsys):
    assert cli.main(["inspect", str(tmp_path)]) == 2
    assert "where there is no recording" in capsys.readouterr().err

"""A port is held against a recording stage by stage; what cannot be is said."""

import dataclasses
import json
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from jaxclip import cli, convert, optim
from jaxclip.parity import ParityError, Port, compare, open_trace, record, verify
from jaxclip.parity._trace._writer import TraceWriter
from jaxclip.parity._verify._report._results import STAGES
from tests.parity.recordings import port_of, recorded
from tests.parity.trainings import port, recording
from tests.trios import BY_NAME

pytestmark = pytest.mark.usefixtures("quick_compilation")

LR = 0.1


# The smallest of ports: a linear layer.


def linear_loss(model, batch):
    outputs = model(batch["x"])
    return jnp.mean((outputs - batch["y"]) ** 2), outputs


def linear_port(**changes):
    given = {
        "model": nnx.Linear(3, 2, rngs=nnx.Rngs(0)),
        "loss_fn": linear_loss,
        "optimizer": optim.sgd(LR),
    }
    return Port(**(given | changes))


def linear_run(path, *, steps=2, seed=0, **options):
    torch.manual_seed(seed)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    with record(path, model, optimizer, **options) as run:
        for _ in range(steps):
            x, y = torch.randn(4, 3), torch.randn(4, 2)
            with run.step(x=x, y=y):
                optimizer.zero_grad()
                torch.nn.functional.mse_loss(model(x), y).backward()
                optimizer.step()
    return path


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    return linear_run(tmp_path_factory.mktemp("linear") / "run.trace")


def rewritten(path, folder, change):
    """Write a recording anew, with other arrays: ``change(stage, name, array)``."""
    trace = open_trace(path)
    writer = TraceWriter(folder, trace.run)
    for index, step in enumerate(trace):
        stages = {
            stage: getattr(step, stage)
            for stage in ("batch", "params", "grads", "final_grads", "params_after")
        }
        stages |= {
            "activations": {str(n): a.array for n, a in enumerate(step.activations)},
            "outputs": {f"0/{name}": a for name, a in step.outputs[0].items()},
            "loss": {str(n): loss for n, loss in enumerate(step.loss)},
            "total_norm": {} if step.total_norm is None else {"": step.total_norm},
            "opt_state_after": {
                f"{name}/{key}": array
                for name, own in step.opt_state_after.items()
                for key, array in own.items()
            },
        }
        changed = {
            stage: {k: change(stage, k, np.array(a)) for k, a in arrays.items()}
            for stage, arrays in stages.items()
        }
        writer.add(trace._lines[index].record, changed)
    writer.finish()
    return folder


# Correct ports.


@pytest.mark.parametrize("seed", range(3))
def test_a_linear_port_is_the_same_on_every_seed(tmp_path, seed):
    path = linear_run(tmp_path / "run.trace", seed=seed, steps=4)
    verify(path, linear_port()).raise_if_different()


@pytest.mark.parametrize(
    ("name", "kind", "optimizer", "dtype"),
    [
        pytest.param("rnn-1", "linen", "adamw", torch.float32, marks=pytest.mark.long),
        pytest.param("my_net", "linen", "sgd", torch.float32, marks=pytest.mark.long),
        pytest.param("gru-2", "nnx", "sgd", torch.float32, marks=pytest.mark.long),
        pytest.param("gru-2", "linen", "adamw", torch.float64, marks=pytest.mark.long),
        pytest.param("lstm-2", "nnx", "adamw", torch.float32, marks=pytest.mark.long),
        pytest.param("gpt", "nnx", "adamw", torch.float32, marks=pytest.mark.long),
        pytest.param("gpt", "linen", "sgd", torch.float64, marks=pytest.mark.long),
        pytest.param("resnet", "nnx", "sgd", torch.float64, marks=pytest.mark.long),
        pytest.param("resnet", "linen", "adamw", torch.float32, marks=pytest.mark.long),
    ],
)
def test_a_models_port_is_the_same(tmp_path, name, kind, optimizer, dtype):
    trio = BY_NAME[name]
    path = recorded(tmp_path / "run.trace", trio, optimizer=optimizer, dtype=dtype)
    report = verify(path, port_of(trio, kind, optimizer))
    report.raise_if_different()
    compared = {stage.stage for stage in report.stages if stage.tensors}
    buffers = set() if name == "resnet" else {"buffers after"}
    assert compared == {*STAGES} - buffers
    assert len(report.free_run.steps) == 3


@pytest.mark.long
@pytest.mark.parametrize("name", ["my_net", "rnn-1", "gpt", "resnet"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_there_is_no_false_alarm_over_seeds_and_steps(tmp_path, name, dtype):
    trio = BY_NAME[name]
    own = port_of(trio)
    for seed in range(5):
        path = tmp_path / f"{seed}.trace"
        recorded(path, trio, dtype=dtype, steps=6, seed=seed)
        verify(path, own).raise_if_different()


def test_bare_parameters_lie_as_torchs_do(linear):
    def loss_fn(params, batch):
        outputs = batch["x"] @ params["weight"].T + params["bias"]
        return jnp.mean((outputs - batch["y"]) ** 2), outputs

    params = {"weight": jnp.zeros((2, 3)), "bias": jnp.zeros(2)}
    report = verify(linear, linear_port(model=params, loss_fn=loss_fn))
    report.raise_if_different()
    assert report.of_stage("gradients")[0].verdict == "same"


def test_bare_parameters_lie_as_a_mapping_says(linear):
    layer = nnx.Linear(3, 2, rngs=nnx.Rngs(0))

    def loss_fn(params, batch):
        outputs = batch["x"] @ params["kernel"] + params["bias"]
        return jnp.mean((outputs - batch["y"]) ** 2), outputs

    params = {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}
    own = linear_port(model=params, loss_fn=loss_fn, mapping=convert.mapping(layer))
    verify(linear, own).raise_if_different()


def test_bare_parameters_lie_as_axes_say(linear):
    def loss_fn(params, batch):
        outputs = batch["x"] @ params["w"] + params["b"]
        return jnp.mean((outputs - batch["y"]) ** 2), outputs

    params = {"w": jnp.zeros((3, 2)), "b": jnp.zeros(2)}
    given = {"loss_fn": loss_fn, "rename": {"weight": "w", "bias": "b"}}
    own = linear_port(model=params, axes={"w": (1, 0)}, **given)
    report = verify(linear, own)
    report.raise_if_different()
    with pytest.raises(convert.ConversionError, match=r"axes=\{'w': \(1, 0\)\}"):
        verify(linear, linear_port(model=params, **given))


def test_a_tree_of_parameters_has_no_modules(tmp_path):
    path = recorded(tmp_path / "run.trace", BY_NAME["my_net"], steps=1)
    (step,) = open_trace(path)
    params = {name: jnp.zeros(array.shape) for name, array in step.params.items()}

    def loss_fn(params, batch):
        return sum(jnp.sum(array) for array in params.values())

    report = verify(path, port_of(BY_NAME["my_net"], model=params, loss_fn=loss_fn))
    left = report.of_stage("activations")[0].not_compared
    assert {why.reason for why in left} == {
        "the port is a tree of parameters, which has no modules"
    }


def test_the_whole_chain_may_be_the_optimizer(tmp_path):
    path = recording(tmp_path / "run.trace", "tokens", "sgd")
    apart = port("tokens", "sgd")
    chained = dataclasses.replace(
        apart, clip=None, optimizer=optax.chain(apart.clip, apart.optimizer)
    )
    report = verify(path, chained)
    report.raise_if_different()
    [clipped, _] = report.of_stage("clipped gradients")
    assert clipped.verdict == "not compared"
    assert "give it as clip=" in str(report)
    assert report.of_stage("total norm")[0].verdict == "same"


# What a report says.


def test_the_first_divergence_comes_first(linear):
    report = verify(linear, linear_port(optimizer=optim.sgd(2 * LR)))
    assert not report
    assert report.verdict == "different"
    lines = str(report).splitlines()
    assert lines[0].startswith("DIFFERENT")
    assert lines[1] == "First divergence: step 0, update: weight"
    assert "the port has 2 times what torch has" in lines[2]
    with pytest.raises(ParityError, match="First divergence: step 0, update: weight"):
        report.raise_if_different()
    assert report.last_same is None  # an update is not made of activations
    first = report.first
    assert first.mismatched == first.size == 6
    np.testing.assert_allclose(first.relative_l2, 1, rtol=1e-4)
    np.testing.assert_allclose(first.cosine, 1, rtol=1e-6)
    assert first.comparison.max_ulps > 1000
    assert not report.free_run.passed
    assert verify(linear, linear_port(), rtol=1.0, atol=first.tolerance).passed


def test_the_tolerance_that_would_have_passed_does(linear):
    own = linear_port(optimizer=optim.sgd(1.01 * LR))
    [step, _] = open_trace(linear)
    [update, _] = verify(linear, own, free_run=False).of_stage("update")
    for tensor in update.tensors:
        moved = step.params_after[tensor.name] - step.params[tensor.name]
        other = 1.01 * moved.astype(np.float64)
        atol = tensor.tolerance * np.abs(moved).max()
        np.testing.assert_allclose(
            other, moved, rtol=1.001 * tensor.tolerance, atol=1.001 * atol
        )
        with pytest.raises(AssertionError):
            np.testing.assert_allclose(
                other, moved, rtol=0.98 * tensor.tolerance, atol=0.98 * atol
            )


def test_it_is_json(linear, tmp_path):
    report = verify(linear, linear_port(optimizer=optim.sgd(2 * LR)))
    report.save_json(tmp_path / "report.json")
    read = json.loads((tmp_path / "report.json").read_text())
    assert read == json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert (read["format"], read["version"]) == ("jaxclip.parity.report", 1)
    assert read["verdict"] == "different"
    assert [read["first"][key] for key in ("step", "stage", "name", "module")] == [
        *(0, "update", "weight", "")
    ]
    assert [stage["stage"] for stage in read["stages"]] == [*STAGES] * 2
    assert read["steps"] == [0, 1]
    assert not read["free_run"]["passed"]


def test_it_is_a_table_on_a_terminal(linear, capsys):
    verify(linear, linear_port(optimizer=optim.sgd(2 * LR))).print()
    printed = capsys.readouterr().out
    assert printed.startswith("DIFFERENT")
    assert "What differs" in printed
    assert all(stage in printed for stage in STAGES)


def test_a_stage_that_is_missing_is_said(tmp_path):
    path = linear_run(tmp_path / "run.trace", keep=["batch", "params", "loss"])
    report = verify(path, linear_port())
    assert report.passed
    assert {stage.stage for stage in report.stages if stage.tensors} == {
        *("weights", "loss")
    }
    assert {stage for stage, _ in report.not_compared} == {*STAGES} - {
        *("weights", "loss")
    }
    assert "gradients: not recorded" in str(report)
    assert report.free_run.steps == ()


def test_a_module_that_is_not_paired_is_said(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU())
    own = nnx.Sequential(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), jax.nn.relu)
    report = compare(
        model,
        linear_port(model=own, loss_fn=lambda m, b: jnp.mean(m(b["x"]) ** 2)),
        {"x": torch.randn(5, 3)},
        torch_loss=lambda m, b: (m(b["x"]) ** 2).mean(),
    )
    report.raise_if_different()
    text = str(report)
    assert "activations: 1 (torch.nn.modules.activation.ReLU): not paired" in text
    assert "output: loss_fn returns the loss alone" in text
    assert "update: torch's optimizer took no step" in text


class Shifting(nnx.Module):
    """A layer after a shift that torch trains, and that is no parameter here."""

    def __init__(self, rngs):
        """Make both."""
        self.shift = nnx.Variable(jnp.zeros(3))
        self.fc = nnx.Linear(3, 1, rngs=rngs)

    def __call__(self, x):
        return self.fc(x + self.shift[...])


def test_a_parameter_that_is_none_of_the_ports_hides_nothing_else(tmp_path):
    class Shifted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = torch.nn.Parameter(torch.zeros(3))
            self.fc = torch.nn.Linear(3, 1)

        def forward(self, x):
            return self.fc(x + self.shift)

    torch.manual_seed(0)
    model = Shifted()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    with record(tmp_path / "run.trace", model, optimizer) as run:
        for x, y in zip(torch.randn(2, 4, 3), torch.randn(2, 4, 1), strict=True):
            with run.step(x=x, y=y):
                optimizer.zero_grad()
                torch.nn.functional.mse_loss(model(x), y).backward()
                optimizer.step()

    def loss_fn(model, batch):
        return jnp.mean((model(batch["x"]) - batch["y"]) ** 2)

    model = Shifting(nnx.Rngs(0))
    report = verify(tmp_path / "run.trace", Port(model, loss_fn, optim.adam(0.1)))
    assert (report.first.stage, report.first.name) == ("gradients", "shift")
    assert "the port holds it, but as no parameter" in str(report)
    in_steps = {tensor.name.partition("/")[0] for tensor in report.failures}
    assert in_steps == {"shift"}
    names = [tensor.name for tensor in report.of_stage("update")[1].tensors]
    assert names == ["shift", "fc.weight", "fc.bias"]


@pytest.mark.parametrize(("key", "verdict"), [("y", "same"), ("logits", "different")])
def test_a_port_may_return_a_part_of_the_outputs(key, verdict):
    class Net(torch.nn.Linear):
        def forward(self, x):
            return {"y": super().forward(x), "x": x}

    report = compare(
        Net(3, 2),
        linear_port(
            model={"weight": jnp.zeros((2, 3)), "bias": jnp.zeros(2)},
            loss_fn=lambda p, b: (
                jnp.mean((y := b["x"] @ p["weight"].T + p["bias"]) ** 2),
                {key: y},
            ),
        ),
        {"x": torch.ones(4, 3)},
        torch_loss=lambda m, b: (m(b["x"])["y"] ** 2).mean(),
    )
    [output] = report.of_stage("output")
    assert output.verdict == verdict
    if verdict == "same":
        assert "output: x: loss_fn returns no such output" in str(report)
    else:
        assert "structure differs: an array in torch, nothing in port" in str(report)


def test_comparing_nothing_is_an_error(tmp_path):
    path = linear_run(tmp_path / "run.trace", keep=["batch", "params"])
    with pytest.raises(ParityError, match="nothing was compared: of"):
        verify(path, linear_port())


# What it is not fooled by.


@pytest.mark.parametrize(
    ("stage", "found"),
    [
        ("outputs", "output"),
        ("loss", "loss"),
        ("grads", "gradients"),
        ("params_after", "update"),
    ],
)
def test_one_element_of_the_recording_is_seen(linear, tmp_path, stage, found):
    def change(which, name, array):
        if which == stage and name in ("", "0", "0/", "weight"):
            array.flat[-1] *= 1 + 1e-4
        return array

    path = rewritten(linear, tmp_path / "changed.trace", change)
    report = verify(path, linear_port(), free_run=False)
    assert report.first.stage == found
    assert report.first.mismatched == 1


def test_what_is_not_finite_is_equal_only_when_asked(linear, tmp_path):
    def change(which, name, array):
        if which == "batch" and name == "x":
            array[0, 0] = np.nan
        if which in ("loss", "grads", "final_grads", "params_after"):
            array[...] = np.nan
        if which == "outputs":
            array[0] = np.nan
        return array

    path = rewritten(linear, tmp_path / "nan.trace", change)
    report = verify(path, linear_port(), steps=1, free_run=False)
    assert report.first.stage == "output"
    assert "pass equal_nan=True" in report.first.detail
    same = verify(path, linear_port(), steps=1, free_run=False, equal_nan=True)
    assert same.of_stage("loss")[0].verdict == "same"


def test_an_inaccurate_norm_of_torchs_is_not_blamed_on_the_port(tmp_path):
    path = recording(tmp_path / "run.trace", "tokens", "sgd", steps=1)

    def change(which, name, array):
        if which == "total_norm":
            array *= np.float32(1 + 4e-4)
        if which == "final_grads":
            array /= np.float32(1 + 4e-4)
        return array

    trace = rewritten(path, tmp_path / "changed.trace", change)
    report = verify(trace, port("tokens", "sgd"), free_run=False)
    assert "torch is the inaccurate side: its norm is 0.0004" in str(report)
    assert report.of_stage("total norm")[0].verdict == "same"
    assert report.of_stage("clipped gradients")[0].verdict == "same"

    def another(which, name, array):
        return array * np.float32(1.1) if which == "total_norm" else array

    trace = rewritten(path, tmp_path / "another.trace", another)
    report = verify(trace, port("tokens", "sgd"), free_run=False)
    assert report.first.stage == "total norm"


def test_fixed_tolerances_are_for_who_wants_them(linear):
    own = linear_port(optimizer=optim.sgd(1.001 * LR))
    assert not verify(linear, own, rtol=1e-4, atol=0.0, free_run=False)
    loose = verify(linear, own, rtol=1e-2, atol=1e-4, free_run=False)
    assert loose.passed, str(loose)
    assert loose.rule == "rtol=0.01, atol=0.0001"


# Errors.


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rtol": 1e-3}, ValueError, "rtol=0.001, atol=None: give both or neither"),
        ({"rtol": -1.0, "atol": 0.0}, ValueError, "rtol=-1.0 is no tolerance"),
        ({"factor": 0.0}, ValueError, "factor=0.0 must be more than 0"),
        ({"steps": 0}, ValueError, "compare 1 step at least"),
        ({"steps": [7]}, ValueError, r"verify\(steps=\[7\]\): .* has the steps 0, 1"),
        ({"draws": -1}, ValueError, "draws=-1"),
    ],
)
def test_an_option_out_of_range_is_refused(linear, options, error, message):
    with pytest.raises(error, match=message):
        verify(linear, linear_port(), **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_fn": 3}, r"Port\(loss_fn=3\): expected a function"),
        ({"optimizer": "sgd"}, r"Port\(optimizer=...\): expected an Optax"),
        ({"clip": 1.0}, r"Port\(clip=...\): expected an Optax transformation, got fl"),
    ],
)
def test_a_port_of_something_else_is_refused(changes, message):
    with pytest.raises(TypeError, match=message):
        linear_port(**changes)


def test_a_model_of_another_kind_is_refused(linear):
    with pytest.raises(TypeError, match="is a Linear; it must be an NNX module"):
        verify(linear, linear_port(model=torch.nn.Linear(3, 2)))


def test_weights_that_do_not_fit_are_an_error(linear):
    own = linear_port(model=nnx.Linear(3, 2, use_bias=False, rngs=nnx.Rngs(0)))
    with pytest.raises(convert.ConversionError, match=r"'bias' .* is not used"):
        verify(linear, own)


def test_a_loss_that_is_none_is_refused(linear):
    own = linear_port(loss_fn=lambda model, batch: model(batch["x"]))
    with pytest.raises(TypeError, match="expected the loss, a real scalar"):
        verify(linear, own)


def test_a_loss_that_is_cast_is_compared_as_any(linear):
    def loss_fn(model, batch):
        loss, outputs = linear_loss(model, batch)
        return loss.astype("float32"), outputs

    verify(linear, linear_port(loss_fn=loss_fn)).raise_if_different()

    def wrong(model, batch):
        loss, outputs = loss_fn(model, batch)
        return (1 + 1e-5) * loss, outputs

    assert verify(linear, linear_port(loss_fn=wrong)).first.stage == "loss"


# With both at hand, on the command line, and in pytest.


def test_one_step_with_both_at_hand_leaves_torch_as_it_was():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = compare(
        model,
        linear_port(),
        {"x": np.ones((4, 3), "f"), "y": torch.randn(4, 2)},
        torch_loss=lambda m, b: ((m(b["x"]) - b["y"]) ** 2).mean(),
        torch_optimizer=optimizer,
    )
    report.raise_if_different()
    assert report.of_stage("update")[0].verdict == "same"
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert model.weight.grad is None


def make_right():
    return linear_port()


WRONG = linear_port(optimizer=optim.sgd(2 * LR))


@pytest.mark.parametrize(
    ("name", "status", "said"),
    [("make_right", 0, "SAME"), ("WRONG", 1, "First divergence: step 0, update")],
)
def test_the_command_ends_with_the_verdict(
    linear, tmp_path, capsys, name, status, said
):
    json_file = tmp_path / "report.json"
    arguments = ["verify", str(linear), f"{__name__}:{name}", "--json", str(json_file)]
    assert cli.main([*arguments, "--steps", "1"]) == status
    assert said in capsys.readouterr().out
    assert json.loads(json_file.read_text())["verdict"] == ["same", "different"][status]


@pytest.mark.parametrize(
    ("trace", "name", "said"),
    [
        ("no.trace", "make_right", "there is no recording"),
        (None, "LR", "is a float; it must be a jaxclip.parity.Port"),
        (None, "missing", "has no 'missing'"),
    ],
)
def test_the_command_says_what_it_cannot_compare(linear, capsys, trace, name, said):
    arguments = ["verify", trace or str(linear), f"{__name__}:{name}"]
    assert cli.main(arguments) == 2
    assert said in capsys.readouterr().err


def test_torch_is_not_needed(linear):
    code = f"""
        import sys
        sys.modules["torch"] = None
        import jax.numpy as jnp
        from flax import nnx
        from jaxclip import optim
        from jaxclip.parity import Port, verify

        def loss_fn(model, batch):
            return jnp.mean((model(batch["x"]) - batch["y"]) ** 2)

        model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        print(verify({str(linear)!r}, Port(model, loss_fn, optim.sgd({LR}))).verdict)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ("same\n", "")


def test_what_was_recorded_as_a_digest_is_said(tmp_path):
    path = linear_run(tmp_path / "run.trace", steps=1, digest_above=8)
    report = verify(path, linear_port())
    report.raise_if_different()
    [gradients] = report.of_stage("gradients")
    by_digest = {tensor.name: tensor.by_digest for tensor in gradients.tensors}
    assert by_digest == {"weight": True, "bias": False}
    assert "same weight: by its digest, within noise" in str(gradients.tensors[0])


def test_the_free_run_finds_what_a_single_step_cannot(linear):
    # From torch's state every step is right, but the port's own count is wrong.
    def update(updates, state, params=None):
        updates, state = right.update(updates, state, params)
        return updates, state._replace(count=state.count + 5)

    right = optim.sgd(lambda count: jnp.where(count > 1, 0.0, LR))
    forgetful = optax.GradientTransformation(right.init, update)
    report = verify(linear, linear_port(optimizer=forgetful))
    assert report.first is None
    assert report.free_run.steps[0].passed
    assert not report.free_run.passed
    assert not report
    assert "First divergence: the free run" in str(report)
    assert report.free_run.growth > 10

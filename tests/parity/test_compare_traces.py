"""Two recordings are held against each other, and what cannot be is said."""

import json

import jax
import numpy as np
import pytest
import torch
from flax import nnx

from jaxclip import cli, optim
from jaxclip.parity import ParityError, compare_traces, record
from tests.parity.jax_runs import LR, RENAME, Net, Renamed, jax_run, port

WIDTH = 96


class TorchNet(torch.nn.Module):
    """Layers, a norm with buffers, and a dropout."""

    def __init__(self, drop=0.0, width=WIDTH):
        """Make the layers."""
        super().__init__()
        self.fc = torch.nn.Linear(width, width)
        self.bn = torch.nn.BatchNorm1d(width)
        self.drop = torch.nn.Dropout(drop)
        self.head = torch.nn.Linear(width, 2)

    def forward(self, x):
        return self.head(self.drop(torch.tanh(self.bn(self.fc(x)))))


def torch_run(
    path,
    *,
    dtype=torch.float32,
    steps=3,
    lr=0.01,
    eps=1e-8,
    max_norm=0.5,
    change=lambda number, x: x,
    make=TorchNet,
    seed=0,
    width=WIDTH,
    **options,
):
    """Record a run whose weights and batches are the same in every dtype."""
    torch.manual_seed(seed)
    model = make(width=width).to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, eps=eps)
    rng = np.random.default_rng(seed)
    with record(path, model, optimizer, **options) as run:
        for number in range(steps):
            x, y = rng.normal(size=(width, width)), rng.normal(size=(width, 2))
            x, y = (torch.from_numpy(a.astype("f")).to(dtype) for a in (x, y))
            x = change(number, x)
            with run.step(x=x, y=y):
                optimizer.zero_grad()
                torch.nn.functional.mse_loss(model(x), y).backward()
                if max_norm is not None:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
                optimizer.step()
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return torch_run(tmp_path_factory.mktemp("plain") / "run.trace")


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    path = tmp_path_factory.mktemp("exact") / "run.trace"
    return torch_run(path, dtype=torch.float64)


@pytest.fixture(scope="module")
def jax_traces(tmp_path_factory):
    """The net of JAX, and its run in float64."""
    folder = tmp_path_factory.mktemp("jax")
    path = jax_run(folder / "run.trace", port())
    with jax.enable_x64(True):
        model = Net(rngs=nnx.Rngs(0))
        narrow = nnx.state(port().model)
        nnx.update(model, jax.tree.map(lambda x: x.astype("float64"), narrow))
        jax_run(folder / "exact.trace", port(model=model), dtype=np.float64)
    return path, folder / "exact.trace"


# The same.


def test_a_run_is_the_same_as_its_repetition_to_the_bit(plain, tmp_path):
    report = compare_traces(plain, torch_run(tmp_path / "again.trace"))
    report.raise_if_different()
    assert report.rule == "nothing: equal to the bit"
    compared = {stage.stage for stage in report.stages if stage.tensors}
    assert compared == {*report.stage_names}
    assert report.stage_names[0] == "batch"
    weights = [tensor.name for tensor in report.of_stage("weights")[1].tensors]
    assert {"fc.weight", "bn.running_mean"} <= {*weights}
    assert report.free_run is None
    assert "nan" not in str(report)


def test_another_number_of_threads_is_the_same_by_the_noise(plain, exact, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(1 if before > 1 else 2)
    try:
        other = torch_run(tmp_path / "other.trace")
    finally:
        torch.set_num_threads(before)
    report = compare_traces(plain, other, exact=exact)
    report.raise_if_different()
    assert any("threads: " in note for note in report.notes)
    tensors = [t for stage in report.of_stage("gradients") for t in stage.tensors]
    assert all(tensor.torch_error > 0 for tensor in tensors)
    again = compare_traces(plain, other)
    if not again:
        assert "Two recordings do not tell rounding from a fault" in str(again)


@pytest.mark.long
def test_there_is_no_false_alarm_over_seeds(tmp_path):
    # Rounded otherwise: each layer is computed in float64, and rounded.
    class Rounded(torch.nn.Linear):
        def forward(self, x):
            weight, bias = self.weight.double(), self.bias.double()
            return torch.nn.functional.linear(x.double(), weight, bias).to(x.dtype)

    class Other(TorchNet):
        def __init__(self, **options):
            super().__init__(**options)
            self.fc.__class__ = self.head.__class__ = Rounded

    for seed in range(20):
        given = {"seed": seed, "width": 16, "steps": 10}
        ours = torch_run(tmp_path / f"{seed}.trace", **given)
        other = torch_run(tmp_path / f"{seed}.other", make=Other, **given)
        wide = torch_run(tmp_path / f"{seed}.wide", dtype=torch.float64, **given)
        assert not compare_traces(ours, other)
        compare_traces(ours, other, exact=wide).raise_if_different()
        compare_traces(other, ours, exact=wide).raise_if_different()


def test_modules_of_jax_may_have_moved(jax_traces, tmp_path):
    path, wide = jax_traces
    moved = port(model=Renamed(rngs=nnx.Rngs(0)))
    other = jax_run(tmp_path / "moved.trace", moved)
    report = compare_traces(path, other, rename=RENAME)
    report.raise_if_different()
    assert not report.of_stage("activations")[0].not_compared
    assert report.of_stage("optimizer state")[0].tensors
    compare_traces(path, other, exact=wide, rename=RENAME).raise_if_different()
    with_its_names = compare_traces(
        other, path, exact=wide, rename={new: old for old, new in RENAME.items()}
    )
    with_its_names.raise_if_different()
    report = compare_traces(path, other)
    assert report.first.stage == "weights"
    assert "an array in reference, nothing in candidate" in report.first.detail
    with pytest.raises(ValueError, match=r"rename has the prefix 'nothing'"):
        compare_traces(path, other, rename={"nothing": "body"})


# Different.


@pytest.mark.parametrize(
    ("changes", "stage", "said"),
    [
        ({"lr": 0.02}, "update", "the candidate has 2"),
        ({"eps": 1e-6}, "update", ""),
        ({"max_norm": 0.4}, "clipped gradients", "the candidate has 0.8"),
        ({"max_norm": None}, "total norm", ""),
    ],
)
def test_a_change_is_found_where_it_is(plain, exact, tmp_path, changes, stage, said):
    other = torch_run(tmp_path / "other.trace", steps=2, **changes)
    for options in ({}, {"exact": exact}, {"rtol": 1e-5, "atol": 1e-7}):
        report = compare_traces(plain, other, **options)
        assert (report.first.step, report.first.stage) == (0, stage)
        assert said in report.first.hint
    if "lr" in changes:
        assert "step 0, group 0: lr is 0.01 in the reference and 0.02 in" in str(report)
    if changes == {"max_norm": None}:
        assert "did zero_grad forward backward clip_grad_norm" in str(report)


def test_a_change_is_found_in_a_later_step(plain, exact, tmp_path):
    # Rounding alone has moved the two apart by then.
    class Late(TorchNet):
        calls = 0

        def forward(self, x):
            Late.calls += 1
            return super().forward(x) * (1.001 if Late.calls == 3 else 1 + 1e-7)

    other = torch_run(tmp_path / "other.trace", make=Late)
    report = compare_traces(plain, other, exact=exact)
    assert (report.first.step, report.first.stage) == (2, "output")


@pytest.mark.parametrize(
    ("changes", "stage"),
    [
        ({"model": Net(rngs=nnx.Rngs(0), fault="swapped kernel")}, "activations"),
        pytest.param(
            {"optimizer": optim.adamw(2 * LR)}, "update", marks=pytest.mark.long
        ),
    ],
)
def test_a_change_of_jax_is_found_where_it_is(jax_traces, tmp_path, changes, stage):
    path, wide = jax_traces
    other = jax_run(tmp_path / "other.trace", port(**changes))
    report = compare_traces(path, other, exact=wide)
    assert (report.first.step, report.first.stage) == (0, stage)
    assert "torch" not in str(report)
    assert "port" not in str(report)


def test_another_batch_is_said_to_be_that(plain, tmp_path):
    other = torch_run(
        tmp_path / "other.trace", change=lambda n, x: x.flip(0) if n == 1 else x
    )
    report = compare_traces(plain, other)
    assert (report.first.step, report.first.stage, report.first.name) == (
        1,
        "batch",
        "x",
    )
    assert report.of_stage("loss")[0].verdict == "same"
    assert report.of_stage("loss")[1].verdict == "not compared"
    assert "the two were given other batches" in str(report)


def test_another_mask_of_dropout_is_said_to_be_that(tmp_path):
    def make(width):
        return TorchNet(0.5, width)

    ours = torch_run(tmp_path / "ours.trace", make=make)
    same = torch_run(tmp_path / "same.trace", make=make)
    compare_traces(ours, same).raise_if_different()

    def drawn(number, x):
        torch.rand(3)
        return x

    other = torch_run(tmp_path / "other.trace", make=make, change=drawn)
    report = compare_traces(ours, other)
    assert (report.first.stage, report.first.name) == ("batch", "mask of drop")


def test_a_bad_reference_is_not_taken_for_noise(plain, exact, tmp_path):
    wrong = torch_run(tmp_path / "wrong.trace", lr=0.0101)
    report = compare_traces(wrong, plain, exact=exact)
    assert report.first.stage == "update"
    assert "the reference loses digits that the candidate keeps" in report.first.detail


# What there is to compare.


def test_a_step_that_is_nan_is_equal_only_when_asked(tmp_path):
    def change(number, x):
        return x * np.nan if number == 1 else x

    paths = [torch_run(tmp_path / f"{i}.trace", change=change) for i in range(2)]
    report = compare_traces(*paths)
    assert report.of_stage("batch")[1].verdict == "same"
    assert (report.first.step, report.first.stage) == (1, "activations")
    assert "pass equal_nan=True" in report.first.detail
    compare_traces(*paths, steps=1).raise_if_different()
    compare_traces(*paths, equal_nan=True).raise_if_different()


def test_steps_that_one_alone_has_are_said(plain, tmp_path):
    other = torch_run(tmp_path / "other.trace", steps=5, every=2)
    report = compare_traces(plain, other)
    report.raise_if_different()
    assert report.steps == (0, 2)
    assert "steps that the reference alone has: 1" in report.notes
    assert "steps that the candidate alone has: 4" in report.notes
    report = compare_traces(plain, other, steps=[2])
    names = [tensor.name for tensor in report.of_stage("weights")[0].tensors]
    assert "fc.weight/exp_avg" in names


def test_stages_that_one_alone_has_are_said(plain, tmp_path):
    other = torch_run(
        tmp_path / "other.trace",
        keep=["params", "loss", "activations"],
        activations="h*",
    )
    report = compare_traces(plain, other)
    report.raise_if_different()
    text = str(report)
    assert "gradients: not recorded in the candidate" in text
    assert "batch: not recorded in the candidate" in text
    assert "activations: fc, bn, drop: the candidate has no such activation" in text
    assert [t.name for t in report.of_stage("activations")[0].tensors] == ["head"]
    nothing = torch_run(tmp_path / "nothing.trace", keep=["batch", "params"])
    with pytest.raises(ParityError, match="could be held against the candidate"):
        compare_traces(plain, nothing)


@pytest.mark.parametrize("both", [True, False])
def test_digests_are_compared(plain, exact, tmp_path, both):
    ours = torch_run(tmp_path / "ours.trace", digest_above=1000) if both else plain
    same = torch_run(tmp_path / "same.trace", digest_above=1000)
    report = compare_traces(ours, same)
    report.raise_if_different()
    by_name = {t.name: t for t in report.of_stage("gradients")[0].tensors}
    assert "by digests" in by_name["fc.weight"].detail
    assert by_name["fc.bias"].detail == "equal to the bit"
    compare_traces(ours, same, exact=exact).raise_if_different()
    wrong = torch_run(tmp_path / "wrong.trace", digest_above=1000, max_norm=0.50001)
    report = compare_traces(ours, wrong, steps=1)
    [clipped] = report.of_stage("clipped gradients")
    assert "fc.weight" in [tensor.name for tensor in clipped.failures]
    report = compare_traces(ours, wrong, exact=exact, steps=1)
    [clipped] = report.of_stage("clipped gradients")
    assert "fc.weight" in [tensor.name for tensor in clipped.failures]
    loose = compare_traces(ours, wrong, rtol=1e-4, atol=1e-6, steps=1)
    assert loose.of_stage("clipped gradients")[0].verdict == "same"


def test_a_run_that_was_killed_is_said_to_be(plain, tmp_path):
    path = tmp_path / "killed.trace"

    def change(number, x):
        if number == 2:
            raise KeyboardInterrupt
        return x

    with pytest.raises(KeyboardInterrupt):
        torch_run(path, change=change)
    report = compare_traces(plain, path)
    report.raise_if_different()
    assert report.steps == (0, 1)
    assert "the candidate's run did not come to its end" in report.notes


# What cannot be compared.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rtol": 1e-3}, "give both or neither"),
        ({"steps": 0}, "compare 1 step at least"),
        ({"steps": [7]}, r"compare_traces\(steps=\[7\]\): both have the steps 0, 1, 2"),
        ({"factor": 0.0}, "factor=0.0 must be more than 0"),
    ],
)
def test_bad_options_are_refused(plain, options, message):
    with pytest.raises(ValueError, match=message):
        compare_traces(plain, plain, **options)


def test_an_exact_run_of_something_else_is_refused(plain, exact, tmp_path):
    with pytest.raises(ValueError, match="exact is a run in float32"):
        compare_traces(plain, plain, exact=plain)
    with pytest.raises(ValueError, match="reference is in float64"):
        compare_traces(exact, exact, exact=exact)
    with pytest.raises(ValueError, match="give one of them"):
        compare_traces(plain, plain, exact=exact, rtol=0.0, atol=0.0)
    other = torch_run(tmp_path / "seed.trace", dtype=torch.float64, seed=1)
    with pytest.raises(ValueError, match=r"in step 0 its batch 'x' is another"):
        compare_traces(plain, plain, exact=other)

    def make(width):
        model = TorchNet(0.0, width)
        with torch.no_grad():
            model.fc.weight[0, 0] += 1e-3
        return model

    other = torch_run(tmp_path / "weights.trace", dtype=torch.float64, make=make)
    with pytest.raises(ValueError, match=r"its params 'fc.weight' is another"):
        compare_traces(plain, plain, exact=other)
    short = torch_run(tmp_path / "short.trace", dtype=torch.float64, steps=1)
    with pytest.raises(ValueError, match="exact has no step 1, 2"):
        compare_traces(plain, plain, exact=short)


def test_runs_of_two_frameworks_and_without_common_steps_are_refused(
    plain, jax_traces, tmp_path
):
    with pytest.raises(
        ValueError, match=r"verify\(\) holds a port against a recording"
    ):
        compare_traces(plain, jax_traces[0])
    path = tmp_path / "empty.trace"
    with record(path, model := TorchNet(), torch.optim.SGD(model.parameters())):
        pass
    with pytest.raises(ValueError, match=r"no step to compare: .* 0, 1, 2, .* none"):
        compare_traces(plain, path)


# On the command line.


def test_the_command_ends_with_the_verdict(plain, exact, tmp_path, capsys):
    other = str(torch_run(tmp_path / "other.trace", lr=0.02))
    out = tmp_path / "report.json"
    assert cli.main(["compare", str(plain), str(plain)]) == 0
    assert "SAME" in capsys.readouterr().out
    arguments = [
        "compare",
        str(plain),
        other,
        "--exact",
        str(exact),
        *("--html", str(tmp_path / "report.html")),
        "--json",
        str(out),
    ]
    assert cli.main(arguments) == 1
    assert "First divergence: step 0, update" in capsys.readouterr().out
    read = json.loads(out.read_text())
    assert read["verdict"] == "different"
    assert read["stages"][0]["stage"] == "batch"
    text = (tmp_path / "report.html").read_text()
    assert "The candidate and the reference part at step 0, in " in text
    assert "it is the first that counts" in text
    assert "Candidate from float64" in text
    assert ">batch<" in text
    assert " port" not in text.split("<script", 1)[0].split("</style>", 1)[-1]
    assert cli.main(["compare", str(plain), other, "--rtol", "9", "--atol", "9"]) == 0
    assert cli.main(["compare", str(plain), "no.trace"]) == 2
    assert "there is no recording" in capsys.readouterr().err
    assert cli.main(["compare", str(plain), str(plain), "--rename", "x"]) == 2
    assert "is not of the form OLD=NEW" in capsys.readouterr().err


@pytest.mark.long
def test_the_command_renames(jax_traces, tmp_path):
    other = jax_run(tmp_path / "moved.trace", port(model=Renamed(rngs=nnx.Rngs(0))))
    pairs = [f"{old}={new}" for old, new in RENAME.items()]
    arguments = ["compare", str(jax_traces[0]), str(other)]
    assert cli.main([*arguments, "--rename", pairs[0], "--rename", pairs[1]]) == 0

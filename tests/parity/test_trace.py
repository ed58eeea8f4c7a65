"""A recording reads as it was written, and a damaged one is refused by name."""

import dataclasses
import hashlib
import json
import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxclip.parity import (
    Event,
    LoopWarning,
    ModuleRecord,
    Run,
    Trace,
    TraceError,
    digest,
    open_trace,
)
from jaxclip.parity._trace._json import LARGEST, seal, structured
from jaxclip.parity._trace._records import (
    Call,
    Digested,
    Manifest,
    StepLine,
    StepRecord,
)
from jaxclip.parity._trace._step import SMALL
from jaxclip.parity._trace._writer import TraceWriter

RUN = Run(
    framework="torch",
    versions={"torch": "2.13.0"},
    settings={},
    dtypes=("float32",),
    modules=(
        ModuleRecord("", "Net", (), ()),
        ModuleRecord("fc", "torch.nn.Linear", ("fc.weight",), (), ("again",)),
    ),
    tied={"fc.weight": ("again.weight",)},
    frozen=(),
    optimizer="torch.optim.SGD",
    groups=(("fc.weight",),),
    schedulers=(),
    keep=("params",),
    every=1,
)
WARNING = LoopWarning("loss_not_finite", "The loss is nan.", 1)


def record(number, **changes):
    plain = StepRecord(
        number=number,
        events=(Event("clip_grad_norm", {"max_norm": float("inf"), "params": ["a"]}),),
        hyperparameters=({"lr": 0.1, "nesterov": False, "foreach": None},),
        activations=(Call("fc", "torch.nn.Linear", 0, ""),),
        masks=(),
        draws=(),
        unexplained_draws=(),
        warnings=(WARNING,) if number == 1 else (),
    )
    return dataclasses.replace(plain, **changes)


def arrays(number):
    weight = np.full((2, 3), number, "float32")
    grads = {"fc.weight": -weight}
    return {
        "batch": {"x": np.arange(3), "y.0": np.float64(0.5).reshape(())},
        "params": {"fc.weight": weight.astype(jnp.bfloat16)},
        "opt_state": {
            "fc.weight/step": np.asarray(number),
            "fc.weight/momentum_buffer": weight,
        },
        "activations": {"0": weight[:, :1]},
        "outputs": {"0/": weight.T, "1/logits.0": np.zeros((0, 2))},
        "loss": {"0": np.asarray(1.5, "float16"), "1": np.asarray(2.5, "float16")},
        "grads": grads,
        "final_grads": dict(grads),
        "total_norm": {"": np.asarray(3.0, "float32")},
    }


def write(folder, steps=(0, 1, 2), *, finish=True):
    writer = TraceWriter(folder, RUN)
    for number in steps:
        writer.add(record(number), arrays(number))
    if finish:
        late = LoopWarning("never_a_gradient", "Nothing reaches 'b'.", None)
        writer.finish([late])
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "run.trace")


def test_a_recording_reads_as_it_was_written(folder):
    trace = open_trace(folder)
    assert trace.run == RUN
    assert trace.finished
    assert (len(trace), trace.numbers) == (3, (0, 1, 2))
    assert [warning.code for warning in trace.warnings] == [
        "loss_not_finite",
        "never_a_gradient",
    ]
    assert str(trace.warnings[0]) == "step 1: The loss is nan. [loss_not_finite]"
    assert str(trace.warnings[1]).startswith("whole run: Nothing reaches")
    step, wrote = trace[2], arrays(2)
    assert step.number == 2
    for stage in ("batch", "params", "grads", "final_grads"):
        read = getattr(step, stage)
        assert [*read] == [*wrote[stage]]
        for name, array in wrote[stage].items():
            assert read[name].dtype == array.dtype
            np.testing.assert_array_equal(read[name], array)
    assert step.params["fc.weight"].dtype == jnp.bfloat16
    assert step.opt_state.keys() == {"fc.weight"}
    assert [*step.opt_state["fc.weight"]] == ["step", "momentum_buffer"]
    assert step.opt_state["fc.weight"]["step"].shape == ()
    assert step.loss == (1.5, 2.5)
    assert step.total_norm == np.float32(3)
    assert [[*output] for output in step.outputs] == [[""], ["logits.0"]]
    assert step.outputs[1]["logits.0"].shape == (0, 2)
    (activation,) = step.activations
    assert (activation.module, activation.call, activation.output) == ("fc", 0, "")
    np.testing.assert_array_equal(activation.array, [[2], [2]])
    assert step.events == record(2).events
    assert step.hyperparameters == record(2).hyperparameters
    assert trace[1].warnings == (WARNING,)
    assert step.params_after == {}


def test_large_results_are_kept_as_digests(tmp_path):
    large = np.arange(6000, dtype="float32").reshape(60, 100)
    whole = {"params": {"w": large}, "grads": {"w": large + 1, "b": large[0]}}
    whole["final_grads"] = dict(whole["grads"])
    whole["activations"] = {"0": large.astype(jnp.bfloat16), "1": large[0]}
    call = Call("fc", "torch.nn.Linear", 0, "")
    writer = TraceWriter(tmp_path / "run.trace", RUN, digest_above=4800)
    writer.add(record(0, activations=(call, call)), whole)
    (step,) = open_trace(tmp_path / "run.trace")
    # What a step starts from stays whole, and so does what is small.
    np.testing.assert_array_equal(step.params["w"], large)
    assert [*step.grads] == [*step.final_grads] == ["b"]
    assert step.digests.keys() == {"activations", "grads", "final_grads"}
    held = step.digests["final_grads"]["w"]
    assert (held.shape, held.dtype) == ((60, 100), "float32")
    assert held.distance(digest(large + 1)) == 0
    assert held.distance(digest(large)) > 10
    first, second = step.activations
    assert first.digest.dtype == "bfloat16"
    assert first.digest.distance(digest(large.astype(jnp.bfloat16))) == 0
    with pytest.raises(ValueError, match=r"output of 'fc' was recorded as a digest: c"):
        first.array  # noqa: B018
    assert second.digest is None
    np.testing.assert_array_equal(second.array, large[0])


def test_equal_stages_are_written_once(folder, tmp_path):
    apart = arrays(0)
    apart["final_grads"] = {"fc.weight": apart["grads"]["fc.weight"].copy()}
    writer = TraceWriter(tmp_path / "apart.trace", RUN)
    writer.add(record(0), apart)
    sizes = [
        open_trace(p)[:1] and (p / "step-000000.safetensors").stat().st_size
        for p in (folder, tmp_path / "apart.trace")
    ]
    assert sizes[1] - sizes[0] >= apart["grads"]["fc.weight"].nbytes


def test_a_killed_run_reads_up_to_its_last_whole_step(tmp_path):
    folder = write(tmp_path / "run.trace", finish=False)
    lines = folder / "steps.jsonl"
    whole = lines.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    # Wherever the last line was cut, its step is not there yet.
    for cut in (start, start + 1, len(whole) - 1):
        lines.write_bytes(whole[:cut])
        trace = open_trace(folder)
        assert not trace.finished
        assert trace.numbers == (0, 1)
        assert trace[-1].number == 1
    lines.unlink()
    assert len(open_trace(folder)) == 0


def test_steps_may_be_far_apart(tmp_path):
    trace = open_trace(write(tmp_path / "run.trace", steps=(0, 10, 2_000_000)))
    assert trace.numbers == (0, 10, 2_000_000)
    assert [step.number for step in trace] == [0, 10, 2_000_000]


def test_what_is_there_already_is_not_written_over(folder, tmp_path):
    with pytest.raises(FileExistsError, match=r"where there is something already; "):
        TraceWriter(folder, RUN)
    TraceWriter(folder, RUN, overwrite=True)
    assert len(open_trace(folder)) == 0
    other = tmp_path / "other"
    other.mkdir()
    TraceWriter(other, RUN)  # An empty folder is as good as none.
    (tmp_path / "precious").write_text("mine")
    with pytest.raises(FileExistsError, match="a folder that is no recording; overwri"):
        TraceWriter(tmp_path, RUN, overwrite=True)
    assert (tmp_path / "precious").read_text() == "mine"


# Damage


def test_no_recording_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no recording: it must be a"):
        open_trace(tmp_path)


def edit(path, change):
    path.write_bytes(change(path.read_bytes()))


DAMAGE = {
    "no step file": (
        "step-000001.safetensors",
        None,
        r"step 1 of the recording is '.*step-000001.safetensors'; there is no such fil",
    ),
    "cut step file": (
        "step-000001.safetensors",
        lambda b: b[:-1],
        r"step-000001.safetensors'; it is damaged: it has \d+ bytes, and was written",
    ),
    "flipped step file": (
        "step-000001.safetensors",
        lambda b: b[:-1] + bytes([b[-1] ^ 1]),
        r"step-000001.safetensors'; it is damaged: its checksum is another",
    ),
    "missing line": (
        "steps.jsonl",
        lambda b: b"".join(b.splitlines(keepends=True)[::2]),
        r"steps.jsonl', line 2 is damaged: the line before it is missing",
    ),
    "cut list": (
        "steps.jsonl",
        lambda b: b[:-1],
        r"steps.jsonl' is damaged: the run finished with 3 recorded steps, and 2 are",
    ),
    "no list": (
        "steps.jsonl",
        None,
        r"steps.jsonl' is damaged: the run finished with 3 recorded steps, and 0 are",
    ),
    "flipped list": (
        "steps.jsonl",
        lambda b: b.replace(b"0.1", b"0.2", 1),
        r"steps.jsonl', line 1 is damaged: its checksum is another",
    ),
    "no JSON": ("steps.jsonl", lambda b: b"\xff\n" + b, "line 1 is damaged: it is not"),
    "deep": ("steps.jsonl", lambda b: b"[" * 10**5 + b"\n", "damaged: it is not JSON"),
    "long number": ("steps.jsonl", lambda b: b"9" * 5000 + b"\n", "it is not JSON"),
    "cut manifest": (
        "manifest.json",
        lambda b: b[:50],
        "manifest.json' is damaged: it",
    ),
    "flipped manifest": (
        "manifest.json",
        lambda b: b.replace(b"fc.weight", b"fc.weighs", 1),
        "manifest.json' is damaged: its checksum is another",
    ),
    "infinite number": (
        "manifest.json",
        lambda b: b.replace(b'"every": 1', b'"every": 1e999', 1),
        "manifest.json' is damaged: its checksum is another",
    ),
    "another's JSON": ("manifest.json", lambda b: b"[1]", "is not part of a recording"),
    "newer": (
        "manifest.json",
        lambda b: b.replace(b'"version": 1', b'"version": 99', 1),
        r"has version 99 of the format, and this jaxclip reads up to version 1: upgr",
    ),
    "no version": (
        "manifest.json",
        lambda b: b.replace(b'"version": 1', b'"version": "one"', 1),
        "manifest.json' is damaged: its checksum is another",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused_with_the_name_of_the_file(damage, folder):
    file, change, message = DAMAGE[damage]
    if change is None:
        (folder / file).unlink()
    else:
        edit(folder / file, change)
    with pytest.raises(TraceError, match=message):
        [*open_trace(folder)]


def file_is_cut(path):
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        file.truncate(8 + length)  # all of the arrays is gone


@pytest.mark.parametrize("damage", [file_is_cut, lambda path: path.unlink()])
def test_a_small_array_is_read_once_and_a_large_one_mapped(damage, tmp_path):
    writer = TraceWriter(tmp_path / "run.trace", RUN)
    small = np.arange(SMALL // 4, dtype="float32")
    wide = np.arange(SMALL // 4 + 1, dtype="float32")
    params = {"small": small, "large": wide, "unread": small + 1, "empty": small[:0]}
    writer.add(record(0), arrays(0) | {"params": params})
    writer.finish()
    step = open_trace(tmp_path / "run.trace")[0]
    read = step.params["small"]
    assert step.params["small"] is read
    assert read.base is None
    for array in (read, step.params["large"]):
        assert not array.flags.writeable
    np.testing.assert_array_equal(step.params["large"], wide)
    assert step.params["large"] is not step.params["large"]

    damage(step_file := tmp_path / "run.trace" / "step-000000.safetensors")
    np.testing.assert_array_equal(step.params["small"], small)
    assert step.params["empty"].shape == (0,)
    message = rf"{step_file.name}', a file of the recording, cannot be read any more: "
    for name in ("unread", "large"):
        with pytest.raises(TraceError, match=message):
            step.params[name]
    with pytest.raises(TraceError, match=message):
        _ = step.activations[0].array


def test_an_absurd_size_is_refused_before_memory_is_taken(folder):
    for name in ("steps.jsonl", "manifest.json"):
        with (folder / name).open("r+b") as file:
            file.truncate(LARGEST + 1)  # a file with a hole, which takes no disk
        tracemalloc.start()
        try:
            with pytest.raises(TraceError, match=rf"{name}' is damaged: it has 26843"):
                open_trace(folder)
            assert tracemalloc.get_traced_memory()[1] < 10**6
        finally:
            tracemalloc.stop()


def sealed(folder, **changes):
    """Rewrite the first line of the list of steps, with a checksum that is right."""
    path = folder / "steps.jsonl"
    line, *others = path.read_bytes().splitlines(keepends=True)
    record = json.loads(line)["record"]
    for key, value in changes.items():
        where = record if key in record else record["record"]
        where[key] = value
    path.write_bytes(seal(record) + b"".join(others))


LIES = {
    "a text": ({"size": "big"}, "size is 'big', which is no int"),
    "negative": ({"size": -1}, "size is -1, which is no int"),
    "truth": ({"size": True}, "size is True, which is no int"),
    "absurd": ({"number": 10**30}, r"number is 1000\d*, which is no int"),
    "escape": ({"number": "../../x"}, r"number is '../../x', which is no int"),
    "null": ({"events": None}, r"events is None, which is no tuple\[.*Event, ...\]"),
    "event": ({"events": [{"kind": "x"}]}, r"events\[0\] lacks 'details'"),
    "extra": (
        {"events": [{"kind": "x", "details": {}, "eval": "1"}]},
        r"events\[0\] has an unknown 'eval'",
    ),
    "lost activations": (
        {"activations": []},
        "the file has 1 activations, and the lis",
    ),
    "no stage": ({"same": {"x": "grads"}}, "'x' or 'grads' is no stage of a step"),
    "no target": ({"same": {"grads": "x"}}, "'grads' or 'x' is no stage of a step"),
    "no call": ({"same": {"outputs": "grads"}}, "'fc.weight' belongs to no call of"),
    "order": ({"number": 5}, "line 2 is damaged: the line before it is missing"),
    "no digest": (
        {"digests": {"grads/x": {"shape": [2], "dtype": "float32"}}},
        "the digest 'grads/x' is missing, or none",
    ),
    "a digest of another dtype": (
        {"digests": {"grads/fc.weight": {"shape": [2], "dtype": "float32"}}},
        "the digest 'grads/fc.weight' is missing, or none",
    ),
    "a digest of another length": (
        {"digests": {"batch/y.0": {"shape": [2], "dtype": "float32"}}},
        "the digest 'batch/y.0' is missing, or none",
    ),
    "huge": ({"size": "9" * 10**6}, r"size is '9{59}\.\.\., which is no int"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_with_a_right_checksum_is_refused(lie, folder):
    changes, message = LIES[lie]
    sealed(folder, **changes)
    with pytest.raises(TraceError, match=message) as caught:
        [*open_trace(folder)]
    assert str(folder) in str(caught.value)


def test_the_lies_are_told_to_a_recording_that_is_right(folder):
    sealed(folder, number=0)
    assert len([*open_trace(folder)]) == 3


def test_a_step_file_of_another_kind_is_refused(folder):
    content = b"\x02\0\0\0\0\0\0\0{}"
    (folder / "step-000000.safetensors").write_bytes(content)
    lie = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    sealed(folder, **lie)
    with pytest.raises(TraceError, match=r"damaged: the file has 0 activations, and"):
        open_trace(folder)[0]
    (folder / "step-000000.safetensors").write_bytes(content[:-1] + b"]")
    lie["sha256"] = hashlib.sha256(content[:-1] + b"]").hexdigest()
    sealed(folder, **lie)
    with pytest.raises(TraceError, match=r"no safetensors file: its header is not JSO"):
        open_trace(folder)[0]


def test_a_manifest_with_a_lie_is_refused(folder):
    lie = dataclasses.replace(RUN, every="often")
    (folder / "manifest.json").write_bytes(seal(Manifest(lie, 3)))
    with pytest.raises(
        TraceError, match=r"manifest.json': run: every is 'often', whic"
    ):
        open_trace(folder)


FILES = ("manifest.json", "steps.jsonl", "step-000001.safetensors")
WHOLE: dict[str, bytes] = {}


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_bytes_and_cut_files_never_read_as_something_else(tmp_path, data):
    folder = tmp_path / "run.trace"
    if not folder.exists():
        write(folder)
        WHOLE.clear()
        WHOLE.update({name: (folder / name).read_bytes() for name in FILES})
    name = data.draw(st.sampled_from(FILES))
    content = bytearray(WHOLE[name])
    place = data.draw(st.integers(0, len(content) - 1))
    byte = data.draw(st.sampled_from(b'0123456789{}[],:"\n x') | st.integers(0, 255))
    if data.draw(st.booleans()):
        content = content[:place]
    else:
        content[place] = byte
    (folder / name).write_bytes(content)
    said = ""
    try:
        trace = open_trace(folder)
        steps = [*trace]
    except TraceError as error:
        said = str(error)
    (folder / name).write_bytes(WHOLE[name])
    if said:
        assert name in said
        return
    # The damage is to the blanks between the parts of JSON, or none.
    assert (trace.run, trace.numbers) == (RUN, (0, 1, 2))
    assert [step.events for step in steps] == [record(n).events for n in range(3)]
    assert steps[1].loss == (1.5, 2.5)


def test_structure_is_read_by_its_hints():
    line = StepLine(0, 1, "", {"a": "b"}, {"c": Digested((2,), "f")}, record(1))
    plain = json.loads(seal(line))["record"]
    plain["record"]["events"][0]["details"]["max_norm"] = float("inf")
    assert structured(StepLine, plain, "here") == line


def test_a_trace_says_what_it_is(folder):
    trace = open_trace(folder)
    assert isinstance(trace, Trace)
    assert repr(trace) == f"<Trace {str(folder)!r} of torch, 3 steps>"
    assert repr(trace[0]) == "<Step 0, loss [1.5, 2.5]>"
    assert repr(trace[0].grads) == "{'fc.weight': float32[2, 3]}"
    assert [step.number for step in trace[1:]] == [1, 2]

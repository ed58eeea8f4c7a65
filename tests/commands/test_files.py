"""`jaxclip inspect` and `jaxclip convert`: what they write, and what they refuse."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from flax import nnx

from jaxclip import cli
from jaxclip.convert import WeightMap, to_torch
from torchref.my_linear import my_net

MODELS = """
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from jaxclip import models
from jaxclip.models import linen


def make_model():
    return models.my_net(rngs=nnx.Rngs(0))


def make_linen():
    return linen.my_net(), jnp.zeros(4)


def make_linear():
    return nnx.Linear(12, 1, use_bias=False, rngs=nnx.Rngs(0))


def make_params():
    return {"w": jnp.zeros((3, 2))}


def broken():
    raise RuntimeError("no such thing")


class Holder:
    number = 3
    make = staticmethod(make_model)


model = make_model()
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Return an empty folder with a module of models, and be in it."""
    (tmp_path / "my_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "my_models", raising=False)
    return tmp_path


@pytest.fixture
def checkpoint(here):
    torch.manual_seed(4)
    path = here / "net.safetensors"
    safetensors.torch.save_file(my_net().state_dict(), path)
    return path


def state_dict():
    torch.manual_seed(4)
    return my_net().state_dict()


def run(*arguments):
    return cli.main([*map(str, arguments)])


def error(capsys, *arguments):
    """Run a command that fails, and return what it says."""
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    start = f"jaxclip {arguments[0]}: error: "
    assert captured.err.startswith(start)
    return captured.err.removeprefix(start).rstrip("\n")


# inspect


def test_inspect_shows_every_tensor_and_the_totals(checkpoint, capsys):
    assert run("inspect", checkpoint) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "shape", "dtype", "bytes"]
    rows = {line.split()[0]: line for line in lines[1:-1]}
    assert rows.keys() == state_dict().keys()
    assert rows["1.weight"].split() == ["1.weight", "(4,", "3)", "float32", "48"]
    count = sum(t.numel() for t in state_dict().values())
    assert lines[-1] == f"{len(rows)} tensors, {count} elements, {4 * count} bytes"


def test_inspect_prints_json_for_programs(here, capsys):
    tensors = {
        "a": torch.ones((2, 3), dtype=torch.bfloat16),
        "b": torch.ones((), dtype=torch.int64),
    }
    for name in ("w.pt", "w.safetensors"):
        if name == "w.pt":
            torch.save({"model": tensors, "step": 1}, name)
        else:
            safetensors.torch.save_file(tensors, name)
        assert run("inspect", name, "--json") == 0
        said = json.loads(capsys.readouterr().out)
        assert sorted(said["tensors"], key=lambda row: row["name"]) == [
            {"name": "a", "shape": [2, 3], "dtype": "bfloat16", "bytes": 12},
            {"name": "b", "shape": [], "dtype": "int64", "bytes": 8},
        ]
        assert said["total"] == {"tensors": 2, "elements": 7, "bytes": 20}
        assert said["file"] == name


def test_inspect_cuts_no_name_short_and_takes_no_name_for_markup(here, capsys):
    name = "[bold]" + ".".join(["very_long_name"] * 20)
    safetensors.torch.save_file({name: torch.ones(1)}, "w.safetensors")
    assert run("inspect", "w.safetensors") == 0
    assert name in capsys.readouterr().out


def test_inspect_reads_under_a_key_and_says_which(here, capsys):
    torch.save({"a": {"w": torch.ones(1)}, "b": {"v": torch.ones(1)}}, "w.pt")
    message = error(capsys, "inspect", "w.pt")
    assert "Say which it is: key='a' (1 tensor), key='b' (1 tensor)." in message
    assert run("inspect", "w.pt", "--key", "b") == 0
    out = capsys.readouterr().out
    assert out.splitlines()[1].startswith("v ")
    assert out.endswith("Note: the state dict lay under 'b'.\n")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.pt", None, "source is 'none.pt'; there is no such file."),
        ("text.txt", b"x", "source is 'text.txt', a file with the suffix '.txt'"),
        ("bad.safetensors", b"bad", "source is 'bad.safetensors'; it is damaged"),
        ("bad.pt", b"bad", "source is 'bad.pt'; it is damaged"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(here, capsys, name, content, message):
    if content is not None:
        (here / name).write_bytes(content)
    for command in (["inspect", name], ["convert", name, "my_models:make_model"]):
        out = [] if command[0] == "inspect" else ["-o", "out.safetensors"]
        said = error(capsys, *command, *out)
        assert said.startswith(message)
        assert "\n" not in said


# convert


@pytest.mark.parametrize("model", ["make_model", "model", "Holder.make"])
def test_convert_writes_flax_variables_under_their_paths(checkpoint, model, capsys):
    assert run("convert", checkpoint, f"my_models:{model}", "-o", "o.safetensors") == 0
    assert capsys.readouterr().out == "o.safetensors: 6 variables, 124 bytes\n"
    written = safetensors.numpy.load_file("o.safetensors")
    # A user loads it as any other set of arrays.
    from my_models import make_model

    model = make_model()
    flat = [(tuple(name.split(".")), array) for name, array in written.items()]
    leaves = {
        tuple(map(str, path)): variable
        for path, variable in nnx.to_flat_state(nnx.state(model))
    }
    assert leaves.keys() == dict(flat).keys()
    for path, array in flat:
        leaves[path].set_value(jnp.asarray(array))
    returned = to_torch(model)
    assert all(torch.equal(returned[k], t) for k, t in state_dict().items())


def test_convert_fills_linen_variables(checkpoint):
    arguments = ["my_models:make_linen", "-o", "o.safetensors", "--dtype", "bfloat16"]
    assert run("convert", checkpoint, *arguments) == 0
    from my_models import make_linen

    module, x = make_linen()
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    written = safetensors.numpy.load_file("o.safetensors")
    paths = {
        ".".join(key.key for key in path)
        for path, _ in jax.tree.leaves_with_path(shapes)
    }
    assert written.keys() == paths
    assert {str(array.dtype) for array in written.values()} == {"bfloat16"}


def test_convert_is_told_what_is_flattened(here, capsys):
    weight = torch.arange(12.0).reshape(1, 12)
    safetensors.torch.save_file({"weight": weight}, "fc.safetensors")
    arguments = ["fc.safetensors", "my_models:make_linear", "-o", "o.safetensors"]
    assert run("convert", *arguments, "--flatten", "=3,2,2") == 0
    kernel = safetensors.numpy.load_file("o.safetensors")["kernel"]
    channels_last = weight.reshape(3, 2, 2).permute(1, 2, 0).reshape(12, 1)
    assert kernel.tolist() == channels_last.tolist()


def test_convert_is_told_how_axes_lie(here, capsys):
    weight = torch.arange(6.0).reshape(2, 3)
    safetensors.torch.save_file({"w": weight}, "w.safetensors")
    arguments = ["w.safetensors", "my_models:make_params", "-o", "o.safetensors"]
    assert run("convert", *arguments, "--axes", "w*=1,0") == 0
    written = safetensors.numpy.load_file("o.safetensors")["w"]
    assert written.tolist() == weight.T.tolist()


def test_convert_writes_the_mapping_beside_it(checkpoint, capsys):
    renamed = {f"net.h.{name}": tensor for name, tensor in state_dict().items()}
    safetensors.torch.save_file(renamed | {"extra": torch.ones(1)}, "r.safetensors")
    arguments = [
        *("convert", "r.safetensors", "my_models:make_model", "-o", "o.safetensors"),
        *("--rename", "net=", "--rename", r"re:^h\.=", "--ignore", "ex*"),
        *("--mapping", "map.json"),
    ]
    assert run(*arguments) == 0
    written = safetensors.numpy.load_file("o.safetensors")
    returned = WeightMap.load("map.json").to_torch(nested(written))
    assert returned.keys() == renamed.keys()
    assert all(torch.equal(returned[name], renamed[name]) for name in renamed)


def nested(flat):
    tree = {}
    for name, value in flat.items():
        *outer, last = name.split(".")
        inner = tree
        for part in outer:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return tree


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["make_model"], "make_model is not of the form MODULE:NAME"),
        (["no_module:make"], "there is no module 'no_module', neither here nor inst"),
        (["my_models:nothing"], "my_models has no 'nothing'"),
        (["my_models:Holder.number"], "target is a builtins.int; it must be"),
        (["my_models:broken"], "my_models:broken raised RuntimeError: no such thing"),
        (["my_models:make_model", "--rename", "ab"], "--rename ab is not of the form"),
        (["my_models:make_model", "--rename", "re:(=x"], "--rename re:(=x: missing )"),
        (
            ["my_models:make_model", "--flatten", "a=2,x"],
            "--flatten a=2,x is not",
        ),
        (
            ["my_models:make_model", "--flatten", "2,3"],
            "--flatten 2,3 is not",
        ),
        (
            ["my_models:make_model", "--axes", "w"],
            "--axes w is not of the form NAME=1,0",
        ),
        (["my_models:make_model", "--axes", "x=1,1"], "axes is {'x': (1, 1)}; it must"),
        (["my_models:make_model", "--dtype", "f99"], "dtype='f99' is no dtype."),
        (["my_models:make_model", "--dtype", "int8"], "dtype=int8 is no float"),
        (
            ["my_models:make_model", "--ignore", "1.*"],
            "nothing was converted; 4 problems:\n  - ",
        ),
        (["my_models:make_model", "--stacked", "x"], "nothing was converted; 1 prob"),
        (
            ["my_models:make_model", "--mapping", "none/map.json"],
            "[Errno 2] No such file or directory: 'none",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_users_mistake_is_said_and_nothing_is_written(
    checkpoint, capsys, arguments, message
):
    before = sorted(checkpoint.parent.iterdir())
    said = error(capsys, "convert", checkpoint, *arguments, "-o", "out.safetensors")
    assert said.startswith(message)
    after = [p for p in checkpoint.parent.iterdir() if p.name != "__pycache__"]
    assert sorted(after) == [p for p in before if p.name != "__pycache__"]


def test_the_checkpoint_is_not_written_over(checkpoint, capsys):
    before = checkpoint.read_bytes()
    said = error(capsys, "convert", checkpoint, "my_models:model", "-o", checkpoint)
    assert said == f"--out {checkpoint} is the checkpoint itself"
    said = error(capsys, "convert", checkpoint, "my_models:model", "-o", "out.npz")
    assert said == "--out out.npz is not the name of a .safetensors file"
    assert checkpoint.read_bytes() == before


def test_values_that_are_not_finite_are_refused_on_request(checkpoint, capsys):
    bad = state_dict()
    bad["3.bias"][0] = torch.nan
    safetensors.torch.save_file(bad, "bad.safetensors")
    arguments = ["bad.safetensors", "my_models:model", "-o", "o.safetensors"]
    said = error(capsys, "convert", *arguments, "--finite")
    assert "'3.bias' has 1 elements of 1 that are NaN or infinite" in said
    assert run("convert", *arguments) == 0


def test_an_installed_command_finds_the_module_beside_it(checkpoint):
    command = [
        sys.executable,
        "-c",
        "import sys; from jaxclip.cli import main; sys.path.pop(0); sys.exit(main())",
    ]
    arguments = ["convert", checkpoint, "my_models:make_model", "-o", "o.safetensors"]
    run = subprocess.run([*command, *arguments], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("o.safetensors: ")
    assert run.stderr == ""


@pytest.mark.parametrize("command", ["inspect", "convert"])
def test_help_names_the_options(capsys, command):
    with pytest.raises(SystemExit, match="0"):
        run(command, "--help")
    said = capsys.readouterr().out
    options = {
        "inspect": "FILE --key --json",
        "convert": (
            "CHECKPOINT MODULE:NAME --out --mapping --rename --ignore --flatten "
            "--axes --stacked --key --dtype --finite"
        ),
    }
    wanted = [*options[command].split(), "exit status"]
    assert [option for option in wanted if option not in said] == []

"""Weights come from modules, state dicts and files; bad files are named."""

import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
from flax import nnx

from jaxclip.convert import from_torch, to_torch
from jaxclip.convert._conversion import plan_conversion

DTYPES = ["float32", "float16", "bfloat16", "int32"]


def target():
    """Return a model with one array of each dtype."""
    return nnx.Dict(
        {f"w_{dtype}": nnx.Param(jnp.zeros((2, 3), dtype)) for dtype in DTYPES}
    )


def tensors():
    start = torch.arange(6.0).reshape(2, 3)
    return {f"w_{dtype}": start.to(getattr(torch, dtype)) for dtype in DTYPES}


def strided():
    """Return the same values, laid out otherwise in memory."""
    return {name: t.T.contiguous().T for name, t in tensors().items()}


def as_jax():
    return {
        name: jnp.asarray(tensor.float().numpy(), name.removeprefix("w_"))
        for name, tensor in tensors().items()
    }


def saved(path):
    """Save the tensors where a path says, and return it."""
    if Path(path).suffix == ".safetensors":
        safetensors.torch.save_file(tensors(), path)
    else:
        torch.save(tensors(), path)
    return path


SOURCES = {
    "tensors": lambda folder: tensors(),
    "strided": lambda folder: strided(),
    "jax": lambda folder: as_jax(),
    "numpy": lambda folder: {name: np.asarray(a) for name, a in as_jax().items()},
    "module": lambda folder: torch.nn.ParameterDict(
        {n: torch.nn.Parameter(t, requires_grad=False) for n, t in tensors().items()}
    ),
    ".safetensors": lambda folder: saved(folder / "weights.safetensors"),
    ".pt": lambda folder: saved(folder / "weights.pt"),
    ".pth": lambda folder: saved(folder / "weights.pth"),
    "str": lambda folder: saved(str(folder / "weights.pt")),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_gives_the_same_weights(kind, tmp_path):
    source = SOURCES[kind](tmp_path)
    returned = to_torch(from_torch(target(), source))
    for name, tensor in tensors().items():
        assert returned[name].dtype == tensor.dtype
        assert torch.equal(returned[name], tensor)


def test_a_parameter_that_requires_a_gradient_is_read():
    source = {"w": torch.ones(2, requires_grad=True)}
    assert from_torch(nnx.Dict(w=nnx.Param(jnp.zeros(2))), source)["w"][0] == 1


def refused(path, match, error=ValueError):
    with pytest.raises(error, match=match) as caught:
        from_torch(target(), path)
    assert repr(str(path)) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_a_missing_file_is_named(suffix, tmp_path):
    path = tmp_path / f"weights{suffix}"
    refused(path, "there is no such file", FileNotFoundError)
    path.mkdir()
    refused(path, "there is no such file", FileNotFoundError)


@pytest.mark.parametrize("name", ["weights.npz", "weights", "weights.pt.gz", ".pt"])
def test_another_suffix_is_named(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(b"")
    refused(path, r"the suffix '.*'; it must be one of \.safetensors, \.pt, ")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "head", "flipped"])
def test_a_damaged_file_is_named(suffix, damage, tmp_path):
    path = saved(tmp_path / f"weights{suffix}")
    whole = path.read_bytes()
    damaged = {
        "empty": b"",
        "text": b"not weights at all\n" * 9,
        "truncated": whole[:-40],
        "head": whole[:20],
        "flipped": bytes(255 - byte for byte in whole),
    }[damage]
    path.write_bytes(damaged)
    message = refused(path, "it is damaged")
    # torch's own message tells how to run what is in the file.
    assert "weights_only" not in message


def test_python_objects_in_a_file_are_not_unpickled(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(torch.nn.Linear(2, 2), path)
    message = refused(path, r"never unpickled\. Save model\.state_dict\(\)")
    assert "weights_only" not in message


def test_nothing_in_a_file_is_run(tmp_path):
    trace, path = tmp_path / "trace", tmp_path / "weights.pt"

    class Explosive:
        def __reduce__(self):
            return Path.touch, (trace,)

    torch.save({"w": Explosive()}, path)
    refused(path, "never unpickled")
    assert not trace.exists()
    # And the trap works.
    torch.load(path, weights_only=False)
    assert trace.exists()


def test_a_file_that_holds_something_else_is_named(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save([torch.ones(2)], path)
    refused(path, "which holds a list; it must hold a state dict")


def test_a_source_of_another_type_is_refused():
    with pytest.raises(TypeError, match="source is a list; it must be a torch module"):
        from_torch(target(), [torch.ones(2)])
    with pytest.raises(TypeError, match="source is a Linear; it must be a torch modu"):
        from_torch(target(), nnx.Linear(1, 1, rngs=nnx.Rngs(0)))
    with pytest.raises(TypeError, match="source has the name 3; a name must be"):
        from_torch(target(), {3: torch.ones(2)})


def test_a_missing_torch_is_said_with_the_remedy(monkeypatch, tmp_path):
    (tmp_path / "weights.pt").touch()
    monkeypatch.setitem(sys.modules, "torch", None)
    match = r"to_torch needs torch, .* pip install 'jaxclip\[torch\]'"
    with pytest.raises(ImportError, match=match):
        to_torch(target())
    match = r"weights\.pt' needs torch, .* pip install 'jaxclip\[torch\]'"
    with pytest.raises(ImportError, match=match):
        from_torch(target(), tmp_path / "weights.pt")


def test_arrays_and_safetensors_need_no_torch(tmp_path):
    path = saved(tmp_path / "weights.safetensors")
    code = f"""
import sys
sys.modules["torch"] = None
sys.modules["safetensors"] = None
import jax.numpy as jnp, numpy as np
from flax import nnx
from jaxclip.convert import from_torch
target = nnx.Dict({{"w_" + n: nnx.Param(jnp.zeros((2, 3), n)) for n in {DTYPES}}})
converted = from_torch(target, {str(path)!r})
again = from_torch(target, {{n: np.asarray(converted[n][...]) for n in converted}})
assert float(again["w_bfloat16"][1, 2]) == 5
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_largest_tensors_are_read_first():
    sizes = [1, 5, 0, 3, 5]
    model = nnx.Dict({f"w{i}": nnx.Param(jnp.zeros(n)) for i, n in enumerate(sizes)})
    source = {f"w{i}": np.full(n, i, "f") for i, n in enumerate(sizes)}
    none = dict.fromkeys(("rename", "flatten", "axes", "key"))
    job = plan_conversion(model, source, ignore=(), stacked=(), **none)
    read = []
    filled = job.filled(job.read(on_read=read.append))
    assert read == [20, 20, 12, 4, 0]
    for name, array in source.items():
        np.testing.assert_array_equal(filled[name][...], array)

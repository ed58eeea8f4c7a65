"""State dicts inside checkpoints, in several files, and behind wrappers of modules."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
from flax import nnx

from jaxclip.convert import ConversionError, from_torch, mapping, to_torch


def target():
    return nnx.Linear(3, 2, rngs=nnx.Rngs(0))


def weights(value=1.0):
    return {"weight": torch.full((2, 3), value), "bias": torch.full((2,), value)}


def value(model):
    """Return the value that all of the weights have."""
    (value,) = {float(x) for t in to_torch(model).values() for x in t.flatten()}
    return value


def optimizer():
    """Return what torch.optim saves beside the weights."""
    return {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]}


# Where in a checkpoint the state dict is.


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", None])
@pytest.mark.parametrize("key", ["state_dict", "model", "module", "anything"])
def test_the_only_state_dict_in_a_checkpoint_is_taken(key, suffix, tmp_path):
    source = {"epoch": 3, "optimizer": optimizer(), key: weights(), "note": "text"}
    if suffix:
        path = tmp_path / f"checkpoint{suffix}"
        torch.save(source, path)
        source = path
    assert value(from_torch(target(), source)) == 1
    assert value(from_torch(target(), source, key=key)) == 1
    assert mapping(target(), source).notes == (f"the state dict lay under {key!r}",)


def test_a_plain_state_dict_needs_no_key():
    assert value(from_torch(target(), weights())) == 1
    assert value(from_torch(target(), weights(), key="")) == 1
    assert mapping(target(), weights()).notes == ()


def test_several_state_dicts_are_refused_with_the_choices(tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save({"model": weights(1.0), "ema": weights(2.0), "step": 3}, path)
    with pytest.raises(ValueError, match="more than one") as caught:
        from_torch(target(), path)
    assert str(caught.value) == (
        f"source is {str(path)!r}, which holds more than one state dict. Say which it "
        "is: key='model' (2 tensors), key='ema' (2 tensors)."
    )
    assert value(from_torch(target(), path, key="ema")) == 2


def test_a_state_dict_beside_tensors_is_refused_with_the_choices():
    source = weights(1.0) | {"model": weights(2.0)}
    match = r"key='' \(2 tensors\), key='model' \(2 tensors\)\."
    with pytest.raises(ValueError, match=match):
        from_torch(target(), source)
    assert value(from_torch(target(), source, key="", ignore="model")) == 1
    assert value(from_torch(target(), source, key="model")) == 2


def test_a_key_that_is_not_there_is_refused_with_the_choices():
    match = r"under key='x'\. Say which it is: key='model' \(2 tensors\)\."
    with pytest.raises(ValueError, match=match):
        from_torch(target(), {"model": weights(), "epoch": 1}, key="x")
    match = r"under key='epoch'\. It has the keys 'epoch', 'optimizer'\."
    with pytest.raises(ValueError, match=match):
        from_torch(target(), {"epoch": 1, "optimizer": optimizer()}, key="epoch")


def test_torch_files_of_the_time_before_zip_archives_are_read(tmp_path):
    path = tmp_path / "old.pt"
    torch.save(weights(), path, _use_new_zipfile_serialization=False)
    assert value(from_torch(target(), path)) == 1


# What torch's wrappers put before names.


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_a_wrapper_around_all_names_is_taken_off_and_said(prefix):
    source = {prefix + name: tensor for name, tensor in weights().items()}
    assert value(from_torch(target(), source)) == 1
    made = mapping(target(), source)
    assert made.notes == (f"{prefix!r} was taken off every name",)
    assert f"Note: {prefix!r} was taken off every name." in str(made)
    # The map has the names of the source.
    assert list(made.to_flax(source)) == ["kernel", "bias"]


def test_real_wrappers_are_seen_through():
    layer = torch.nn.Linear(3, 2)
    # Nothing is compiled, as nothing is called.
    compiled = torch.compile(layer, backend="eager")
    for wrapped in (torch.nn.DataParallel(layer), compiled):
        converted = from_torch(target(), wrapped)
        np.testing.assert_array_equal(converted.kernel[...], layer.weight.detach().T)


def test_a_wrapper_that_some_names_lack_is_left_alone():
    source = {"module.weight": torch.ones(2, 3), "bias": torch.ones(2)}
    with pytest.raises(ConversionError, match=r"'module\.weight' \(2, 3\) is not used"):
        from_torch(target(), source)


def test_a_wrapper_that_the_target_has_is_left_alone():
    model = nnx.Dict(module=target())
    source = {f"module.{name}": tensor for name, tensor in weights().items()}
    assert mapping(model, source).notes == ()
    twice = {f"module.{name}": tensor for name, tensor in source.items()}
    with pytest.raises(ConversionError, match=r"'module\.module\.weight'"):
        from_torch(model, twice)


def test_with_a_rename_nothing_else_is_taken_off():
    source = {f"module.{name}": tensor for name, tensor in weights().items()}
    assert value(from_torch(target(), source, rename={"module": ""})) == 1
    with pytest.raises(ConversionError, match=r"'module\.w' "):
        from_torch(target(), source, rename={"module.weight": "module.w"})


# Several files.


def sharded(folder, index=None):
    """Write weights in two files and an index, and return the path of the index."""
    tensors = weights()
    safetensors.torch.save_file({"weight": tensors["weight"]}, folder / "1.safetensors")
    safetensors.torch.save_file({"bias": tensors["bias"]}, folder / "2.safetensors")
    path = folder / "model.safetensors.index.json"
    good = {"weight": "1.safetensors", "bias": "2.safetensors"}
    content = {"metadata": {"total_size": 32}, "weight_map": good}
    path.write_text(json.dumps(content if index is None else index))
    return path


def test_files_that_an_index_names_are_read_as_one(tmp_path):
    assert value(from_torch(target(), sharded(tmp_path))) == 1
    assert value(from_torch(target(), str(sharded(tmp_path)))) == 1


def test_torch_files_that_an_index_names_are_read_as_one(tmp_path):
    torch.save(weights(), tmp_path / "1.bin")
    path = tmp_path / "pytorch_model.bin.index.json"
    index = {"weight_map": {"weight": "1.bin", "bias": "1.bin"}}
    path.write_text(json.dumps(index))
    assert value(from_torch(target(), path)) == 1


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([], "it is damaged or no index: it must be a JSON object with a 'weight_map'"),
        ({"weight_map": 3}, "it is damaged or no index"),
        (
            {"weight_map": {"weight": "1.safetensors", "bias": "1.safetensors"}},
            r"'1\.safetensors' lacks the tensor 'bias'\.",
        ),
        (
            {"weight_map": {"weight": "2.safetensors"}},
            r"'2\.safetensors' has, unlike the index, the tensor 'bias'\.",
        ),
        (
            {"weight_map": {"weight": "../1.safetensors"}},
            r"the file '\.\./1\.safetensors', which is not the name of a .* beside it",
        ),
        ({"weight_map": {"weight": "/etc/passwd"}}, "the file '/etc/passwd', which is"),
        ({"weight_map": {"weight": "passwd"}}, "it names the file 'passwd', which is"),
    ],
)
def test_an_index_that_does_not_say_what_is_there_is_refused(index, message, tmp_path):
    path = sharded(tmp_path, index)
    with pytest.raises(ValueError, match=message) as caught:
        from_torch(target(), path)
    assert str(caught.value).startswith(f"source is {str(path)!r}; ")


def test_a_file_that_an_index_names_and_that_is_missing_is_named(tmp_path):
    path = sharded(tmp_path)
    (tmp_path / "2.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"2\.safetensors'; there is no such"):
        from_torch(target(), path)


# Values.


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite_are_refused_on_request(bad):
    source = weights()
    source["weight"][1, 1:] = bad
    assert not jnp.isfinite(from_torch(target(), source).kernel[...]).all()
    with pytest.raises(ConversionError) as caught:
        from_torch(target(), source, finite=True)
    assert caught.value.problems == (
        "'weight' has 2 elements of 6 that are NaN or infinite, and finite=True.",
    )
    assert value(from_torch(target(), weights(), finite=True)) == 1


@pytest.mark.parametrize("given", ["float64", "float16", "bfloat16", "float8_e4m3fn"])
@pytest.mark.parametrize("wanted", ["float32", "bfloat16", jnp.float16])
def test_floats_are_cast_on_request_and_integers_are_not(given, wanted):
    source = {
        "w": torch.tensor([0.1, -3.0]).to(getattr(torch, given)),
        "n": torch.tensor([3], dtype=torch.int32),
    }
    model = nnx.Dict(w=nnx.Param(jnp.zeros(2)), n=nnx.Param(jnp.zeros(1, "int32")))
    returned = to_torch(from_torch(model, source, dtype=wanted))
    assert returned["w"].dtype == getattr(torch, jnp.dtype(wanted).name)
    # Rounded as torch rounds.
    assert torch.equal(returned["w"], source["w"].to(returned["w"].dtype))
    assert returned["n"].dtype == torch.int32
    with pytest.raises(ConversionError, match="Only floats are cast, to floats"):
        from_torch(model, source | {"n": torch.ones(1)}, dtype=wanted)


def test_what_is_cast_to_must_be_a_float():
    with pytest.raises(ValueError, match="dtype=int32 is no float; only floats are"):
        from_torch(target(), weights(), dtype="int32")

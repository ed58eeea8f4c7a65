"""Damaged and lying safetensors files are refused, and the others read as they are."""

import json
import os
import struct
import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from flax import nnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxclip._safetensors import read_safetensors
from jaxclip.convert import from_torch, to_torch

DATA = np.arange(6, dtype="f").tobytes()


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def packed(header, data=DATA, size=None):
    """Return a file of a header, which may be text, and data."""
    text = header if isinstance(header, str) else json.dumps(header)
    raw = text.encode()
    return struct.pack("<Q", len(raw) if size is None else size) + raw + data


GOOD = {
    "__metadata__": {"format": "pt"},
    "a": entry([2], 0, 8),
    "b": entry([2, 2], 8, 24),
}


def test_the_good_file_is_good(tmp_path):
    path = tmp_path / "good.safetensors"
    path.write_bytes(packed(GOOD))
    tensors = read_safetensors(path)
    np.testing.assert_array_equal(tensors["a"], [0, 1])
    np.testing.assert_array_equal(tensors["b"], [[2, 3], [4, 5]])


def with_b(b):
    return packed(GOOD | {"b": b})


TWICE = f'{{"a": {json.dumps(entry([6], 0, 24))}, "a": {{}}}}'

LIES = {
    "nothing": (b"", "it ends after 0 bytes, within its first number"),
    "half a number": (b"\0\0\0", "it ends after 3 bytes"),
    "header past the end": (
        packed(GOOD, size=10**6),
        r"a header of 1000000 bytes, in a file of \d+\.",
    ),
    "header one byte past the end": (
        packed(GOOD, b"", len(json.dumps(GOOD)) + 1),
        r"a header of \d+ bytes, in a file of \d+\.",
    ),
    "absurd header": (packed(GOOD, size=2**64 - 1), "a header of 18446744073709551615"),
    "half a header": (packed(GOOD, size=30), "its header is not JSON"),
    "no text": (packed("{}", b"", 2)[:8] + b"\xff\xfe", "its header is not JSON"),
    "deep": (packed("[" * 10**5, b""), "its header is not JSON"),
    "long number": (packed('{"a": %s}' % ("9" * 5000)), "its header is not JSON"),
    "a list": (packed([1]), "its header is not a JSON object"),
    "twice": (packed(TWICE), "its header has the name 'a' twice"),
    "no entry": (with_b(7), "tensor 'b' has no dtype, no shape"),
    "no dtype": (
        with_b({"shape": [4], "data_offsets": [8, 24]}),
        "tensor 'b' has no dtype",
    ),
    "negative": (with_b(entry([-4], 8, 24)), "tensor 'b' has no dtype, no shape"),
    "fraction": (with_b(entry([4.0], 8, 24)), "tensor 'b' has no dtype, no shape"),
    "truth": (with_b(entry([4, True], 8, 24)), "tensor 'b' has no dtype, no shape"),
    "text": (with_b(entry(["4"], 8, 24)), "tensor 'b' has no dtype, no shape"),
    # NumPy has 64 axes at most, and counts elements in 63 bits, of nothing too.
    "many axes": (with_b(entry([1] * 64 + [4], 8, 24)), "tensor 'b' has no dtype, no"),
    "endless axis": (
        packed({"a": entry([6], 0, 24), "b": entry([0, 2**63], 24, 24)}),
        "tensor 'b' has no dtype, no shape",
    ),
    "one offset": (
        with_b({"dtype": "F32", "shape": [4], "data_offsets": [8]}),
        "tensor 'b' has no dtype, no shape that an array can have, or no two data_off",
    ),
    "unknown dtype": (with_b(entry([4], 8, 24, "F33")), "tensor 'b' is 'F33', which"),
    "four bits": (with_b(entry([32], 8, 24, "F4")), "tensor 'b' is 'F4', which NumPy"),
    "wrong dtype": (
        with_b(entry([2, 2], 8, 24, "F64")),
        r"tensor 'b' has 16 bytes, and its shape \(2, 2\) in F64 takes 32",
    ),
    "absurd shape": (
        with_b(entry([2**62, 2**62], 8, 24)),
        r"tensor 'b' has 16 bytes, and its shape \(4611686018427387904, .* takes \d+",
    ),
    "overflow": (with_b(entry([2**61 + 1, 2, 4], 8, 24)), "tensor 'b' has 16 bytes, "),
    "past the end": (
        with_b(entry([2, 3], 8, 32)),
        "tensor 'b' lies at bytes 8 to 32 of 24",
    ),
    "backwards": (with_b(entry([2, 2], 24, 8)), "tensor 'b' lies at bytes 24 to 8"),
    "overlap": (
        packed({"a": entry([4], 0, 16), "b": entry([4], 8, 24)}),
        "tensor 'b' overlaps the one before it",
    ),
    "gap": (
        packed({"a": entry([1], 0, 4), "b": entry([4], 8, 24)}),
        "tensor 'b' leaves a gap after the one before it",
    ),
    "rest": (packed({"a": entry([2], 0, 8)}), "16 bytes at its end belong to no tens"),
    "truncated": (packed(GOOD)[:-1], "tensor 'b' lies at bytes 8 to 24 of 23"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused_with_file_and_tensor_before_memory_is_taken(lie, tmp_path):
    content, message = LIES[lie]
    path = tmp_path / "lying.safetensors"
    path.write_bytes(content)
    target = nnx.Dict(a=nnx.Param(jnp.zeros(2)), b=nnx.Param(jnp.zeros((2, 2))))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message) as caught:
            from_torch(target, path)
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(
        f"source is {str(path)!r}; it is damaged or no safetensors file: "
    )


def test_a_header_of_more_than_the_format_allows_is_not_read(tmp_path):
    path = tmp_path / "long.safetensors"
    path.write_bytes(struct.pack("<Q", 100_000_001))
    os.truncate(path, 8 + 100_000_001)  # of zeros, which take no place on the disk
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="a header of 100000001 bytes, in a file"):
            read_safetensors(path)
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


DTYPES = [
    *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32"),
    *("uint64", "int64", "float16", "bfloat16", "float32", "float64", "complex64"),
    *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"),
]


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 2)])
def test_every_dtype_is_read_bit_for_bit(shape, tmp_path):
    path = tmp_path / "weights.safetensors"
    rng = np.random.default_rng(1)
    source, bits = {}, {}
    for name in DTYPES:
        dtype = getattr(torch, name)
        size = int(np.prod(shape, dtype=int)) * dtype.itemsize
        bits[name] = rng.integers(2, size=size, dtype=np.uint8)
        source[name] = torch.zeros(shape, dtype=dtype)
        source[name].untyped_storage().copy_(torch.tensor(bits[name]).untyped_storage())
    safetensors.torch.save_file(source, path)
    tensors = read_safetensors(path)
    assert sorted(tensors) == sorted(DTYPES)
    for name, stored in tensors.items():
        array = np.asarray(stored)
        assert array.dtype == stored.dtype == jnp.dtype(name)
        assert array.shape == stored.shape == shape
        assert not array.flags.writeable or array.size == 0
        assert array.tobytes() == bits[name].tobytes()


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "int8", "bool"])
def test_small_dtypes_go_to_flax_and_back(dtype, tmp_path):
    path = tmp_path / "weights.safetensors"
    source = {"w": torch.tensor([[0.0, 1.0, 2.0]]).to(getattr(torch, dtype))}
    safetensors.torch.save_file(source, path)
    converted = from_torch(nnx.Dict(w=nnx.Param(jnp.zeros((1, 3), dtype))), path)
    returned = to_torch(converted)["w"]
    assert returned.dtype == source["w"].dtype
    assert torch.equal(returned.view(torch.uint8), source["w"].view(torch.uint8))


def librarys(path):
    """Return what the format's own library makes of a file, or None."""
    try:
        return safetensors.numpy.load_file(path)
    except safetensors.SafetensorError:
        return None


def agree(path, content):
    path.write_bytes(content)
    expected = librarys(path)
    if expected is None:
        with pytest.raises(ValueError, match="it is damaged or no safetensors file"):
            read_safetensors(path)
        return
    tensors = read_safetensors(path)
    assert tensors.keys() == expected.keys()
    for name, stored in tensors.items():
        array = np.asarray(stored)
        assert array.dtype == expected[name].dtype
        assert array.shape == expected[name].shape
        assert array.tobytes() == expected[name].tobytes()


fuzz = settings(
    max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@fuzz
@given(data=st.data())
def test_flipped_bytes_and_cut_files_are_refused_as_the_library_does(tmp_path, data):
    content = bytearray(packed(GOOD))
    header = len(content) - len(DATA)
    for _ in range(data.draw(st.integers(1, 3))):
        # Mostly what JSON is made of, so that the damage gets past its parser.
        byte = data.draw(st.sampled_from(b'0123456789{}[],:"abF') | st.integers(0, 255))
        content[data.draw(st.integers(0, header - 1))] = byte
    cut = data.draw(st.just(0) | st.integers(1, len(content)))
    content = bytes(content[: len(content) - cut])
    # The library keeps the last of two tensors of one name, and reads F4.
    text = content[8:header].decode(errors="replace")
    if text.count('"a":') > 1 or text.count('"b":') > 1 or '"F4"' in text:
        return
    agree(tmp_path / "fuzzed.safetensors", content)


sizes = st.sampled_from([0, 1, 2, 3, 4, 8, 12, 16, 24, 2**31, 2**63, 2**64])
entries = st.builds(
    entry,
    st.lists(sizes, max_size=3),
    sizes,
    sizes,
    st.sampled_from(["F32", "F16", "U8", "I64", "BOOL"]),
)


@fuzz
@given(header=st.dictionaries(st.sampled_from("abc"), entries, max_size=3))
def test_lying_headers_are_refused_as_the_library_does(tmp_path, header):
    agree(tmp_path / "lying.safetensors", packed(header))


@fuzz
@given(shapes=st.lists(st.lists(st.integers(0, 3), max_size=3), max_size=4))
def test_honest_headers_are_read_as_the_library_does(tmp_path, shapes):
    header, end = {}, 0
    for index, shape in enumerate(shapes):
        start, end = end, end + 4 * int(np.prod(shape, dtype=int))
        header[f"t{index}"] = entry(shape, start, end)
    agree(tmp_path / "honest.safetensors", packed(header, bytes(range(256))[:end]))

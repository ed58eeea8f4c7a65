"""Renaming what the source calls otherwise, and leaving out what nobody needs."""

import re

import jax.numpy as jnp
import pytest
import torch
from flax import nnx

from jaxclip.convert import ConversionError, from_torch, to_torch


def model():
    """Return parameters at two depths."""
    encoder = nnx.Dict(a=nnx.Param(jnp.zeros(1)), b=nnx.Param(jnp.zeros(1)))
    return nnx.Dict(encoder=encoder, head=nnx.Param(jnp.zeros(1)))


NAMES = ("encoder.a", "encoder.b", "head")


def source(*names):
    return {name: torch.tensor([float(i)]) for i, name in enumerate(names)}


def values(model):
    state_dict = to_torch(model)
    return [float(state_dict[name]) for name in NAMES]


@pytest.mark.parametrize(
    ("names", "rename"),
    [
        (NAMES, None),
        (("module.encoder.a", "module.encoder.b", "module.head"), {"module": ""}),
        (("enc.a", "enc.b", "head"), {"enc": "encoder"}),
        (("enc.a", "enc.b", "top"), {"enc": "encoder", "top": "head"}),
        (("x.enc.a", "x.enc.b", "x.head"), {"x": "", "x.enc": "encoder"}),
        (("x.enc.a", "x.enc.b", "x.head"), {"x.enc": "encoder", "x": ""}),
        (("a", "b", "head"), {"": "encoder", "head": "head"}),
        (
            ("encoder.b", "encoder.a", "head"),
            {"encoder.a": "encoder.b", "encoder.b": "encoder.a"},
        ),
        (("ENCODER.A", "ENCODER.B", "HEAD"), str.lower),
    ],
)
def test_names_become_those_of_the_target(names, rename):
    converted = from_torch(model(), source(*names), rename=rename)
    assert values(converted) == [0, 1, 2]


def test_a_prefix_is_made_of_whole_names():
    match = "rename has the prefix 'enc', which no tensor of the source has"
    with pytest.raises(ConversionError, match=match):
        from_torch(model(), source(*NAMES), rename={"enc": "enc"})


def test_a_rename_that_changes_nothing_is_refused():
    with pytest.raises(ConversionError, match="left every name as it was"):
        from_torch(model(), source(*NAMES), rename=lambda name: name)


def test_two_tensors_of_one_name_are_refused():
    with pytest.raises(ConversionError) as caught:
        from_torch(model(), source(*NAMES), rename={"encoder.b": "encoder.a"})
    assert caught.value.problems[0] == (
        "rename gives 'encoder.a', 'encoder.b' the same name 'encoder.a'."
    )


def test_a_function_must_return_names():
    with pytest.raises(
        TypeError, match=r"rename\('encoder.a'\) returned None; it must"
    ):
        from_torch(model(), source(*NAMES), rename=lambda name: None)


@pytest.mark.parametrize("ignore", ["opt.*", ["opt.*"], ("opt.x", "opt.[yz]")])
def test_what_is_ignored_is_left_out(ignore):
    tensors = source(*NAMES, "opt.x", "opt.y")
    tensors["opt.x"] = "no tensor at all"
    assert values(from_torch(model(), tensors, ignore=ignore)) == [0, 1, 2]


def test_names_are_ignored_as_the_source_has_them():
    tensors = source("net.encoder.a", "net.encoder.b", "net.head", "net.more")
    converted = from_torch(model(), tensors, rename={"net": ""}, ignore=["net.more"])
    assert values(converted) == [0, 1, 2]


def test_what_is_ignored_fills_nothing():
    with pytest.raises(ConversionError, match="the source has no 'head'"):
        from_torch(model(), source(*NAMES), ignore=["head"])


def test_a_pattern_that_matches_nothing_is_refused():
    match = r"ignore has the pattern 'head\.\*', which no tensor of the source matches"
    with pytest.raises(ConversionError, match=match):
        from_torch(model(), source(*NAMES), ignore=["head.*"])
    # Patterns know capitals.
    with pytest.raises(ConversionError, match="ignore has the pattern 'HEAD'"):
        from_torch(model(), source(*NAMES), ignore=["HEAD"])


@pytest.mark.parametrize(
    ("names", "rename"),
    [
        (("enc.a", "enc.b", "head"), {re.compile(r"^enc\b"): "encoder"}),
        (("e.0.a", "e.0.b", "head"), {re.compile(r"e\.\d+\.(\w)"): r"encoder.\1"}),
        # The prefixes come first, then the patterns in order.
        (
            ("x.e.a", "x.e.b", "x.head"),
            {re.compile("^e"): "f", re.compile("^f"): "encoder", "x": ""},
        ),
    ],
)
def test_patterns_are_replaced_after_prefixes_in_order(names, rename):
    converted = from_torch(model(), source(*names), rename=rename)
    assert values(converted) == [0, 1, 2]


def test_a_pattern_of_a_rename_must_match_something():
    rename = {re.compile("^encoder"): "encoder", re.compile(r"\bdecoder\b"): "x"}
    with pytest.raises(ConversionError) as caught:
        from_torch(model(), source(*NAMES), rename=rename)
    assert caught.value.problems == (
        r"rename has the pattern '\\bdecoder\\b', which no tensor of the source "
        "matches.",
    )

"""The table of layers in the README is made of the rules."""

import pytest
from flax import linen as nn
from flax import nnx
from scripts.write_readme_tables import layers

from jaxclip.convert._rules import registry
from jaxclip.convert._rules.links import Rule, raw


@pytest.mark.parametrize(
    ("rules", "row"),
    [
        (
            {nnx.Linear: Rule(raw, torch=("A", "b.C"), note="mind")},
            "| `A`, `b.C` | `nnx.Linear` |  | mind |",
        ),
        (
            {
                nnx.Linear: Rule(raw, torch=("A",)),
                nnx.Conv: Rule(raw, torch=("A",)),
                nn.Dense: Rule(raw, torch=("A",)),
            },
            "| `A` | `nnx.Linear`, `nnx.Conv` | `nn.Dense` |  |",
        ),
    ],
)
def test_a_row_is_a_layer_of_torch_in_both_of_flaxs_apis(monkeypatch, rules, row):
    monkeypatch.setattr(registry, "RULES", rules)
    assert layers()[2:] == [row]


def test_notes_that_differ_are_rows_of_their_own(monkeypatch):
    rules = {
        nnx.Linear: Rule(raw, torch=("A",), note="x"),
        nn.Dense: Rule(raw, torch=("A",), note="y"),
        nnx.Conv: Rule(raw),
    }
    monkeypatch.setattr(registry, "RULES", rules)
    assert layers()[2:] == [
        "| `A` | `nnx.Linear` |  | x |",
        "| `A` |  | `nn.Dense` | y |",
    ]


def test_every_layer_that_torch_and_flax_both_have_is_there():
    text = "\n".join(layers())
    for name in ("Linear", "Conv2d", "ConvTranspose3d", "BatchNorm1d", "PReLU"):
        assert f"`{name}`" in text

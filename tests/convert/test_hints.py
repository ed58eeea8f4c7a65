"""The line to paste: it is in the error, it runs, and then everything fits."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from jaxclip.convert import ConversionError, from_torch, to_torch


def model(**extra):
    """Return two blocks, of which nothing but the names tells the arrays apart."""

    def block():
        return nnx.Dict(
            attn=nnx.Linear(3, 3, rngs=nnx.Rngs(0)),
            mlp=nnx.Linear(3, 3, rngs=nnx.Rngs(0)),
        )

    return nnx.Dict(
        embed=nnx.Embed(5, 3, rngs=nnx.Rngs(0)),
        blocks=nnx.List([block(), block()]),
        head=nnx.Linear(3, 3, rngs=nnx.Rngs(0)),
        **extra,
    )


def state_dict(rename):
    """Return tensors of different values under other names."""
    return {
        rename(name): torch.full_like(tensor, float(index))
        for index, (name, tensor) in enumerate(to_torch(model()).items())
    }


def pasted(error):
    """Run the argument that an error shows, as a user who pastes it does."""
    (argument,) = re.findall(r"rename=\{.*\}", str(error))
    return eval(f"dict({argument})", {"re": re})["rename"]


SYSTEMATIC = {
    "a prefix more": (lambda name: f"net.{name}", "rename={'net': ''}"),
    "two prefixes more": (lambda name: f"a.b.{name}", "rename={'a.b': ''}"),
    "a prefix of torch's": (
        lambda name: name if name.startswith("head") else f"module.{name}",
        "rename={'module': ''}",
    ),
    "another first word": (
        lambda name: name.replace("blocks.", "layers."),
        "rename={'layers': 'blocks'}",
    ),
    "two first words": (
        lambda name: name.replace("blocks.", "h.").replace("embed.", "wte."),
        "rename={'wte': 'embed', 'h': 'blocks'}",
    ),
    "more before another word": (
        lambda name: f"transformer.{name.replace('blocks.', 'h.')}",
        None,
    ),
    "a wrapper and another word": (
        lambda name: f"module.{name.replace('blocks.', 'h.')}",
        None,
    ),
    "another word within": (
        lambda name: name.replace(".attn.", ".attention."),
        "rename={re.compile(r\"\\battention\\b\"): 'attn'}",
    ),
}


@pytest.mark.parametrize("case", SYSTEMATIC)
def test_a_systematic_difference_is_mended_by_what_the_error_shows(case):
    other_name, line = SYSTEMATIC[case]
    source = state_dict(other_name)
    with pytest.raises(ConversionError) as caught:
        from_torch(model(), source)
    text = str(caught.value)
    if line is not None:
        assert f"With {line}, " in text
    assert re.search(r"(\d+) of the \1 that are not filled would be\.$", text)

    converted = to_torch(from_torch(model(), source, rename=pasted(caught.value)))
    right = state_dict(lambda name: name)
    assert all(torch.equal(converted[name], right[name]) for name in right)


def test_a_prefix_that_the_source_lacks_is_added():
    target = nnx.Dict(net=model())
    source = state_dict(lambda name: name)
    with pytest.raises(ConversionError, match=r"With rename=\{'': 'net'\}, 11 of the"):
        from_torch(target, source)
    from_torch(target, source, rename={"": "net"})


def test_what_is_really_missing_does_not_hide_the_line():
    source = state_dict(lambda name: f"net.{name}")
    del source["net.head.bias"]
    source["net.extra"] = torch.ones(1)
    with pytest.raises(ConversionError) as caught:
        from_torch(model(), source)
    assert caught.value.hint == (
        "With rename={'net': ''}, 10 of the 11 that are not filled would be."
    )
    rename = pasted(caught.value)
    with pytest.raises(ConversionError) as caught:
        from_torch(model(), source, rename=rename)
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize(
    "source",
    [
        {},
        {f"w{i}": tensor for i, tensor in enumerate(to_torch(model()).values())},
        # Which of the two is attn and which is mlp, only their values could tell.
        state_dict(lambda name: name.replace("attn", "one").replace("mlp", "other")),
        {name: np.ones(7, "f") for name in state_dict(lambda name: f"net.{name}")},
    ],
    ids=["nothing", "no pattern", "two of a kind", "other shapes"],
)
def test_nothing_is_shown_where_nothing_is_evident(source):
    with pytest.raises(ConversionError) as caught:
        from_torch(model(), source)
    assert caught.value.hint == ""
    assert "rename" not in str(caught.value)


def test_what_fits_already_is_left_where_it_is():
    # "net" could be taken away, but then the other net's names would be taken, too.
    target = nnx.Dict(net=nnx.Dict(w=nnx.Param(jnp.ones(1))), v=nnx.Param(jnp.ones(2)))
    source = {"net.w": np.ones(1, "f"), "net.v": np.ones(2, "f")}
    with pytest.raises(ConversionError) as caught:
        from_torch(target, source)
    assert caught.value.hint == (
        "With rename={'net.v': 'v'}, 1 of the 1 that are not filled would be."
    )
    from_torch(target, source, rename=pasted(caught.value))


def test_which_of_several_square_matrices_is_meant_is_not_evident():
    target = nnx.Dict(out=nnx.Linear(3, 3, use_bias=False, rngs=nnx.Rngs(0)))
    names = ("query", "key", "value", "dense")
    source = {f"{name}.weight": np.ones((3, 3), "f") for name in names}
    with pytest.raises(ConversionError) as caught:
        from_torch(target, source)
    assert caught.value.hint == ""
    # One alone is.
    with pytest.raises(ConversionError, match=r"With rename=\{'dense': 'out'\}, 1 of"):
        from_torch(target, {"dense.weight": source["dense.weight"]})


def test_what_a_rename_lacks_is_shown():
    def other(name):
        return name.replace("blocks.", "layers.").replace(".attn.", ".attention.")

    source, rename = state_dict(other), {"layers": "blocks"}
    with pytest.raises(ConversionError) as caught:
        from_torch(model(), source, rename=rename)
    assert caught.value.hint == (
        r"""With re.compile(r"\battention\b"): 'attn' in rename, 4 of the 4 that are """
        "not filled would be."
    )
    rename |= {re.compile(r"\battention\b"): "attn"}
    converted = to_torch(from_torch(model(), source, rename=rename))
    right = state_dict(lambda name: name)
    assert all(torch.equal(converted[name], right[name]) for name in right)


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace("net.head", "head"),
        # Only prefixes would do, which are looked for in the names of the source.
        {"net.head": "head"},
    ],
    ids=["function", "prefixes"],
)
def test_what_cannot_be_added_to_a_rename_is_not_shown(rename):
    source = state_dict(lambda name: f"net.{name}")
    with pytest.raises(ConversionError) as caught:
        from_torch(model(), source, rename=rename)
    assert caught.value.hint == ""

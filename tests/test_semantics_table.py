"""jaxclip gives the truth, and the README says what all three libraries give."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from scripts.write_readme_tables import MARKERS, README, main, render, section

import jaxclip
from tests.semantics import DTYPES, ROWS, Row, norm_of, ones, table

# A thousand leaves take seconds to compile; those of float16 are as those of bfloat16.
each_row = pytest.mark.parametrize(
    "row",
    [
        pytest.param(
            row,
            marks=[pytest.mark.long] * (row.dtype == "f16" and len(row.leaves) > 300),
            id=f"{row.dtype}-{row.name}",
        )
        for row in ROWS
    ],
)

CELLS = {
    name: {"truth": truth, "jaxclip": ours, "optax": optaxs, "torch": torchs}
    for name, truth, ours, optaxs, torchs in table()
}


@each_row
def test_jaxclip_keeps_the_direction_and_leaves_the_norm_that_it_should(row):
    got = row.clipped("jaxclip")
    expected = row.truth()
    # Each element is rounded to its dtype; norms are those of float32.
    rounding = float(jnp.finfo(DTYPES[row.dtype]).eps) / 2
    np.testing.assert_allclose(norm_of(got), expected, rtol=rounding + 1e-6, atol=0)
    factor = expected / row.norm() if expected > 0 else 0.0
    for leaf, before in zip(got, row.rounded(), strict=True):
        np.testing.assert_allclose(leaf, before * factor, rtol=2 * rounding + 2e-6)


@each_row
def test_metrics_say_what_is_true(row):
    clip = jaxclip.clip_by_global_norm(row.max_norm, eps=row.eps)
    grads = [jnp.asarray(leaf, DTYPES[row.dtype]) for leaf in row.leaves]
    eager, state = clip.update(grads, clip.init(grads))
    metrics = jaxclip.clip_metrics(state)
    largest = float(jnp.finfo(jnp.float32).max)
    expected = row.norm() if row.norm() <= largest else math.inf
    np.testing.assert_allclose(metrics.total_norm, expected, rtol=1e-6)
    assert metrics.nonfinite_count == 0
    compiled, compiled_state = jax.jit(clip.update)(grads, clip.init(grads))
    for one, other in zip(
        jax.tree.leaves((eager, state)),
        jax.tree.leaves((compiled, compiled_state)),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("dtype", "leaves"),
    [
        *[(dtype, leaves) for dtype in ("bf16", "f16") for leaves in (1, 300)],
        ("bf16", 1000),
        pytest.param("f16", 1000, marks=pytest.mark.long),
    ],
)
def test_norms_of_many_narrow_leaves_are_those_of_float32(dtype, leaves):
    row = Row("", ones(leaves), dtype=dtype)
    grads = [jnp.asarray(leaf, DTYPES[dtype]) for leaf in row.leaves]
    np.testing.assert_allclose(jaxclip.global_norm(grads), math.sqrt(leaves), rtol=1e-6)
    excess = norm_of(row.clipped("jaxclip")) - 1.0
    assert excess <= float(jnp.finfo(DTYPES[dtype]).eps) / 2


# What the others are said to get wrong, by name, so that a release of theirs that
# mends it turns this red and the README is written anew.
WRONG = {
    "optax": {
        "bf16: 300 leaves of norm 1": "1.083",
        "bf16: 1000 leaves of norm 1": "1.976",
        "f16: an element of 300": "0",
        "f32: elements of 1e-23, max_norm 1e-24": "1.414e-23",
        "f32: an element of 3e38": "0",
        "f32: norm 0, max_norm 0": "NaN",
        "derivative at [0 0], max_norm 1": "nan nan",
        "[0 0] under `jax_debug_nans`": "FloatingPointError",
        "scheduled max_norm, bf16 [3 4]": "TypeError",
        "max_norm −1, of [3 4]": "-0.6 -0.8",
    },
    "torch": {
        "f32: an element of 3e38": "0",
        "f32: two leaves, of norm 3e38 each": "0",
        "f32: norm 4e38, max_norm inf": "NaN",
        "[3e38 3e38], NaN to be raised": "RuntimeError",
        "max_norm −1, of [3 4]": "-0.6 -0.8",
    },
}


@pytest.mark.parametrize(
    ("library", "name", "expected"),
    [(lib, name, cell) for lib, cells in WRONG.items() for name, cell in cells.items()],
)
def test_the_others_give_what_is_said_of_them(library, name, expected):
    assert CELLS[name][library] == expected
    assert CELLS[name]["jaxclip"] != expected


def test_what_is_no_norm_is_right_too():
    ours = {
        name: cells["jaxclip"] for name, cells in CELLS.items() if not cells["truth"]
    }
    assert ours == {
        "max_norm −1, of [3 4]": "ValueError",
        "max_norm NaN, of [3 4]": "ValueError",
        "derivative at [0 0], max_norm 1": "1 1",
        "[0 0] under `jax_debug_nans`": "0 0",
        "scheduled max_norm, bf16 [3 4]": "0.6016 0.8008",
        "[NaN 4]": "nan nan",
        "[NaN 4], to be zeroed": "0 0",
        "[NaN 4], to be raised": "RuntimeError",
        "[3e38 3e38], NaN to be raised": "0.7071 0.7071",
        "integers [3 4]": "TypeError",
        "complex [3+4j], eps 0": "1",
    }


# ---- the README ----------------------------------------------------------------------


def test_the_versions_are_those_that_the_readme_names():
    text = section(README.read_text(), "semantics")
    for package in (optax, torch):
        version = package.__version__.partition("+")[0]
        assert f"{package.__name__} {version}" in text


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.long] if name == "optimizers" else [])
        for name in MARKERS
    ],
)
def test_the_readme_is_up_to_date(name):
    current = section(README.read_text(), name)
    assert current == render(name), "run python scripts/write_readme_tables.py"


def test_a_readme_that_is_not_up_to_date_is_found(tmp_path, capsys):
    stale = tmp_path / "README.md"
    stale.write_text(README.read_text().replace("| 1.976 |", "| 1.000 |"))
    names = ["semantics"]
    assert main(["--check"], stale, names) == 1
    assert "write_readme_tables.py" in capsys.readouterr().err
    assert main([], stale, names) == 0
    assert stale.read_text() == README.read_text()
    assert main(["--check"], stale, names) == 0


def test_every_transformation_has_a_row():
    methods = section(README.read_text(), "methods")
    for name in vars(jaxclip):
        value = getattr(jaxclip, name)
        doc = getattr(value, "__doc__", None) or ""
        if (
            not name.startswith("_")
            and callable(value)
            and ("A transformation whose" in doc)
        ):
            assert f"`{name}`" in methods, name

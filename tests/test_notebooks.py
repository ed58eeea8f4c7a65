"""The notebooks run, without a warning, and are kept with what they printed."""

import ast
import re
import runpy
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# For each notebook, what its cell tagged `parameters` is given here.
SMALLER = {
    "01_gradient_clipping": {"CLIFF_STEPS": 5, "LONGEST": 8, "TRAINING_STEPS": 22},
    "02_clipping_in_optax_chains": {"STEPS": 40},
    "03_port_weights": {"TRAINING_STEPS": 20, "MORE_STEPS": 10, "NORM_STEPS": 10},
    "04_port_the_training_loop": {"STEPS": 8, "STOP": 4, "WARMUP": 2, "LAYERS": 1},
    "05_find_the_divergence": {"STEPS": 2},
}

# Where this machine keeps its files, and where others do.
PLACES = [str(ROOT), str(Path.home()), sys.prefix]
MACHINE_PATH = re.compile(
    "|".join([*map(re.escape, PLACES), r"/(home|root|Users|tmp|var)/", r"\b[A-Z]:\\"])
)

every_notebook = pytest.mark.parametrize(
    "path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS]
)

# What these show is in the quick tests in other forms, on README and docs for one.
LONG = {
    "02_clipping_in_optax_chains",
    "03_port_weights",
    "04_port_the_training_loop",
    "05_find_the_divergence",
}


def read(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def printed(notebook):
    """Return all that the outputs say, in every form that is text."""
    texts = []
    for output in outputs(notebook):
        texts += [output.get("text", ""), *output.get("traceback", [])]
        forms = output.get("data", {})
        texts += [text for form, text in forms.items() if form.startswith("text/")]
    return "\n".join(texts)


def assigned_names(source):
    return [
        node.id
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    ]


def set_parameters(notebook, values):
    """Replace every value in the one cell tagged `parameters`."""
    tagged = [
        cell
        for cell in code_cells(notebook)
        if "parameters" in cell.metadata.get("tags", [])
    ]
    assert len(tagged) == 1
    [cell] = tagged
    assert sorted(assigned_names(cell.source)) == sorted(values)
    cell.source = "\n".join(f"{name} = {value!r}" for name, value in values.items())


def assert_clean(notebook):
    """Assert that nothing went wrong in any cell, nor was warned of."""
    kinds = [output.output_type for output in outputs(notebook)]
    assert "error" not in kinds
    streams = [output.name for output in outputs(notebook) if "name" in output]
    assert "stderr" not in streams, printed(notebook)
    assert "warning" not in printed(notebook).lower()


def test_there_are_notebooks_and_each_has_its_parameters():
    assert {path.stem for path in NOTEBOOKS} == set(SMALLER) > LONG


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=[pytest.mark.long] * (path.stem in LONG), id=path.stem)
        for path in NOTEBOOKS
    ],
)
def test_notebook_runs(path, monkeypatch):
    # Compiling is most of what they take; `make notebooks` compiles as users do.
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    notebook = read(path)
    values = SMALLER[path.stem]
    set_parameters(notebook, values)
    # No cell may have set them back: ask the kernel what they are at the end.
    items = ", ".join(f"{name!r}: {name}" for name in values)
    last = nbformat.v4.new_code_cell(f"print({{{items}}})")
    notebook.cells.append(last)

    script = runpy.run_path(str(ROOT / "scripts" / "execute_notebooks.py"))
    script["execute"](notebook)

    assert_clean(notebook)
    assert ast.literal_eval(last.outputs[0].text) == values


@every_notebook
def test_notebook_is_kept_as_it_was_executed(path):
    notebook = read(path)
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    assert_clean(notebook)
    assert any("image/png" in output.get("data", {}) for output in outputs(notebook))
    assert not MACHINE_PATH.search(printed(notebook))
    assert path.stat().st_size < 1_000_000

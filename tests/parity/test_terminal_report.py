"""The report in a terminal is whole, however narrow the terminal is."""

import io

import pytest
from rich.console import Console

from jaxclip.parity import Report
from jaxclip.parity._verify._judge._judging import judged
from jaxclip.parity._verify._judge._rules import Rule
from jaxclip.parity._verify._report._results import StageResult
from tests.parity.made_reports import sample

NAMES = (
    "transformer.h.11.attn.c_proj.weight",
    "transformer.h.11.mlp.c_fc.bias",
    "層" * 40,  # each as wide as two letters
    "[bold]a.name[/bold]" * 5,
)


def rendered(report, width):
    console = Console(width=width, file=io.StringIO())
    console.print(report)
    lines = console.file.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    return lines


def report_of(name, stage="gradients"):
    module = name.rpartition(".")[0]
    tensor = judged(0, stage, sample(name, module, wrong=1e-3), Rule())
    stages = (StageResult(0, stage, (tensor,)),)
    return Report("run.trace", "float32", str(Rule()), stages)


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_cut_off(name, width):
    text = "\n".join(rendered(report_of(name), width))
    assert "…" not in text


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("name", NAMES[:2])
def test_a_long_name_goes_on_in_the_next_line(name, width):
    report = report_of(name)
    lines = rendered(report, width)
    header = next(line for line in lines if "where" in line and "tensor" in line)
    rows = lines[lines.index(header) + 2 :]
    start, stop = header.index("tensor"), rows[0].index(f"{report.first.ratio:.3g}")
    assert "".join(row[start:stop].strip() for row in rows) == name
    # So it does where a stage's worst tensor is said.
    start = next(line for line in lines if "verdict" in line).index("worst")
    at = next(n for n, line in enumerate(lines) if line.startswith("  gradients"))
    said = "".join(line[start:].strip() for line in lines[at : at + 3])
    assert said.startswith(name)

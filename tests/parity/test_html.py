"""The page says what the report does, needs nothing else, and trusts no name."""

import base64
import dataclasses
import hashlib
import json
import math
import re
from importlib.resources import files

import html5lib
import numpy as np
import pytest

from jaxclip import cli
from jaxclip.parity import Report, verify
from jaxclip.parity._html._figures import brief, count, level, number
from jaxclip.parity._html._markup import el, visible
from jaxclip.parity._html._tensors import PAGE, columns
from jaxclip.parity._verify._judge._judging import judged
from jaxclip.parity._verify._judge._rules import Rule
from jaxclip.parity._verify._report._results import BATCH, STAGES, StageResult
from jaxclip.parity._verify._report._words import TORCH
from tests.parity.made_reports import (
    HOSTILE,
    at_kinks,
    hostile,
    large,
    run_of,
    sample,
)
from tests.parity.test_verify import WRONG, linear_run, make_right

HTML = "{http://www.w3.org/1999/xhtml}"


@pytest.fixture(scope="module")
def wrong(tmp_path_factory):
    path = linear_run(tmp_path_factory.mktemp("html") / "run.trace")
    return path, verify(path, WRONG)


def parsed(page):
    """Parse a page by the rules of HTML, with every error an error."""
    return html5lib.HTMLParser(strict=True).parse(page)


def all_of(tree, name, **attributes):
    return [
        element
        for element in tree.iter(HTML + name)
        if all(element.get(key.rstrip("_")) == v for key, v in attributes.items())
    ]


def text_of(element):
    return " ".join(" ".join(element.itertext()).split())


def section(tree, key):
    [found] = all_of(tree, "section", id=key)
    return text_of(found)


def data_of(tree):
    [block] = all_of(tree, "script", type="application/json")
    return json.loads(block.text)


def rows_of(tree):
    """Return the rows of the table's data, with their texts."""
    data = data_of(tree)
    kinds = {key: kind for key, _, kind, _, _ in data["columns"]}
    told = {
        key: [data["texts"][v] for v in values]
        if kinds[key] in ("text", "name")
        else values
        for key, values in data["rows"].items()
    }
    return [
        dict(zip(told, row, strict=True)) for row in zip(*told.values(), strict=True)
    ]


def one(result, **changes):
    return Report(
        *("run.trace", "float32", str(Rule())),
        (StageResult(0, result.stage, (result,)),),
        **changes,
    )


# What it says.


def test_the_verdict_and_the_first_divergence_come_first(wrong):
    _, report = wrong
    tree = parsed(report.to_html())
    [title] = all_of(tree, "title")
    assert title.text == f"Different: {report.trace}"
    [heading] = all_of(tree, "h1")
    assert text_of(heading) == "Different"
    [header] = all_of(tree, "header")
    assert "The port and torch part at step 0, in update : weight ." in text_of(header)
    [main] = all_of(tree, "main")
    keys = [element.get("id") for element in main]
    assert keys == [
        *("first", "facts", "stages", "modules", "tensors", "picture", "free"),
        "left",
    ]
    first = section(tree, "first")
    assert first.startswith(
        "First divergence Step 0 Stage update Module the model itself"
    )
    assert report.first.detail in first
    assert f"Looks like: {report.first.hint}" in first
    facts = section(tree, "facts")
    assert "SGD" in facts
    assert report.run.versions["torch"] in facts
    assert report.rule in facts


def test_a_port_that_is_the_same_is_said_to_be(wrong):
    path, _ = wrong
    report = verify(path, make_right())
    tree = parsed(report.to_html())
    assert text_of(all_of(tree, "h1")[0]) == "Same in all that was compared"
    assert section(tree, "first").startswith("Nearest to the limit")
    assert not all_of(tree, "section", id="picture")
    assert report.difference is None


def test_kinks_are_named_and_counted_in_the_verdict():
    relu = "relu of the output of 'fc1': the element at (1, 3) is 0 in torch"
    same = large(200, 2, wrong=False)
    assert not all_of(parsed(same.to_html()), "section", id="kinks")
    for kinks, counted in (((relu,), "1 kink"), ((relu, HOSTILE[0]), "2 kinks")):
        tree = parsed(at_kinks(same, *kinks).to_html())
        [heading] = all_of(tree, "h1")
        assert text_of(heading) == f"Same in all that was compared, up to {counted}"
        [link] = all_of(heading, "a")
        assert link.get("href") == "#kinks"
        told = section(tree, "kinks")
        assert told.startswith("Kinks that rounding decided otherwise in the two Step")
        for kink in kinks:
            assert f"Step 0, gradients : {kink}" in told
    # They excuse nothing else.
    tree = parsed(at_kinks(large(200, 2), relu).to_html())
    assert text_of(all_of(tree, "h1")[0]) == "Different"
    assert relu in section(tree, "kinks")


def test_the_stages_lead_to_their_tensors(wrong):
    _, report = wrong
    tree = parsed(report.to_html())
    [chain] = all_of(tree, "table", class_="chain")
    rows = all_of(chain, "tr")[1:]
    for row, stage in zip(rows, STAGES, strict=True):
        assert text_of(row[0]).startswith(stage)
    verdicts = {text_of(row[0]).split()[-1] for row in rows}
    assert verdicts == {"same", "differ", "compared"}
    [steps] = all_of(tree, "table", class_="steps")
    cells = {
        (link.get("data-stage"), int(link.get("data-step"))): text_of(link)
        for link in all_of(steps, "a")
    }
    compared = {(s.stage, s.step) for s in report.stages if s.tensors}
    assert cells.keys() == compared
    assert cells["update", 1].endswith("times what is allowed: differs")
    assert cells["loss", 1].endswith("times what is allowed: same")


def test_every_figure_of_every_tensor_is_in_the_table(wrong):
    _, report = wrong
    tree = parsed(report.to_html())
    rows = rows_of(tree)
    found = {
        (row["step"], (BATCH, *STAGES)[row["stage"]], row["name"]): row for row in rows
    }
    tensors = [tensor for stage in report.stages for tensor in stage.tensors]
    assert len(rows) == len(found) == len(tensors)
    assert [row["verdict"] for row in rows] == sorted(row["verdict"] for row in rows)
    for tensor in tensors:
        row = found[tensor.step, tensor.stage, tensor.name]
        assert row["verdict"] == tensor.passed
        for key, value in {
            "share": tensor.ratio / 4,
            "ratio": tensor.ratio,
            "allowed": 4,
            "l2": tensor.relative_l2,
            "cosine": tensor.cosine,
            "abs": tensor.comparison.max_abs_diff,
            "rel": tensor.comparison.max_rel_diff,
            "ulps": tensor.comparison.max_ulps,
            "mismatched": tensor.mismatched,
            "size": tensor.size,
            "tolerance": tensor.tolerance,
            "own": tensor.torch_error,
            "port": tensor.port_error,
        }.items():
            rtol = 1e-10 if key == "cosine" else 1e-5
            np.testing.assert_allclose(float(row[key]), value, rtol=rtol)
        assert (row["detail"], row["hint"]) == (tensor.detail, tensor.hint)
        assert row["module"] == tensor.module
        assert row["dtype"] == "float32"
    assert {column.key for column in columns(TORCH)} == {*rows[0]}


def test_of_a_tolerance_the_whole_is_allowed():
    tensor = judged(0, "loss", sample("x", "", wrong=0.2), Rule(rtol=0.0, atol=0.1))
    assert tensor.allowed == 1
    np.testing.assert_allclose(tensor.share, 2, rtol=1e-5)
    [row] = rows_of(parsed(one(tensor).to_html()))
    np.testing.assert_allclose([row["ratio"], row["share"]], 2, rtol=1e-5)


def test_figures_that_are_none_are_no_numbers():
    tensor = judged(0, "loss", sample("x", "", wrong=np.nan), Rule())
    tree = parsed(one(tensor).to_html())
    [row] = rows_of(tree)
    assert (row["share"], row["abs"], row["verdict"]) == ("inf", "inf", 0)
    absent = dataclasses.replace(tensor, relative_l2=math.nan, tolerance=math.nan)
    [row] = rows_of(parsed(one(absent).to_html()))
    assert row["l2"] is row["tolerance"] is None


def test_the_way_to_the_first_divergence_is_open():
    report = large(200, 2)
    tree = parsed(report.to_html())
    [modules] = all_of(tree, "section", id="modules")
    opened = [
        text_of(details[0][0])
        for details in all_of(modules, "details")
        if details.get("open") is not None
    ]
    assert [text.split()[:2] for text in opened] == [
        ["differs:", name] for name in ("model", "layers", "7")
    ]
    [first] = [e for e in all_of(modules, "span") if "first" in e.get("class", "")]
    assert text_of(first) == "differs: c Linear first divergence"
    [closed] = [e for e in all_of(modules, "summary") if text_of(e).startswith("6 ")]
    assert "gradients inside: .03 times what is allowed, same" in text_of(closed)


def test_a_module_that_differs_elsewhere_says_where():
    own = sample("fc/exp_avg", "fc", wrong=1e-2)
    tensor = judged(0, "optimizer state", own, Rule())
    tree = parsed(one(tensor, run=run_of([("", "Net"), ("fc", "Linear")])).to_html())
    [elsewhere] = all_of(tree, "em", class_="elsewhere")
    assert text_of(elsewhere) == "in optimizer state"


def test_the_picture_says_how_the_tensor_is_folded():
    picture = section(parsed(large(200, 1).to_html()), "picture")
    assert (
        "Shape (40, 96, 33): rows are axis 0 (40), columns axes 1 and 2 (96 × 33); "
        "each cell is the greatest of 1 × 50 elements"
    ) in picture
    assert ", 1 by more than one element may" in picture


def test_the_free_run_has_its_figures(wrong):
    _, report = wrong
    tree = parsed(report.to_html())
    free = section(tree, "free")
    for step in report.free_run.steps:
        assert number(step.torch_loss, 7) in free
        assert number(step.port_loss, 7) in free
    assert "different" in free


def test_a_free_run_that_alone_parts_is_the_first_divergence(wrong):
    path, report = wrong
    right = verify(path, make_right(), free_run=False)
    parts = dataclasses.replace(right, free_run=report.free_run)
    tree = parsed(parts.to_html())
    assert text_of(all_of(tree, "h1")[0]) == "Different"
    assert section(tree, "first").startswith("First divergence The free run: 2 steps")


def test_a_report_of_little_is_a_page():
    tensor = judged(3, "loss", sample("loss", "", shape=()), Rule())
    tree = parsed(one(tensor).to_html())
    assert not all_of(tree, "table", class_="steps")
    assert not all_of(tree, "section", id="modules")
    parsed(one(tensor, run=run_of([])).to_html())


# It is whole in itself, and safe.


@pytest.mark.parametrize("make", [hostile, lambda: large(200, 1)])
def test_nothing_is_asked_for_and_nothing_else_runs(make):
    page = make().to_html()
    tree = parsed(page)
    for element in tree.iter():
        for key, value in element.items():
            assert not key.startswith("on"), (element.tag, key)
            assert key not in ("style", "src", "srcset", "action", "formaction")
            if key.endswith("href"):
                assert value.startswith("#"), value
    assert {e.tag.removeprefix(HTML) for e in tree.iter(HTML + "script")} == {"script"}
    scripts = [s for s in all_of(tree, "script") if s.get("type") is None]
    [script], [style] = scripts, all_of(tree, "style")
    [policy] = all_of(tree, "meta", **{"http-equiv": "Content-Security-Policy"})
    rules = dict(rule.split(" ", 1) for rule in policy.get("content").split("; "))
    assert rules == {
        "default-src": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "style-src": f"'{digest(style.text)}'",
        "script-src": f"'{digest(script.text)}'",
    }
    own = files("jaxclip.parity._html")
    assert script.text == (own / "report.js").read_text(encoding="utf-8")
    assert style.text == (own / "report.css").read_text(encoding="utf-8")
    assert not re.search(r"url\(|@import|https?:(?!//www\.w3\.org/2000/svg)", page)


def digest(text):
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def test_no_name_is_taken_for_markup(tmp_path):
    report = hostile()
    report.save_html(tmp_path / "report.html")
    tree = parsed((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert not list(tree.iter(HTML + "img"))
    everything = text_of(tree)
    for name in HOSTILE[:5]:
        assert name in everything
    # What cannot be seen, or reorders what can, is shown as an escape.
    assert "\\u202eevil.exe\\u2066" in everything
    assert "nul\\x00 bell\\x07 esc\\x1b" in everything
    assert "lonely \\ud800 surrogate" in everything
    assert "\u202e" not in everything
    names = {row["module"] for row in rows_of(tree)}
    assert HOSTILE[0] in names
    assert len(names) == len(HOSTILE)


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_ends_the_data(name):
    # One by one: "<!--<script>" would hide what another does after it.
    tensor = judged(0, "loss", sample(name, name), Rule())
    [row] = rows_of(parsed(one(tensor).to_html()))
    assert row["name"] == row["module"] == visible(name)


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_ends_an_attribute(name):
    [body] = all_of(parsed(f"<!DOCTYPE html>{el('body', title=name)}"), "body")
    assert body.attrib == {"title": visible(name)}
    assert len(body) == 0


def test_the_same_report_is_the_same_page(wrong):
    _, report = wrong
    assert report.to_html() == dataclasses.replace(report).to_html()


def test_it_is_written_whole_or_not_at_all(wrong, tmp_path, monkeypatch):
    _, report = wrong
    path = tmp_path / "report.html"
    path.write_text("before")

    def broken(*_):
        raise RuntimeError

    with monkeypatch.context() as patched:
        patched.setattr("jaxclip.parity._html._page.facts", broken)
        with pytest.raises(RuntimeError):
            report.save_html(path)
    assert [each.read_text() for each in tmp_path.iterdir()] == ["before"]
    report.save_html(path)
    assert path.read_text(encoding="utf-8") == report.to_html()
    with pytest.raises(FileNotFoundError):
        report.save_html(tmp_path / "no folder" / "report.html")


def test_it_is_read_at_two_thousand_tensors():
    report = large(2000, 2)
    page = report.to_html()
    tree = parsed(page)
    assert len(rows_of(tree)) == 4000
    [table] = all_of(tree, "table", id="table")
    assert len(all_of(table, "tr")) == PAGE + 1
    assert len(page) < 2_000_000


# On the command line.


def test_the_command_writes_it(wrong, tmp_path, capsys):
    path, _ = wrong
    page = tmp_path / "report.html"
    arguments = ["verify", str(path), f"{__name__}:WRONG", "--html", str(page)]
    assert cli.main(arguments) == 1
    assert text_of(all_of(parsed(page.read_text()), "h1")[0]) == "Different"
    assert cli.main([*arguments[:-1], str(tmp_path / "none" / "x.html")]) == 2
    assert "No such file" in capsys.readouterr().err


# In JSON.


def test_the_run_and_the_difference_are_in_the_json(wrong):
    _, report = wrong
    plain = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert plain["run"]["modules"][0]["type"].endswith("Linear")
    assert plain["run"]["versions"] == dict(report.run.versions)
    assert plain["difference"]["shape"] == [2, 3]
    assert np.shape(plain["difference"]["cells"]) == (2, 3)
    assert plain["first"]["allowed"] == 4
    np.testing.assert_allclose(plain["first"]["share"], report.first.ratio / 4)
    same = one(judged(0, "loss", sample("loss", ""), Rule())).to_json()
    assert same["run"] is same["difference"] is None


# Figures.


@pytest.mark.parametrize(
    ("share", "passed", "expected"),
    [
        (0.0, True, "a0"),
        (math.nan, True, "b4"),
        (1.0, True, "a3"),
        (1.01, False, "b0"),
        (0.5, False, "b0"),
        (2e5, False, "b4"),
        (math.inf, False, "b4"),
    ],
)
def test_what_differs_is_never_on_a_level_of_what_passes(share, passed, expected):
    assert level(share, passed) == expected


@pytest.mark.parametrize(
    "value", [0.0, 1e-300, 0.00999, 0.999, 9.99, 998.0, 1e5, 1e300]
)
def test_figures_are_short_and_near(value):
    for text, digits in ((number(value), 3), (brief(value), 1)):
        assert len(text) <= 8
        if value >= 0.01:
            near = 0.6 * 10.0 ** (1 - digits)
            np.testing.assert_allclose(float(text.replace(",", "")), value, rtol=near)


def test_things_are_counted():
    assert count(0, "step") == "0 steps"

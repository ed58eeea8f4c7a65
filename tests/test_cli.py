"""The command line: what it runs, and what it says of what it cannot."""

import os
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import optax
import pytest

import jaxclip
from jaxclip import ClipMetrics, cli, clip_by_global_norm
from torchref.corpus import python_help_text

TINY = ["demo", "--steps", "4", "--hidden", "8"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "Bücher.txt"
    path.write_text(python_help_text()[:9000])
    return path


@pytest.fixture(scope="module")
def tiny_run(text, tmp_path_factory):
    """Run the smallest demo once; return the process and where its files are."""
    out = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "jaxclip", *TINY]
    run = subprocess.run(
        [*command, "--text", str(text), "--out", str(out)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    return run, out


def test_the_demo_ends_with_the_verdict_that_its_status_says(tiny_run):
    run, out = tiny_run
    assert run.returncode == 0, run.stderr
    verdicts = [line for line in run.stdout.splitlines() if "Verdict" in line]
    assert len(verdicts) == 2
    assert all("Verdict: equal, up to rounding" in line for line in verdicts)
    assert str(out / "clipping.png") in run.stdout


def test_the_demo_names_the_parameters_and_every_way_to_clip(tiny_run):
    run, _ = tiny_run
    names = ["1.weight", "1.fc.weight", "1.fc.kernel", "3.bias"]
    ways = [
        "D2L's grad_clipping",
        "the notebook's loop",
        "nn.utils.clip_grad_norm_",
        "jaxclip.clip_grad_norm",
        "jaxclip.clip_by_global_norm",
        "optax.clip_by_global_norm",
    ]
    assert [name for name in names + ways if name not in run.stdout] == []


def test_the_demo_leaves_a_report_a_picture_numbers_and_recordings(tiny_run):
    _, out = tiny_run
    assert (out / "clipping.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert sorted(path.name for path in out.iterdir()) == [
        "clipping.png",
        "float32.trace",
        "float64.trace",
        "metrics.json",
        "report.html",
    ]
    assert "Same in all that was compared" in (out / "report.html").read_text()
    assert cli.main(["inspect", str(out / "float64.trace")]) == 0


def test_a_file_gets_no_control_characters(tiny_run):
    run, _ = tiny_run
    control = {char for char in run.stdout + run.stderr if char < " "}
    assert control == {"\n"}


def test_a_character_that_the_output_lacks_is_no_error(tiny_run):
    run, _ = tiny_run
    assert r"B\xfccher.txt" in run.stdout


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        (b"", "the file is empty"),
        (b"too short", "too short"),
        (b"\xff\xfe" * 9000, "not UTF-8"),
    ],
    ids=["missing", "empty", "short", "undecodable"],
)
def test_a_text_that_cannot_be_learnt_is_one_line(tmp_path, capsys, content, message):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    status = cli.main([*TINY, "--text", str(path), "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert status == 2
    assert error.count("\n") == 1
    assert str(path) in error
    assert message in error


@pytest.mark.parametrize(
    "arguments",
    [
        ["--steps", "0"],
        ["--hidden", "-1"],
        ["--max-norm", "0"],
        ["--lr", "nan"],
        ["--cell", "transformer"],
        ["--seed", "x"],
    ],
    ids=" ".join,
)
def test_an_argument_that_makes_no_sense_is_named(capsys, arguments):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["demo", *arguments])
    assert f"argument {arguments[0]}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(
            lambda max_norm, **_: optax.clip_by_global_norm(max_norm),
            marks=pytest.mark.long,
            id="optax",
        ),
        pytest.param(
            lambda max_norm, eps=2e-6: clip_by_global_norm(max_norm, eps=eps), id="eps"
        ),
        pytest.param(
            lambda max_norm, **_: optax.identity(), marks=pytest.mark.long, id="none"
        ),
    ],
)
def test_a_wrong_clip_is_found(monkeypatch, capsys, text, tmp_path, wrong):
    monkeypatch.setattr(jaxclip, "clip_by_global_norm", wrong)
    # Nothing of it is a ClipState, so let the metrics be those of a right one.
    monkeypatch.setattr(
        jaxclip,
        "clip_metrics",
        lambda _: ClipMetrics(*map(jnp.asarray, [1.0] * len(ClipMetrics._fields))),
    )
    arguments = [*TINY, "--max-norm", "0.1", "--text", str(text)]
    assert cli.main([*arguments, "--out", str(tmp_path)]) == 1
    assert "Verdict: NOT equal" in capsys.readouterr().out


def test_a_folder_that_cannot_be_made_is_named(tmp_path, text, capsys):
    occupied = tmp_path / "file"
    occupied.write_text("")
    assert cli.main([*TINY, "--text", str(text), "--out", str(occupied)]) == 2
    assert f"--out {occupied}" in capsys.readouterr().err


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"jaxclip {jaxclip.__version__}\n"


def test_help_names_the_commands_and_their_options(capsys):
    for arguments, names in (
        (["--help"], ["demo", "--version"]),
        (
            ["demo", "--help"],
            [
                *("--steps", "--hidden", "--cell", "--max-norm", "--lr", "--seed"),
                *("--text", "--out", "exit status"),
            ],
        ),
    ):
        with pytest.raises(SystemExit, match="0"):
            cli.main(arguments)
        text = capsys.readouterr().out
        assert [name for name in names if name not in text] == []


def test_an_interrupted_run_says_so(monkeypatch, capsys):
    def interrupted(settings):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxclip.demo._run.run", interrupted)
    assert cli.main(["demo"]) == 130
    assert capsys.readouterr().err == "jaxclip demo: interrupted\n"


def test_missing_extras_are_named_with_how_to_install_them():
    code = """
        import sys
        for name in ("torch", "rich"):
            sys.modules[name] = None
        from jaxclip import cli
        sys.exit(cli.main(["demo"]))
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True
    )
    assert run.returncode == 2
    assert "(torch, rich)" in run.stderr
    assert "pip install 'jaxclip[all]'" in run.stderr

"""How the parts of the demo are put together; the parts are made up."""

import errno
from types import SimpleNamespace

import pytest

from jaxclip.demo import _run
from jaxclip.demo._settings import DemoError, Settings
from tests.demo.runs import proof, trainings

RIGHT = proof()
WRONG = proof(error64=1e-3)


@pytest.fixture
def pretend(monkeypatch):
    """Return what sets the results that ``run`` finds."""

    def set_results(*, net_equal, found):
        net = SimpleNamespace(equal=net_equal)
        monkeypatch.setattr(_run, "compare_nets", lambda seed: net)
        monkeypatch.setattr(_run, "print_net", lambda console, net: None)
        monkeypatch.setattr(_run, "train_all", lambda *_: trainings())
        monkeypatch.setattr(_run, "prove", lambda *_: found)
        monkeypatch.setattr(_run, "write_metrics", lambda *_: None)

    return set_results


@pytest.mark.parametrize(
    ("net_equal", "found", "status"),
    [(True, RIGHT, 0), (False, RIGHT, 1), (True, WRONG, 1), (False, WRONG, 1)],
    ids=["equal", "net", "model", "both"],
)
def test_the_status_is_1_if_either_part_differs(
    pretend, tmp_path, capsys, net_equal, found, status
):
    pretend(net_equal=net_equal, found=found)
    assert _run.run(Settings(out=tmp_path / "new" / "folder")) == status
    assert (tmp_path / "new" / "folder" / "clipping.png").exists()
    report = (tmp_path / "new" / "folder" / "report.html").read_text()
    assert "run.trace" in report
    out = capsys.readouterr().out
    assert f"Verdict: {str(found)[:20]}" in out


def test_a_full_disk_is_told(pretend, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    pretend(net_equal=True, found=RIGHT)
    monkeypatch.setattr(_run, "draw", full)
    with pytest.raises(DemoError, match=f"--out {tmp_path}: No space left on device"):
        _run.run(Settings(out=tmp_path))


def test_a_folder_that_cannot_be_made_is_told_before_anything_runs(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DemoError, match=r"--out .*file: File exists"):
        _run.run(Settings(out=tmp_path / "file"))
